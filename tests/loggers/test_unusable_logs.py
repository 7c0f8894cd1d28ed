"""A log that cannot be used keeps no run from training: a warning, and it goes on elsewhere, or not at all."""

import csv
import os
import shutil

import line_model
import numpy
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from espnet3_lite import Callback, Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.loggers import CSVLogger, TensorBoardLogger

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:Checkpoint directory")


class Line(line_model.Line):
    def training_step(self, batch, batch_idx):
        self.log("loss_seen", float(self.trainer.global_step))
        return self.layer(batch).sum()


def fit(folder, *callbacks, logger=None, **settings):
    arguments = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), logger=logger, **{**arguments, **settings})
    trainer.fit(Line(), DataLoader(torch.ones(3, 1)))
    return trainer


def steps(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def half_trained(folder):
    """A run with a log in ``version_0`` and a state to go on from."""
    fit(folder, ModelCheckpoint(folder / "states", save_top_k=0, save_last=True), max_epochs=1)
    assert steps(folder / "lightning_logs/version_0/metrics.csv") == [0, 1, 2]
    return folder / "lightning_logs/version_0/metrics.csv"


def go_on(folder):
    return fit(folder, ModelCheckpoint(folder / "states", save_top_k=0, save_last=True), auto_resume=True)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"\x00\xff\xfe" * 50),
        lambda path: path.write_text("name,age\nx,1\ny,2\nz,3\n"),
        lambda path: path.write_text("loss_seen,step\n1,2,3,4\n1\n"),
        a_folder,
    ],
    ids=["binary", "foreign columns", "ragged", "a folder"],
)
def test_a_log_that_cannot_be_gone_on_with_is_left_for_a_new_version(tmp_path, spoil):
    spoil(half_trained(tmp_path))
    with pytest.warns(UserWarning, match=r"version_0 cannot be continued: .* The log goes on in a new version"):
        trainer = go_on(tmp_path)
    assert trainer.state.finished and trainer.global_step == 6
    assert steps(tmp_path / "lightning_logs/version_1/metrics.csv") == [3, 4, 5]


def test_a_file_where_the_logs_should_be(tmp_path):
    (tmp_path / "lightning_logs").write_text("a note")
    with pytest.warns(UserWarning, match="lightning_logs is a file; the log goes to .*lightning_logs-1"):
        trainer = fit(tmp_path)
    assert trainer.global_step == 6
    assert steps(tmp_path / "lightning_logs-1/version_0/metrics.csv") == list(range(6))
    assert (tmp_path / "lightning_logs").read_text() == "a note"
    assert os.listdir(tmp_path / "lightning_logs-1/version_0/checkpoints") == ["epoch=1-step=6.ckpt"]


class After(Callback):
    """Does something after the first epoch."""

    def __init__(self, action):
        self.action = action

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.logger.save()
            self.action()


def test_the_folder_vanishes_in_the_run(tmp_path):
    log = tmp_path / "run/version_0"
    fit(tmp_path, After(lambda: shutil.rmtree(log)), logger=CSVLogger(tmp_path, "run"), enable_checkpointing=False)
    assert steps(log / "metrics.csv") == [3, 4, 5]


def test_the_file_becomes_a_folder_in_the_run(tmp_path):
    log = tmp_path / "run/version_0/metrics.csv"
    logger = CSVLogger(tmp_path, "run")
    with pytest.warns(UserWarning, match=r"version_0: the log cannot be written: IsADirectoryError.* in .*version_1"):
        fit(tmp_path, After(lambda: a_folder(log)), logger=logger, enable_checkpointing=False)
    assert steps(tmp_path / "run/version_1/metrics.csv") == [3, 4, 5]


def test_nothing_can_be_written_anywhere(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written either: .*This run writes no metrics.csv"):
        trainer = fit(tmp_path, logger=CSVLogger(tmp_path / "file", None), enable_checkpointing=False)
    assert trainer.state.finished and trainer.global_step == 6


def test_a_full_disk_keeps_rows_until_it_takes_them_again(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path, "run")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(csv.DictWriter, "writerows", full)
        logger.log_metrics({"a": 2.0}, step=1)
        with pytest.warns(UserWarning, match="No space left on device.*Rows are kept, and tried again at each save"):
            logger.save()
        logger.log_metrics({"a": 3.0}, step=2)
        logger.save()
    logger.finalize("success")
    assert steps(tmp_path / "run/version_0/metrics.csv") == [0, 1, 2]


@pytest.mark.parametrize("spoil", [lambda root: root.write_text("a note"), lambda root: None])
def test_tensorboard(tmp_path, spoil):
    pytest.importorskip("tensorboard")
    spoil(tmp_path / "run")
    logger = TensorBoardLogger(tmp_path / "run" if (tmp_path / "run").exists() else tmp_path / "other", None)
    (tmp_path / "other").exists() or (tmp_path / "other").write_text("a note")
    with pytest.warns(UserWarning, match="TensorBoardLogger: .* cannot be used: .*Training goes on, and is not logged"):
        trainer = fit(tmp_path, logger=logger, enable_checkpointing=False)
    assert trainer.global_step == 6


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_folder_goes_on_in_its_own_version(tmp_path, how):
    half_trained(tmp_path / "one")
    (shutil.move if how == "moved" else shutil.copytree)(tmp_path / "one", tmp_path / "two")
    trainer = go_on(tmp_path / "two")
    assert trainer.global_step == 6
    assert os.listdir(tmp_path / "two/lightning_logs") == ["version_0"]
    assert steps(tmp_path / "two/lightning_logs/version_0/metrics.csv") == list(range(6))
    if how == "copied":
        assert steps(tmp_path / "one/lightning_logs/version_0/metrics.csv") == [0, 1, 2]


def test_numpys_numbers_stay_numbers_in_hparams(tmp_path):
    logger = CSVLogger(tmp_path, "run")
    logger.log_hyperparams({"lr": numpy.float32(0.5), "n": numpy.int64(3), "on": numpy.bool_(True), "x": numpy.array(2),
                            "many": (numpy.int8(1), [numpy.float64(2.5)])})  # fmt: skip
    read = yaml.safe_load((tmp_path / "run/version_0/hparams.yaml").read_text())
    assert read == {"lr": 0.5, "n": 3, "on": True, "x": 2, "many": [1, [2.5]]}


def test_home_in_the_folder_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CSVLogger("~/logs").log_dir == str(tmp_path / "logs/lightning_logs/version_0")
