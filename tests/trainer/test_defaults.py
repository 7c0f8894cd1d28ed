"""What a trainer is made of: loggers and callbacks that were given, and the default ones beside them."""

import pytest
import torch
from line_model import Line
from torch.utils.data import DataLoader

from espnet3_lite import Callback, MisconfigurationException, Trainer
from espnet3_lite.callbacks import ModelSummary, TQDMProgressBar
from espnet3_lite.callbacks import Timer as OurTimer
from espnet3_lite.loggers import CSVLogger, Logger


class Memory(Logger):
    name = version = "memory"

    def __init__(self):
        self.ended = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def finalize(self, status):
        self.ended.append(status)


# ---- loggers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: [Memory(), torch.nn.ReLU()], r"logger\[1\] must be a logger, .*; got ReLU\(\) \(ReLU\)"),
        (lambda: "csw", "logger='csw' is not true or false or .*did you mean 'csv'"),
        (lambda: [Memory()] * 2, r"<.*Memory.*> is among the loggers twice: it would write each value twice"),
        (lambda: CSVLogger, "got <class .*CSVLogger'> .*; pass an instance: add the parentheses"),
    ],
)
def test_what_is_no_logger_is_refused(given, words):
    with pytest.raises(MisconfigurationException, match=words):
        Trainer(logger=given(), max_epochs=1)


def test_a_logger_that_cannot_finish_does_not_hide_what_ended_the_run():
    class Full(Memory):
        def finalize(self, status):
            raise OSError("disk full")

    class Fails(Line):
        def training_step(self, batch, batch_idx):
            raise ValueError("the run's own error")

    last = Memory()
    trainer = Trainer(logger=[Full(), last], max_epochs=1, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.warns(UserWarning, match="Full.finalize failed too: OSError: disk full"):
        with pytest.raises(ValueError, match="the run's own error"):
            trainer.fit(Fails(), DataLoader(torch.ones(2, 1)))
    assert last.ended == ["failed"]


# ---- callbacks -----------------------------------------------------------------------------------------------------


def test_only_our_own_kinds_take_the_place_of_the_default_ones():
    """A user's class may be called as one of ours."""
    own = [type(name, (Callback,), {})() for name in ("ProgressBar", "Timer", "ModelSummary", "EarlyStopping")]
    trainer = Trainer(callbacks=own, max_time="00:00:01:00", logger=False, enable_checkpointing=False)
    assert [type(callback) for callback in trainer.callbacks[4:]] == [OurTimer, TQDMProgressBar, ModelSummary]
    assert (trainer.progress_bar_callback, trainer.early_stopping_callbacks) == (trainer.callbacks[5], [])
    Trainer(callbacks=own, enable_progress_bar=False, max_epochs=1)  # no contradiction


def test_a_subclass_takes_the_place_of_the_default_one():
    mine = [type("Mine", (kind,), {}) for kind in (TQDMProgressBar, ModelSummary)]
    given = [mine[0](), mine[1](), OurTimer("00:00:01:00")]
    trainer = Trainer(callbacks=given, max_time="00:00:01:00", logger=False, enable_checkpointing=False)
    assert trainer.callbacks == given
