"""The one table of hooks agrees with the classes on which users define them, and with what `log` does."""

import pytest

from espnet3_lite import Callback, LiteDataModule, LiteModule
from espnet3_lite.callbacks.base import HOOKS as CALLBACK_HOOKS
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.trainer.hook_table import EVENTS, HOOKS, LOG_DEFAULTS

#: What users define on a module or data module and no hook is: loaders, and what is asked for, not called.
ASKED = {"train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader", "restore_named_optimizers"}


def defined(*classes):
    return {name for kind in classes for name, value in vars(kind).items() if callable(value) and name[0] != "_"}


def test_every_event_is_a_method_of_callback_and_every_hook_method_an_event():
    methods = defined(Callback) - {"state_dict", "load_state_dict", "log", "log_dict"}
    assert methods == set(EVENTS)
    assert CALLBACK_HOOKS == EVENTS and EVENTS[0] == "setup" and EVENTS[-1] == "on_load_checkpoint"


def test_every_hook_of_a_module_is_in_the_table_and_the_other_way_round():
    methods = defined(*(kind for kind in ModuleHooks.__mro__ if kind.__module__.startswith("espnet3_lite"))) - ASKED
    steps = {"training_step", "validation_step", "test_step", "predict_step"}
    of_module = {name for name, hook in HOOKS.items() if "module" in hook.owners}
    assert of_module - methods == steps | {
        "on_sanity_check_start", "on_sanity_check_end", "on_stop_training_error",  # which a module may define
    }  # fmt: skip
    assert methods - of_module == {"on_save_checkpoint", "on_load_checkpoint"}  # called with the checkpoint alone
    assert steps <= set(dir(LiteModule))


def test_every_hook_of_a_data_module_is_one():
    of_data = {name for name, hook in HOOKS.items() if "datamodule" in hook.owners}
    assert of_data == {
        "prepare_data", "setup", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
        "teardown", "on_exception",
    }  # fmt: skip
    assert of_data <= set(dir(LiteDataModule))


@pytest.mark.parametrize(
    ("hook", "defaults"),
    [
        ("training_step", (True, False, True)),
        ("on_train_batch_end", (True, False, True)),
        ("configure_gradient_clipping", (True, False, True)),
        ("validation_step", (False, True, True)),
        ("on_test_batch_start", (False, True, True)),
        ("on_train_epoch_end", (False, True, False)),
        ("on_validation_start", (False, True, False)),
    ],
)
def test_the_defaults_of_log_are_lightnings(hook, defaults):
    assert tuple(LOG_DEFAULTS[hook]) == defaults


@pytest.mark.parametrize(
    "hook", ["setup", "on_fit_start", "on_validation_end", "predict_step", "on_train_end", "teardown"]
)
def test_where_nothing_can_be_logged_there_are_no_defaults(hook):
    assert hook in HOOKS and hook not in LOG_DEFAULTS


def test_who_comes_last_and_what_waits():
    assert {name: hook.last for name, hook in HOOKS.items() if hook.last} == {
        "on_train_batch_end": ("saving",),
        "on_train_epoch_end": ("saving", "monitoring"),
    }
    assert [name for name, hook in HOOKS.items() if hook.waits] == [
        "on_train_batch_end", "on_validation_end", "on_train_epoch_end",
    ]  # fmt: skip
