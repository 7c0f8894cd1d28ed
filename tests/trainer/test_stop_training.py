"""`StopTrainingError` ends a run in order, wherever it is raised, and loses no checkpoint."""

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, StopTrainingError, Trainer
from espnet3_lite.callbacks import ModelCheckpoint

AFTER = ["on_stop_training_error", "on_train_end", "on_fit_end", "teardown"]
WATCHED = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_exception", *AFTER)


class Module(LiteModule):
    def __init__(self, raise_in=""):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.dropout = torch.nn.Dropout()
        self.raise_in = raise_in

    def training_step(self, batch, batch_idx):
        if self.raise_in == "training_step" and batch_idx == 1:
            raise StopTrainingError("enough")
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        if self.raise_in == "validation_step" and not self.trainer.sanity_checking:
            raise StopTrainingError("enough")

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Raiser(Callback):
    """Raises in one event, at its second call where there are several."""

    def __init__(self, event):
        self.count = 0

        def stop(*args):
            self.count += 1
            if self.count == 2 or "batch" not in event:
                raise StopTrainingError("enough")

        setattr(self, event, stop)


class Recorder(Callback):
    """After the raiser in the list; notes what it is still told of."""

    def __init__(self):
        self.calls = []
        for name in WATCHED:
            setattr(self, name, lambda *args, name=name: self.calls.append(name))


def run(event="", raise_in="", **settings):
    recorder = Recorder()
    callbacks = [Raiser(event), recorder] if event else [recorder]
    trainer = Trainer(max_epochs=3, callbacks=callbacks, num_sanity_val_steps=0, **{**QUIET, **settings})
    loader = DataLoader(torch.ones(3, 1))
    module = Module(raise_in)
    trainer.fit(module, loader, loader)
    assert trainer.state.finished and str(trainer.stop_error) == "enough"
    assert module.training and module.dropout.training
    return trainer, recorder.calls


BATCH, VALIDATION, EPOCH = "on_train_batch_end", "on_validation_end", "on_train_epoch_end"


@pytest.mark.parametrize(
    ("event", "before", "steps", "epoch"),
    [
        ("on_train_start", [], 0, 0),
        ("on_train_batch_start", [BATCH], 1, 0),  # the second batch is not trained on
        ("on_before_optimizer_step", [], 0, 0),
        (BATCH, [BATCH] * 2, 2, 0),  # no validation, no end of the epoch
        ("on_validation_start", [BATCH] * 3, 3, 0),
        ("on_validation_batch_end", [BATCH] * 3, 3, 0),
        (VALIDATION, [BATCH] * 3 + [VALIDATION, EPOCH], 3, 1),  # the epoch is over: it is ended
        (EPOCH, [BATCH] * 3 + [VALIDATION, EPOCH], 3, 1),
    ],
)
def test_raised_by_a_callback(event, before, steps, epoch):
    trainer, calls = run(event)
    assert calls == before + AFTER
    assert (trainer.global_step, trainer.current_epoch) == (steps, epoch)


@pytest.mark.parametrize(("method", "batches"), [("training_step", 1), ("validation_step", 3)])
def test_raised_by_the_module(method, batches):
    trainer, calls = run(raise_in=method)
    assert calls == [BATCH] * batches + AFTER
    assert trainer.global_step == batches


@pytest.mark.parametrize("event", ["on_fit_start", "on_sanity_check_start"])
def test_raised_before_training(event):
    recorder = Recorder()
    trainer = Trainer(max_epochs=1, callbacks=[Raiser(event), recorder], **QUIET)
    loader = DataLoader(torch.ones(3, 1))
    trainer.fit(Module(), loader, loader)
    assert recorder.calls == ["on_stop_training_error", "on_fit_end", "teardown"]
    assert trainer.global_step == 0 and trainer.state.finished


def test_raised_in_a_test_of_its_own():
    module, recorder = Module("validation_step"), Recorder()
    trainer = Trainer(max_epochs=1, callbacks=[recorder], **QUIET)
    assert trainer.test(module, DataLoader(torch.ones(3, 1))) == []
    assert recorder.calls == ["on_stop_training_error", "teardown"] and module.training


def test_the_epoch_s_checkpoint_is_saved(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}-{step}")
    trainer = Trainer(max_epochs=3, callbacks=[Raiser(EPOCH), saver], **{**QUIET, "enable_checkpointing": True})
    trainer.fit(Module(), DataLoader(torch.ones(3, 1)))
    assert saver.best_model_path == str(tmp_path / "epoch=0-step=3.ckpt")


def test_a_later_fit_is_not_stopped():
    trainer, _ = run(raise_in="training_step")
    trainer.fit(Module(), DataLoader(torch.ones(3, 1)))
    assert trainer.stop_error is None and trainer.current_epoch == 3


def test_min_epochs_does_not_hold_it():
    trainer, _ = run(BATCH, min_epochs=2)
    assert trainer.global_step == 2
