"""Hooks that call a trainer: their own one refuses, another one gives the module back."""

import re

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer

from espnet3_lite import Callback, MisconfigurationException

HOOKS = ["on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end", "on_validation_end", "on_fit_end"]


class Logs(Line):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid", self.layer(batch).sum())


def batches():
    return [torch.full((2, 1), float(number)) for number in range(3)]


def calling(hook, call):
    """A callback that calls in one of its hooks."""
    return type("Calls", (Callback,), {hook: lambda self, trainer, module, *arguments: call(trainer, module)})()


def fitted(*callbacks):
    torch.manual_seed(0)
    module, trainer = Logs(), quiet_trainer(max_epochs=2, callbacks=list(callbacks), num_sanity_val_steps=0)
    trainer.fit(module, batches(), batches())
    return module, trainer


@pytest.mark.parametrize("hook", HOOKS)
def test_the_trainer_that_runs_refuses(hook):
    message = "Trainer.validate was called in a hook of this trainer's fit: use another"
    with pytest.raises(MisconfigurationException, match="^" + re.escape(message)):
        fitted(calling(hook, lambda trainer, module: trainer.validate(module, batches(), verbose=False)))


def test_a_trainer_can_be_called_again_after_an_error():
    def fail(trainer, module):
        raise RuntimeError("once")

    trainer = quiet_trainer(max_epochs=1, callbacks=[calling("on_train_batch_end", fail)])
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(Logs(), batches())
    assert len(trainer.validate(Logs(), batches(), verbose=False)) == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_another_trainer_gives_the_module_back(hook):
    results = []

    def validate(trainer, module):
        results.extend(quiet_trainer().validate(module, batches(), verbose=False))
        assert module.trainer is trainer

    expected, plain = fitted()
    module, trainer = fitted(calling(hook, validate))
    assert results and results[-1].keys() == {"valid"}
    assert torch.equal(module.layer.weight, expected.layer.weight)
    assert trainer.callback_metrics == plain.callback_metrics and trainer.global_step == plain.global_step == 6


def test_without_another_call_a_module_keeps_its_last_trainer():
    module, first = fitted()
    assert module.trainer is first
    second = quiet_trainer()
    second.validate(module, batches(), verbose=False)
    assert module.trainer is second
