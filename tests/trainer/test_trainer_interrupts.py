"""Ctrl-C and exceptions: the run ends in order, callbacks hear of it, the process exits."""

import os
import signal
import sys

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, StopTrainingError
from espnet3_lite.callbacks import ModelCheckpoint


class Line(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class At(Callback):
    """Does something at the start of batch 2; notes the calls that matter."""

    def __init__(self, action, hook="on_train_batch_start"):
        self.calls = []

        def act(trainer, pl_module, *arguments):
            if hook != "on_train_batch_start" or arguments[-1] == 2:
                action()

        setattr(self, hook, act)

    def on_exception(self, trainer, pl_module, exception):
        self.calls.append(("on_exception", type(exception)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.calls.append(batch_idx)

    def on_train_end(self, trainer, pl_module):
        self.calls.append("on_train_end")

    def on_fit_end(self, trainer, pl_module):
        self.calls.append("on_fit_end")

    def teardown(self, trainer, pl_module, stage):
        self.calls.append("teardown")


def trainer_with(tmp_path, callback):
    return quiet_trainer(max_epochs=2, callbacks=[callback], default_root_dir=tmp_path, num_sanity_val_steps=0)


def loader():
    return DataLoader(torch.ones(8, 2), batch_size=2)


def raise_(error):
    def action():
        raise error

    return action


def test_keyboard_interrupt_raised_in_a_hook(tmp_path):
    callback = At(raise_(KeyboardInterrupt()))
    trainer = trainer_with(tmp_path, callback)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Line(), loader())
    assert ended.value.code == 130
    assert callback.calls == [0, 1, ("on_exception", KeyboardInterrupt)]
    assert trainer.interrupted and trainer.state.status == "interrupted" and not trainer.training
    assert trainer.global_step == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_at_the_batch_boundary(tmp_path, number):
    callback = At(lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    trainer = trainer_with(tmp_path, callback)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Line(), loader())
    assert ended.value.code == 128 + number
    assert callback.calls[:3] == [0, 1, 2]
    assert [call for call in callback.calls if isinstance(call, str)] == ["on_train_end", "on_fit_end", "teardown"]
    assert trainer.interrupted and trainer.global_step == 3
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("saves", [True, False])
def test_a_fit_that_was_cut_says_how_it_goes_on(tmp_path, caplog, saves):
    callback = At(lambda: os.kill(os.getpid(), signal.SIGINT))
    saver = [ModelCheckpoint(tmp_path, save_last=True)] if saves else []
    settings = {"max_epochs": 2, "default_root_dir": tmp_path, "enable_checkpointing": saves}
    trainer = quiet_trainer(callbacks=[callback, *saver], **settings)
    with pytest.raises(SystemExit):
        trainer.fit(Line(), loader())
    (said,) = [record.getMessage() for record in caplog.records if "cut by a signal" in record.getMessage()]
    if not saves:
        assert said == "The run was cut by a signal; no state was saved that it could go on from"
        return
    path = tmp_path / "last.ckpt"
    assert f"fit(..., ckpt_path={str(path)!r}) goes on" in said
    resumed = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    resumed.fit(Line(), loader(), ckpt_path=path)
    assert torch.load(path, weights_only=True)["global_step"] == 3 < resumed.global_step


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    callback = At(twice)
    with pytest.raises(SystemExit) as ended:
        trainer_with(tmp_path, callback).fit(Line(), loader())
    assert ended.value.code == 130
    assert callback.calls == [0, 1, ("on_exception", KeyboardInterrupt)]


@pytest.mark.parametrize("hook", ["on_train_start", "on_validation_start", "on_validation_end", "on_train_epoch_end"])
def test_an_exception_is_told_and_raised_again(tmp_path, hook):
    callback = At(raise_(ValueError("boom")), hook)
    trainer = trainer_with(tmp_path, callback)
    module = Line()
    with pytest.raises(ValueError, match="boom"):
        trainer.fit(module, loader(), loader())
    assert callback.calls[-1] == ("on_exception", ValueError)
    assert trainer.interrupted and not trainer.validating


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_end", "on_before_backward"])
def test_trainer_and_module_can_be_used_after_an_exception(tmp_path, hook):
    class Fails(Callback):
        failed = False

    def fail(self, trainer, pl_module, *arguments):
        if not self.failed:
            self.failed = True
            raise ValueError("boom")

    setattr(Fails, hook, fail)
    trainer, module = trainer_with(tmp_path, Fails()), Line()
    with pytest.raises(ValueError, match="boom"):
        trainer.fit(module, loader(), loader())
    assert module.training
    done = trainer.global_step
    trainer.fit(module, loader(), loader())
    assert trainer.state.finished and trainer.global_step == done + 4 * trainer.max_epochs
    assert module.training and trainer.metrics.active is trainer.metrics.training


class Evaluated(Line):
    """Gets a signal in its third batch."""

    def __init__(self, number):
        super().__init__()
        self.number, self.batches = number, 0

    def validation_step(self, batch, batch_idx):
        self.batches += 1
        if batch_idx == 2:
            os.kill(os.getpid(), self.number)

    test_step = predict_step = validation_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_outside_a_fit_a_signal_ends_the_call_at_once(tmp_path, call, number):
    callback, module = At(lambda: None), Evaluated(number)
    before = signal.getsignal(number)
    trainer = trainer_with(tmp_path, callback)
    with pytest.raises(SystemExit) as ended:
        getattr(trainer, call)(module, DataLoader(torch.ones(9, 2)))
    assert ended.value.code == 128 + number
    assert module.batches == 3
    assert trainer.interrupted and callback.calls == [("on_exception", KeyboardInterrupt)]
    assert module.training and signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_off_a_fits_validation(tmp_path, number):
    callback, module = At(lambda: None), Evaluated(number)
    trainer = trainer_with(tmp_path, callback)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(module, loader(), DataLoader(torch.ones(9, 2)))
    assert ended.value.code == 128 + number
    assert module.batches == 3 and module.training
    assert callback.calls == [0, 1, 2, 3, "on_train_end", "on_fit_end", "teardown"]
    assert trainer.interrupted and trainer.stopped_by_signal and trainer.fit_loop.stage == "validation due"


def test_stop_training_error_ends_the_run_in_order(tmp_path):
    callback = At(raise_(StopTrainingError("enough")))
    trainer = trainer_with(tmp_path, callback)
    trainer.fit(Line(), loader())
    assert callback.calls == [0, 1, "on_train_end", "on_fit_end", "teardown"]
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)  # fmt: skip
def test_a_notebook_lives_on_after_an_interrupt(tmp_path, monkeypatch, number, kind):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)  # as in IPython's kernels and at a Python prompt
    numbers = [number]
    trainer = trainer_with(tmp_path, At(lambda: numbers and os.kill(os.getpid(), numbers.pop())))
    with pytest.raises(kind):
        trainer.fit(Line(), loader())
    assert trainer.interrupted and trainer.global_step == 3
    trainer.fit(Line(), loader())
    assert trainer.current_epoch == 2 and not trainer.interrupted


def test_a_notebook_lives_on_after_a_second_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    trainer = trainer_with(tmp_path, At(raise_(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Line(), loader())
    assert trainer.interrupted
