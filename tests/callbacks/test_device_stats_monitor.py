"""Names and values of the machine's statistics; who must be there to take them."""

import sys
from types import SimpleNamespace

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import MisconfigurationException, Trainer
from espnet3_lite.callbacks import DeviceStatsMonitor, GPUStatsMonitor
from espnet3_lite.callbacks import device_stats_monitor as module_under_test
from espnet3_lite.callbacks.device_stats_monitor import CpuStats
from espnet3_lite.loggers import Logger

CPU = {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent"}


class Memory(Logger):
    def __init__(self):
        self.rows = []

    name = version = "memory"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params):
        pass


def make(callback, logger, **settings):
    return quiet_trainer(max_epochs=1, callbacks=callback, logger=logger, num_sanity_val_steps=0, **settings)


def rows_of(logger, *hooks):
    return [(step, set(row)) for step, row in logger.rows if any(name.split("/")[0][19:] in hooks for name in row)]


def test_cpu_values_of_the_steps_that_are_logged():
    logger = Memory()
    trainer = make(DeviceStatsMonitor(), logger, log_every_n_steps=2)
    trainer.fit(Line(), DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(1, 1)))
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        names = {f"DeviceStatsMonitor.{hook}/{value}" for value in CPU}
        assert rows_of(logger, hook) == [(1, names), (3, names)]
    assert len(rows_of(logger, "on_validation_batch_start", "on_validation_batch_end")) == 2
    assert all(0 <= value <= 100 for _, row in logger.rows for name, value in row.items() if name.startswith("Dev"))


def test_fast_dev_run_needs_no_logger():
    trainer = Trainer(fast_dev_run=True, callbacks=DeviceStatsMonitor(), enable_progress_bar=False, accelerator="cpu")
    trainer.fit(Line(), DataLoader(torch.ones(4, 1)))
    assert trainer.global_step == 1


def test_a_test_is_watched_too():
    logger = Memory()
    trainer = make(DeviceStatsMonitor(), logger, log_every_n_steps=1)
    trainer.test(Line(), DataLoader(torch.ones(1, 1)), verbose=False)
    assert [len(rows_of(logger, hook)) for hook in ("on_test_batch_start", "on_test_batch_end")] == [1, 1]


@pytest.mark.parametrize(
    ("cpu_stats", "device", "expected"),
    [
        (None, "cpu", CPU), (True, "cpu", CPU), (False, "cpu", None),
        (None, "cuda", {"allocated_bytes.all.current"}), (False, "cuda", {"allocated_bytes.all.current"}),
        (True, "cuda", CPU | {"allocated_bytes.all.current"}),
    ],
)  # fmt: skip
def test_whose_values(cpu_stats, device, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"allocated_bytes.all.current": 7})
    logger = Memory()
    trainer = SimpleNamespace(device=torch.device(device), loggers=[logger], should_log_step=True, logging_step=5)
    DeviceStatsMonitor(cpu_stats).on_train_batch_end(trainer, None, None, None, 0)
    if expected is None:
        assert logger.rows == []
    else:
        ((step, row),) = logger.rows
        assert (step, set(row)) == (5, {f"DeviceStatsMonitor.on_train_batch_end/{name}" for name in expected})


def test_a_logger_is_needed_for_a_fit():
    with pytest.raises(MisconfigurationException, match="Cannot use `DeviceStatsMonitor` callback"):
        make(DeviceStatsMonitor(), False).fit(Line(), DataLoader(torch.ones(1, 1)))


def test_proc_is_read_where_there_is_no_psutil(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(module_under_test, "_PROC", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 250 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 7 7\ncpu0 1 1\n")
    stats = CpuStats()
    assert stats.read() == {"cpu_vm_percent": 75.0, "cpu_percent": 0.0, "cpu_swap_percent": 0.0}
    (tmp_path / "stat").write_text("cpu  130 0 60 850 60 0 0 0 7 7\ncpu0 1 1\n")  # 40 of 100 ticks were work
    assert stats.read()["cpu_percent"] == 40.0


def test_psutil_is_asked_where_it_is_installed(monkeypatch):
    fake = SimpleNamespace(
        __spec__=object(),
        virtual_memory=lambda: SimpleNamespace(percent=1.0),
        cpu_percent=lambda: 2.0,
        swap_memory=lambda: SimpleNamespace(percent=3.0),
    )
    monkeypatch.setitem(sys.modules, "psutil", fake)
    assert CpuStats().read() == {"cpu_vm_percent": 1.0, "cpu_percent": 2.0, "cpu_swap_percent": 3.0}


def test_systems_without_proc(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(module_under_test, "_PROC", tmp_path)
    monkeypatch.setattr(module_under_test.os, "getloadavg", lambda: (0.25, 0, 0))
    assert CpuStats().read() == {"cpu_load_1min": 0.25}
    monkeypatch.delattr(module_under_test.os, "getloadavg")
    with pytest.raises(ImportError, match="pip install psutil"):
        CpuStats().read()


# ---- GPUStatsMonitor, with an nvidia-smi that is not there -----------------------------------------------------------


def test_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setattr(module_under_test.shutil, "which", lambda name: None)
    with pytest.raises(MisconfigurationException, match="NVIDIA driver is not installed"):
        GPUStatsMonitor()


@pytest.fixture
def nvidia(monkeypatch):
    """An nvidia-smi that answers 1, 2, 3, ... and keeps its command lines."""
    commands = []

    def run(command, **settings):
        commands.append(command)
        count = command[1].count(",") + 1
        return SimpleNamespace(stdout=", ".join(str(i + 1) for i in range(count - 1)) + ", [N/A]\n")

    monkeypatch.setattr(module_under_test.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(module_under_test.subprocess, "run", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    return commands


def gpu_trainer(**changes):
    logged = []
    settings = {
        "device": torch.device("cuda", 1),
        "loggers": [1],
        "should_log_step": True,
        "fast_dev_run": False,
        "log_metrics": logged.append,
    }
    return SimpleNamespace(**{**settings, **changes}), logged


def test_gpu_values(nvidia):
    monitor = GPUStatsMonitor(fan_speed=True, temperature=True, intra_step_time=True, inter_step_time=True)
    trainer, logged = gpu_trainer()
    monitor.on_train_start(trainer, None)
    monitor.on_train_epoch_start(trainer, None)
    for _ in range(2):
        monitor.on_train_batch_start(trainer, None, None, 0)
        monitor.on_train_batch_end(trainer, None, None, None, 0)
    assert logged[0] == {
        "device_id: 5/utilization.gpu (%)": 1.0,
        "device_id: 5/memory.used (MB)": 2.0,
        "device_id: 5/memory.free (MB)": 3.0,
        "device_id: 5/utilization.memory (%)": 0.0,
    }
    extra = {"fan.speed (%)", "temperature.gpu (°C)", "temperature.memory (°C)"}
    assert set(logged[1]) - set(logged[0]) == {f"device_id: 5/{name}" for name in extra} | {
        "batch_time/intra_step (ms)"
    }
    assert set(logged[2]) - set(logged[0]) == {"batch_time/inter_step (ms)"}
    assert nvidia[0][0] == "nvidia-smi" and nvidia[0][-1] == "--id=5"


def test_gpu_steps_that_are_not_logged_cost_nothing(nvidia):
    monitor = GPUStatsMonitor()
    trainer, logged = gpu_trainer(should_log_step=False)
    monitor.on_train_batch_start(trainer, None, None, 0)
    monitor.on_train_batch_end(trainer, None, None, None, 0)
    assert (nvidia, logged) == ([], [])


def test_gpu_and_logger_are_needed(nvidia):
    with pytest.raises(MisconfigurationException, match="no logger"):
        GPUStatsMonitor().on_train_start(gpu_trainer(loggers=[])[0], None)
    with pytest.raises(MisconfigurationException, match="not running on GPU: the Trainer's device is cpu"):
        GPUStatsMonitor().on_train_start(gpu_trainer(device=torch.device("cpu"))[0], None)
