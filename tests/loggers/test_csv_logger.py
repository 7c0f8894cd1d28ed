"""CSVLogger: files, columns and rows as Lightning 2.6.6 writes them; its output for the same calls stands here."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch
import yaml

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers import CSVLogger, Logger
from espnet3_lite.loggers.base import SilentExperiment


def text_of(logger):
    """The file's text, line ends as they are: csv's own, \\r\\n."""
    return Path(logger.log_dir, "metrics.csv").read_bytes().decode()


def test_columns_are_sorted_and_rows_before_a_new_column_are_left_blank(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    logger.log_metrics({"b": 1.0, "a": torch.tensor(2.5)}, step=0)
    logger.log_metrics({"a": 1, "z": 0.1}, step=1)
    logger.log_metrics({"c": 1e-7, "step": 99, "epoch": 0}, step=2)
    logger.finalize("success")
    assert text_of(logger) == "a,b,c,epoch,step,z\r\n2.5,1.0,,,0,\r\n1,,,,1,0.1\r\n,,1e-07,0,2,\r\n"


def test_values_that_are_no_finite_numbers(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"nan": float("nan"), "inf": float("inf"), "i": 3, "s": "text", "none": None})
    logger.save()
    assert text_of(logger) == "i,inf,nan,none,s,step\r\n3,inf,nan,,text,0\r\n"


def test_prefix_is_joined_with_a_dash_and_step_counts_rows_when_none_is_given(tmp_path):
    logger = CSVLogger(tmp_path, prefix="run")
    logger.log_metrics({"a": 1.0})
    logger.log_metrics({"a": 2.0})
    logger.save()
    logger.log_metrics({"a": 3.0})
    logger.save()
    assert text_of(logger) == "run-a,step\r\n1.0,0\r\n2.0,1\r\n3.0,2\r\n"


@pytest.mark.parametrize(
    "arguments, name, expected",
    [
        ({}, "lightning_logs", "lightning_logs/version_0"),
        ({"name": "digits"}, "digits", "digits/version_0"),
        ({"name": ""}, "", "version_0"),
        ({"name": None}, "", "version_0"),
        ({"version": 7}, "lightning_logs", "lightning_logs/version_7"),
        ({"name": None, "version": "mine"}, "", "mine"),
        ({"name": "a", "version": "b"}, "a", "a/b"),
    ],
)
def test_folders(tmp_path, arguments, name, expected):
    logger = CSVLogger(tmp_path, **arguments)
    assert (logger.name, logger.save_dir) == (name, str(tmp_path))
    assert Path(logger.log_dir) == tmp_path / expected
    assert (tmp_path / expected).exists() == ("version" not in arguments)  # its own from now on
    logger.log_metrics({"a": 1.0}, step=3)
    logger.save()
    assert (tmp_path / expected / "metrics.csv").exists()


def test_the_next_version_is_one_above_the_highest(tmp_path):
    for folder in ("version_0", "version_8", "version_x", "other_9"):
        (tmp_path / "lightning_logs" / folder).mkdir(parents=True)
    (tmp_path / "lightning_logs" / "version_12").write_text("a file is no version")
    assert CSVLogger(tmp_path).version == 9


def test_runs_that_begin_together_have_a_version_each(tmp_path, monkeypatch):
    """Each found the same highest version, and wrote over the other's table."""
    all_have_looked, listed = threading.Barrier(4), os.scandir

    def scandir(path):
        found = list(listed(path))
        all_have_looked.wait()
        return found

    (tmp_path / "lightning_logs").mkdir()
    with monkeypatch.context() as patched, ThreadPool(4) as pool:  # pytest lists the folder, too, to remove it
        patched.setattr(os, "scandir", scandir)
        versions = pool.map(lambda _: CSVLogger(tmp_path).version, range(4), 1)
    assert sorted(versions) == [0, 1, 2, 3]


def test_the_folder_of_a_run_that_goes_on_in_an_earlier_one_is_not_left_behind(tmp_path):
    first = CSVLogger(tmp_path)
    first.log_metrics({"a": 1.0}, step=3)
    second = CSVLogger(tmp_path)
    assert second.version == 1
    second.load_state_dict(first.state_dict())
    assert (second.version, os.listdir(second.root_dir)) == (0, ["version_0"])


def test_where_no_folder_can_be_made_the_version_is_known_all_the_same(tmp_path, monkeypatch):
    def read_only(path, *_):
        raise PermissionError(path)

    monkeypatch.setattr(os, "mkdir", read_only)
    assert CSVLogger(tmp_path).version == 0


def test_an_existing_file_is_replaced_with_a_warning(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"a": 1.0}, step=3)
    first.save()
    second = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match=r"metrics\.csv exists and is replaced.*another `version`"):
        second.log_metrics({"b": 1.0}, step=4)
    second.save()
    assert text_of(second) == "b,step\r\n1.0,4\r\n"


def test_hyperparameters_are_merged_and_read_with_safe_load(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"b": {"q": [1, (2.5, None)]}, "path": Path("/x"), "t": torch.tensor(1.5)})
    logger.log_hyperparams(argparse.Namespace(z=2, loss=torch.relu, inner=argparse.Namespace(y=True)))
    text = Path(logger.log_dir, "hparams.yaml").read_text()
    loss = f"{torch.relu}"
    assert yaml.safe_load(text) == {
        "b": {"q": [1, [2.5, None]]},
        "inner": {"y": True},
        "loss": loss,
        "path": "/x",
        "t": 1.5,
        "z": 2,
    }
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))] == [
        "b", "path", "t", "z", "loss", "inner",
    ]  # fmt: skip


def test_a_logger_that_was_not_used_makes_no_folder(tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    logger.finalize("success")
    assert not (tmp_path / "logs").exists()
    logger.save()
    assert os.listdir(tmp_path / "logs" / "lightning_logs") == ["version_0"]


def test_rows_are_flushed_at_the_interval_also_where_the_logged_steps_do_not_hit_it(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=100)
    for step in (29, 59, 89):
        logger.log_metrics({"a": 1.0}, step=step)
    assert not Path(logger.log_dir, "metrics.csv").exists()
    logger.log_metrics({"a": 1.0}, step=119)
    assert text_of(logger).splitlines()[1:] == ["1.0,29", "1.0,59", "1.0,89", "1.0,119"]
    logger.log_metrics({"a": 2.0}, step=199)
    assert text_of(logger).splitlines()[-1] == "2.0,199"


def test_flushed_rows_outlive_a_killed_process(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from espnet3_lite.loggers import CSVLogger\n"
        "logger = CSVLogger(sys.argv[1], version=0, flush_logs_every_n_steps=2)\n"
        "for step in range(5):\n"
        "    logger.log_metrics({'a': float(step)}, step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert run.returncode == -signal.SIGKILL
    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert text.splitlines() == ["a,step", "0.0,0", "1.0,1", "2.0,2", "3.0,3"]


def test_a_crash_while_columns_are_added_keeps_the_old_rows(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    before = text_of(logger)

    def full_disk(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    logger.log_metrics({"b": 1.0}, step=1)
    with pytest.warns(UserWarning, match="No space left"):  # a log never ends a run
        logger.save()
    assert text_of(logger) == before
    assert os.listdir(logger.log_dir) == ["metrics.csv"]
    monkeypatch.undo()
    logger.save()
    assert text_of(logger) == "a,b,step\r\n1.0,,0\r\n,1.0,1\r\n"


def test_a_vector_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"metric 'a' is a tensor of shape \(2,\)"):
        CSVLogger(tmp_path).log_metrics({"a": torch.ones(2)}, step=0)


def test_an_interval_below_one_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"flush_logs_every_n_steps=0\): must be at least 1"):
        CSVLogger(tmp_path, flush_logs_every_n_steps=0)


def test_other_ranks_write_nothing_and_choose_no_version(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger = CSVLogger(tmp_path)
    assert (logger.version, logger.log_dir) == (None, None)
    assert CSVLogger(tmp_path, version=3).log_dir == str(tmp_path / "lightning_logs" / "version_3")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1})
    logger.save()
    logger.finalize("success")
    assert isinstance(logger.experiment, SilentExperiment)
    assert logger.experiment.add_image("x", 1) is None
    assert os.listdir(tmp_path) == []


def test_a_subclass_of_logger_must_say_how_it_logs():
    with pytest.raises(TypeError, match="abstract"):
        Logger()


def test_the_base_logger_saves_when_it_is_finalized():
    saved = []

    class Memory(Logger):
        name, version = "memory", 0

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params):
            pass

        def save(self):
            saved.append("saved")

    logger = Memory()
    logger.finalize("success")
    assert saved == ["saved"]
    assert (logger.save_dir, logger.log_dir, logger.experiment) == (None, None, None)


def test_a_cut_run_goes_on_in_its_file_without_what_came_after_the_checkpoint(tmp_path):
    first = CSVLogger(tmp_path, name="run")
    first.log_metrics({"loss": 3.0}, step=0)
    first.log_metrics({"loss": 2.0}, step=1)
    state = first.state_dict()
    assert (tmp_path / "run/version_0/metrics.csv").read_text() == "loss,step\n3.0,0\n2.0,1\n"
    assert state == {"logger": "CSVLogger", "root_dir": str(tmp_path / "run"), "version": 0, "rows": 2}
    first.log_metrics({"acc": 0.5}, step=1)
    first.log_metrics({"loss": 1.0}, step=2)
    first.save()

    second = CSVLogger(tmp_path, name="run")
    assert second.version == 1
    second.load_state_dict(state)
    assert second.version == 0
    second.log_metrics({"acc": 0.75}, step=1)
    second.finalize("success")
    assert (tmp_path / "run/version_0/metrics.csv").read_text() == "acc,loss,step\n,3.0,0\n,2.0,1\n0.75,,1\n"
    assert not (tmp_path / "run/version_1").exists()


def test_another_folder_or_version_is_another_log(tmp_path):
    first = CSVLogger(tmp_path, name="run")
    first.log_metrics({"loss": 3.0}, step=0)
    state = first.state_dict()
    elsewhere, asked_for = CSVLogger(tmp_path, name="other"), CSVLogger(tmp_path, name="run", version=7)
    elsewhere.load_state_dict(state)
    asked_for.load_state_dict(state)
    assert (elsewhere.version, asked_for.version) == (0, 7)


def test_rows_that_are_gone_meanwhile_are_told(tmp_path):
    first = CSVLogger(tmp_path, name="run")
    first.log_metrics({"loss": 3.0}, step=0)
    first.log_metrics({"loss": 2.0}, step=1)
    state = first.state_dict()
    (tmp_path / "run/version_0/metrics.csv").write_text("loss,step\n3.0,0\n")
    with pytest.warns(UserWarning, match="had 2 rows when the checkpoint was made, now 1"):
        CSVLogger(tmp_path, name="run").load_state_dict(state)
