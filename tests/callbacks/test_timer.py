"""`Timer`, with a clock that the test sets."""

import warnings
from datetime import timedelta

import pytest
import torch
from line_model import Line
from torch.utils.data import DataLoader

from espnet3_lite import Callback, Trainer
from espnet3_lite.callbacks import ModelCheckpoint, Timer
from espnet3_lite.exceptions import MisconfigurationException


@pytest.fixture
def clock(monkeypatch):
    """A list with the time in it, in seconds."""
    now = [100.0]
    monkeypatch.setattr("espnet3_lite.callbacks.timer.time.monotonic", lambda: now[0])
    return now


class Tick(Callback):
    """A training batch takes ten seconds, one of any evaluation three."""

    def __init__(self, now):
        self.now = now

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now[0] += 10

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.now[0] += 3

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


def fit(clock, *callbacks, ckpt_path=None, **settings):
    """At most five epochs of four batches, no validation; returns the trainer."""
    defaults = {"max_epochs": 5, "limit_val_batches": 0}
    trainer = Trainer(
        callbacks=[Tick(clock), *callbacks], logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{**defaults, **settings},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Line(), DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(2, 1)), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("duration", ["00:00:00:45", timedelta(seconds=45), {"seconds": 45}])
@pytest.mark.parametrize("interval", ["step", "batch"])
def test_training_stops_after_the_batch_in_which_the_time_runs_out(clock, tmp_path, duration, interval, caplog):
    caplog.set_level("INFO")
    trainer = fit(clock, Timer(duration, interval=interval), ModelCheckpoint(tmp_path))
    assert (trainer.global_step, trainer.current_epoch) == (5, 2)
    assert "Time limit reached. Elapsed time is 0:00:50. Signaling Trainer to stop." in caplog.text
    assert caplog.text.count("Time limit reached") == 1


def test_or_after_the_epoch(clock, tmp_path):
    assert fit(clock, Timer("00:00:00:45", interval="epoch"), ModelCheckpoint(tmp_path)).global_step == 8


def test_max_time_is_a_timer(clock, tmp_path):
    trainer = fit(clock, ModelCheckpoint(tmp_path), max_time={"seconds": 20})
    assert trainer.global_step == 2
    assert [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, Timer)] == ["Timer"]


def test_the_minimum_comes_first(clock, tmp_path):
    assert fit(clock, Timer("00:00:00:20"), ModelCheckpoint(tmp_path), min_steps=7).global_step == 7


def test_each_stage_is_measured(clock, tmp_path):
    timer = Timer("00:00:10:00")
    assert (timer.start_time(), timer.end_time("validate"), timer.time_elapsed(), timer.time_remaining()) == (
        None, None, 0.0, 600.0,
    )  # fmt: skip
    trainer = fit(clock, timer, ModelCheckpoint(tmp_path), max_epochs=1, limit_val_batches=2, num_sanity_val_steps=0)
    assert (timer.time_elapsed("validate"), timer.time_elapsed("train")) == (6.0, 46.0)
    assert (timer.start_time("train"), timer.end_time("train")) == (100.0, 146.0)
    assert timer.time_remaining() == 600.0 - 46.0
    loader = DataLoader(torch.ones(3, 1))
    trainer.test(trainer.lightning_module, loader, verbose=False)
    trainer.predict(trainer.lightning_module, DataLoader(torch.ones(1, 1)))
    assert (timer.time_elapsed("test"), timer.time_elapsed("predict")) == (9.0, 3.0)
    clock[0] += 1000
    assert timer.time_elapsed("train") == 46.0
    assert Timer().time_remaining() is None


def test_time_before_a_resume_counts(clock, tmp_path):
    fit(clock, Timer("00:00:01:20"), ModelCheckpoint(tmp_path, save_last=True), max_epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]["Timer"]
    assert state == {"time_elapsed": {"train": 40.0, "sanity_check": 0.0, "validate": 0.0, "test": 0.0, "predict": 0.0}}
    clock[0] += 3600
    timer = Timer("00:00:01:20")
    trainer = fit(clock, timer, ModelCheckpoint(tmp_path, save_last=True), ckpt_path=tmp_path / "last.ckpt")
    assert (trainer.global_step, timer.time_elapsed()) == (8, 80.0)
    again = fit(clock, Timer("00:00:01:20"), ModelCheckpoint(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 8  # its time is over already


def test_without_a_limit_batches_cost_nothing():
    assert Timer()._listener("on_train_batch_end") is None
    assert Timer("00:01:00:00", interval="epoch")._listener("on_train_batch_end") is None
    assert Timer("00:01:00:00")._listener("on_train_batch_end") is not None


def test_errors():
    with pytest.raises(MisconfigurationException, match=r"Timer\(interval='steps'\).*did you mean 'step'\?"):
        Timer(interval="steps")
    with pytest.raises(MisconfigurationException, match="'12 hours' is not a duration; give 'DD:HH:MM:SS'"):
        Timer("12 hours")
    with pytest.raises(ValueError, match="'lunch' is not a valid RunningStage"):
        Timer().time_elapsed("lunch")
