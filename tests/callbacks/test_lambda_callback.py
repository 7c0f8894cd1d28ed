"""`LambdaCallback`: every hook, and no other."""

import warnings

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite.callbacks import LambdaCallback
from espnet3_lite.callbacks.base import HOOKS


def test_every_hook_is_called_with_its_arguments(tmp_path):
    called = {}

    def note(name):
        return lambda *arguments: called.setdefault(name, len(arguments))

    trainer = quiet_trainer(max_epochs=1, callbacks=LambdaCallback(**{name: note(name) for name in HOOKS}))
    loader = DataLoader(torch.ones(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Line(), loader, loader)
        trainer.save_checkpoint(tmp_path / "state.ckpt")
        trainer.fit(Line(), loader, loader, ckpt_path=tmp_path / "state.ckpt")
        trainer.test(Line(), loader, verbose=False)
        trainer.predict(Line(), loader)
    not_in_such_a_run = {"on_exception", "on_stop_training_error"}
    assert set(called) == set(HOOKS) - not_in_such_a_run
    assert called["setup"] == called["on_save_checkpoint"] == called["on_before_backward"] == 3
    assert called["on_train_batch_start"] == called["on_validation_batch_start"] == 4
    assert called["on_train_batch_end"] == called["on_test_batch_end"] == 5
    assert called["on_train_start"] == called["on_fit_end"] == called["on_after_backward"] == 2


def test_an_exception_is_told():
    told = []
    callback = LambdaCallback(
        on_train_batch_start=lambda *arguments: 1 / 0,
        on_exception=lambda trainer, module, exception: told.append(type(exception)),
        on_train_end=None,
    )
    trainer = quiet_trainer(max_epochs=1, callbacks=callback)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Line(), DataLoader(torch.ones(1, 1)))
    assert told == [ZeroDivisionError]


def test_errors():
    with pytest.raises(TypeError, match="unexpected hook 'on_train_epoch_ends'; did you mean 'on_train_epoch_end'"):
        LambdaCallback(on_train_epoch_ends=print)
    with pytest.raises(TypeError, match=r"LambdaCallback\(on_fit_end='print'\): give a function"):
        LambdaCallback(on_fit_end="print")
