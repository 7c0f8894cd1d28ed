"""What the machine does while it trains, for the loggers: `DeviceStatsMonitor` and the older `GPUStatsMonitor`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


_PROC = Path("/proc")


class DeviceStatsMonitor(Callback):
    """Logs memory and load of the device, before and after each batch of the steps that are logged.

    Names are ``DeviceStatsMonitor.<hook>/<value>``. On a GPU the values are those of ``torch.cuda.memory_stats``, in
    bytes. Of the CPU they are ``cpu_percent`` (all cores, since the last look), ``cpu_vm_percent`` (memory) and
    ``cpu_swap_percent``, from psutil where it is installed, else from ``/proc``; where there is neither,
    ``cpu_load_1min`` alone.

    Args:
        cpu_stats: True: the CPU's values always; False: never; None (default): where the device is the CPU.

    Raises:
        MisconfigurationException: at the start of a fit, the trainer has no logger.

    Example:
        >>> stats = CpuStats().read()
        >>> 0 < stats["cpu_vm_percent"] < 100
        True
    """

    def __init__(self, cpu_stats: bool | None = None):
        self._cpu_stats = cpu_stats
        self._cpu = CpuStats()

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """There must be somebody to tell."""
        if stage == "fit" and not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "Cannot use `DeviceStatsMonitor` callback with `Trainer(logger=False)`; give the Trainer a logger, or "
                "remove the callback"
            )

    def _log(self, trainer: Trainer, hook: str) -> None:
        if not trainer.should_log_step:
            return
        stats: dict[str, float] = {}
        if trainer.device.type == "cuda":
            stats.update(torch.cuda.memory_stats(trainer.device))
        if self._cpu_stats or (self._cpu_stats is None and trainer.device.type == "cpu"):
            stats.update(self._cpu.read())
        for logger in trainer.loggers if stats else ():
            separator = getattr(logger, "group_separator", "/")
            prefix = f"{type(self).__qualname__}.{hook}{separator}"
            logger.log_metrics({prefix + name: value for name, value in stats.items()}, step=trainer.logging_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """Before a training batch."""
        self._log(trainer, "on_train_batch_start")

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After it."""
        self._log(trainer, "on_train_batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a validation batch."""
        self._log(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """After it."""
        self._log(trainer, "on_validation_batch_end")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a test batch."""
        self._log(trainer, "on_test_batch_start")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """After it."""
        self._log(trainer, "on_test_batch_end")


class CpuStats:
    """Reads how busy the machine's CPU and memory are.

    Example:
        >>> sorted(CpuStats().read())
        ['cpu_percent', 'cpu_swap_percent', 'cpu_vm_percent']
    """

    def __init__(self) -> None:
        self._before = (0, 0)  # ticks since the machine's start: busy, all

    def read(self) -> dict[str, float]:
        """Percentages from 0 to 100; ``cpu_percent`` since the last call (the first time: 0).

        Raises:
            ImportError: there is neither psutil nor a way to do without.
        """
        if importlib.util.find_spec("psutil") is not None:
            import psutil

            return {
                "cpu_vm_percent": psutil.virtual_memory().percent,
                "cpu_percent": psutil.cpu_percent(),
                "cpu_swap_percent": psutil.swap_memory().percent,
            }
        if (_PROC / "stat").exists():
            return self._read_proc()
        if hasattr(os, "getloadavg"):
            return {"cpu_load_1min": os.getloadavg()[0]}
        raise ImportError("DeviceStatsMonitor: the CPU's values need psutil on this system (`pip install psutil`), or "
                          "DeviceStatsMonitor(cpu_stats=False)")  # fmt: skip

    def _read_proc(self) -> dict[str, float]:
        memory = dict(line.split()[:2] for line in (_PROC / "meminfo").read_text().splitlines())
        kilobytes = {name.rstrip(":"): int(value) for name, value in memory.items()}
        # user nice system idle iowait irq softirq steal; guests' time stands in user and nice already
        ticks = [int(part) for part in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy, total = sum(ticks) - ticks[3] - ticks[4], sum(ticks)
        (busy_before, total_before), self._before = self._before, (busy, total)
        return {
            "cpu_vm_percent": _percent(kilobytes["MemTotal"] - kilobytes["MemAvailable"], kilobytes["MemTotal"]),
            "cpu_percent": _percent(busy - busy_before, total - total_before) if total_before else 0.0,
            "cpu_swap_percent": _percent(kilobytes["SwapTotal"] - kilobytes["SwapFree"], kilobytes["SwapTotal"]),
        }


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


class GPUStatsMonitor(Callback):
    """Logs what ``nvidia-smi`` says of this process's GPU, on the training steps that are logged.

    Lightning's callback before 1.7; `DeviceStatsMonitor` costs less. Names are ``device_id: 0/utilization.gpu (%)`` and
    the like, times ``batch_time/intra_step (ms)`` and ``batch_time/inter_step (ms)``.

    Args:
        memory_utilization: Used and free memory (MB), and the share of time in which memory was read or written (%).
        gpu_utilization: The share of time in which a kernel ran (%).
        intra_step_time: The time from a batch's start to its end.
        inter_step_time: The time from a batch's end to the next one's start.
        fan_speed: In percent of the largest.
        temperature: Of the processor and its memory, in degrees Celsius.

    Raises:
        MisconfigurationException: there is no ``nvidia-smi``; at the start of training, the trainer has no logger or
            does not run on a GPU.

    Example:
        >>> callbacks = [GPUStatsMonitor(temperature=True)] if torch.cuda.is_available() else [DeviceStatsMonitor()]
    """

    def __init__(
        self,
        memory_utilization: bool = True,
        gpu_utilization: bool = True,
        intra_step_time: bool = False,
        inter_step_time: bool = False,
        fan_speed: bool = False,
        temperature: bool = False,
    ):
        if shutil.which("nvidia-smi") is None:
            raise MisconfigurationException(
                "Cannot use GPUStatsMonitor callback because NVIDIA driver is not installed (there is no "
                "`nvidia-smi`); use DeviceStatsMonitor"
            )
        self._intra_step_time, self._inter_step_time = intra_step_time, inter_step_time
        self._load: dict[str, str] = {}  # what nvidia-smi is asked for, and its unit
        if gpu_utilization:
            self._load["utilization.gpu"] = "%"
        if memory_utilization:
            self._load.update({"memory.used": "MB", "memory.free": "MB", "utilization.memory": "%"})
        self._condition: dict[str, str] = {}
        if fan_speed:
            self._condition["fan.speed"] = "%"
        if temperature:
            self._condition.update({"temperature.gpu": "°C", "temperature.memory": "°C"})
        self._batch_started = 0.0
        self._batch_ended: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """There must be a logger, and a GPU."""
        if not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "Cannot use GPUStatsMonitor callback with Trainer that has no logger; give one, or remove it"
            )
        if trainer.device.type != "cuda":
            raise MisconfigurationException(
                f"You are using GPUStatsMonitor but are not running on GPU: the Trainer's device is {trainer.device}. "
                f"Use DeviceStatsMonitor, or a GPU"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The time between two epochs is not one between two batches."""
        self._batch_ended = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """The load, and the time since the last batch."""
        self._batch_started = time.perf_counter()
        if trainer.should_log_step:
            values = self._ask(trainer, self._load)
            if self._inter_step_time and self._batch_ended is not None:
                values["batch_time/inter_step (ms)"] = (self._batch_started - self._batch_ended) * 1000
            trainer.log_metrics(values)

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The load, the GPU's condition, and the time that the batch took."""
        self._batch_ended = time.perf_counter()
        if trainer.should_log_step:
            values = self._ask(trainer, {**self._load, **self._condition})
            if self._intra_step_time:
                values["batch_time/intra_step (ms)"] = (self._batch_ended - self._batch_started) * 1000
            trainer.log_metrics(values)

    def _ask(self, trainer: Trainer, units: dict[str, str]) -> dict[str, float]:
        """nvidia-smi's answer for this process's GPU; 0 where it does not know."""
        if not units:
            return {}
        index = trainer.device.index or 0
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        identity = visible.split(",")[index].strip() if visible else str(index)
        command = ["nvidia-smi", f"--query-gpu={','.join(units)}", "--format=csv,nounits,noheader", f"--id={identity}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(",")
        return {
            f"device_id: {identity}/{name} ({unit})": _number(value)
            for (name, unit), value in zip(units.items(), answer, strict=True)
        }


def _number(text: str) -> float:
    """A number, or 0 for ``[N/A]``.

    >>> _number(" 43"), _number("[N/A]")
    (43.0, 0.0)
    """
    text = text.strip()
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0
