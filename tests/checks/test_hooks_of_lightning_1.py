"""What Lightning 1 called and nobody calls any more is an error that says what to write."""

import pytest
import torch
from line_model import Line
from quiet import QUIET

from espnet3_lite import MisconfigurationException, Trainer

QUIET = {**QUIET, "max_epochs": 1}


def module_with(name, function):
    return type("Line", (Line,), {name: function})()


CASES = {
    "training_epoch_end": (lambda self, outputs: None, r"write `on_train_epoch_end\(self\)`, which gets no outputs"),
    "validation_epoch_end": (lambda self, outputs: None, r"write `on_validation_epoch_end\(self\)`, which gets no"),
    "test_epoch_end": (lambda self, outputs: None, r"write `on_test_epoch_end\(self\)`"),
    "training_step": (
        lambda self, batch, batch_idx, optimizer_idx: None,
        r"Write `def training_step\(self, batch, batch_idx\)`; `optimizer_idx` was Lightning 1's: with.*`self.autom",
    ),
    "optimizer_step": (
        lambda self, epoch, batch_idx, optimizer, optimizer_idx=0, optimizer_closure=None: None,
        r"Write `def optimizer_step\(self, epoch, batch_idx, optimizer, optimizer_closure\)`; `optimizer_idx` was",
    ),
    "lr_scheduler_step": (lambda self, scheduler, optimizer_idx, metric: None, r"`def lr_scheduler_step\(self, sch"),
}
#: Which Lightning 2 lets pass: a program may call methods of these names itself.
UNCALLED = {
    "validation_step_end": (lambda self, outputs: None, "write the end of `validation_step`"),
    "on_epoch_end": (lambda self: None, "write `on_train_epoch_end` or `on_validation_epoch_end`"),
    "get_progress_bar_dict": (lambda self: {}, "prog_bar=True"),
}


@pytest.mark.parametrize("method", CASES)
def test_lightning_1_is_an_error_before_anything_runs(method):
    function, message = CASES[method]
    with pytest.raises(MisconfigurationException, match=message):
        Trainer(**QUIET).fit(module_with(method, function), [torch.ones(1, 1)])


@pytest.mark.parametrize("method", UNCALLED)
def test_what_lightning_2_does_not_call_is_told(method):
    function, message = UNCALLED[method]
    module = module_with(method, function)
    with pytest.warns(UserWarning, match=message):
        Trainer(**QUIET).fit(module, [torch.ones(1, 1)])
    assert module._trainer.global_step == 1


def test_all_of_them_are_named_at_once():
    module = module_with("training_epoch_end", lambda self, outputs: None)
    type(module).validation_epoch_end = lambda self, outputs: None
    with pytest.raises(MisconfigurationException, match="training_epoch_end.*validation_epoch_end"):
        Trainer(**QUIET).validate(module, [torch.ones(1, 1)])


def test_a_step_that_is_none_on_the_instance_is_no_step():
    module = module_with("on_epoch_end", None)
    module.validation_step = None
    Trainer(**QUIET).fit(module, [torch.ones(1, 1)])
    assert module._trainer.global_step == 1
