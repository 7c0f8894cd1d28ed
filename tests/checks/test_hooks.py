"""Hooks that users define with arguments that do not fit are refused before anything runs, with how to write them."""

import inspect
import re

import pytest
import torch
from quiet import QUIET
from weights_parts import Net, loader, trainer_of

from espnet3_lite import Callback, LiteDataModule, MisconfigurationException, Trainer
from espnet3_lite.accelerated.trainer_callback import TrainerCallback
from espnet3_lite.callbacks import LambdaCallback


def refused(call, owner, written, wanted, how):
    called = "without arguments" if wanted == "()" else f"with {wanted}"
    message = f"{owner}.{written} does not fit: the trainer calls it {called}. Write `def {how}`"
    with pytest.raises(MisconfigurationException, match="^" + re.escape(message) + "$"):
        call()


class Untouched(Callback):
    def setup(self, trainer, pl_module, stage):
        raise AssertionError("something ran")


WRONG_IN_A_MODULE = [
    ("training_step", lambda self, batch, batch_idx, extra: None, "(batch, batch_idx)"),
    ("training_step", lambda batch, batch_idx: None, "(batch, batch_idx)"),
    ("training_step", lambda self, *, batch, rate: None, "(batch, batch_idx)"),
    ("validation_step", lambda self: None, "(batch, batch_idx)"),
    ("test_step", lambda self, a, b, c, d: None, "(batch, batch_idx)"),
    ("on_train_epoch_end", lambda self, outputs: None, "()"),
    ("on_train_epoch_end", lambda: None, "()"),
    ("on_train_batch_end", lambda self, batch, batch_idx: None, "(outputs, batch, batch_idx)"),
    ("on_validation_batch_end", lambda self, batch, batch_idx: None, "(outputs, batch, batch_idx)"),
    ("configure_gradient_clipping", lambda self, optimizer: None,
     "(optimizer, gradient_clip_val, gradient_clip_algorithm)"),
    ("configure_optimizers", lambda self, rate: None, "()"),
    ("setup", lambda self: None, "(stage)"),
    ("on_after_batch_transfer", lambda self, batch: batch, "(batch, dataloader_idx)"),
    ("train_dataloader", lambda: None, "()"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "function", "wanted"), WRONG_IN_A_MODULE)
def test_a_module(name, function, wanted):
    Module = type("Module", (Net,), {name: function})
    how = f"{name}(self{', ' * (wanted != '()')}{wanted[1:-1]})"
    call = lambda: trainer_of(Untouched(), max_epochs=1).fit(Module(), loader())  # noqa: E731
    refused(call, "Module", f"{name}{inspect.signature(function)}", wanted, how)


def test_all_of_them_in_one_message():
    wrong = {"training_step": lambda self: None, "on_fit_start": lambda self, trainer: None}
    with pytest.raises(MisconfigurationException, match=r"(?s)on_fit_start\(self, trainer\).*training_step\(self\)"):
        trainer_of(max_epochs=1).fit(type("Module", (Net,), wrong)(), loader())


def test_a_data_module():
    class Data(LiteDataModule):
        def setup(self):
            """Without the stage."""

        def train_dataloader(self):
            return loader()

    refused(lambda: trainer_of().fit(Net(), datamodule=Data()), "Data", "setup(self)", "(stage)", "setup(self, stage)")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_befor_batch_transfer", "on_before_batch_transfer"), ("train_dataloaders", "train_dataloader"),
        ("prepare_date", "prepare_data"), ("set_up", "setup"), ("tear_down", "teardown"),
        ("transfer_batch_to_devise", "transfer_batch_to_device"),
    ],
)  # fmt: skip
def test_misspelt_hooks_of_a_data_module_are_told(name, meant):
    Data = type("Data", (LiteDataModule,), {name: lambda self, *_: None, "val_dataloader": lambda self: loader()})
    with pytest.warns(UserWarning, match=f"^Data.{name} is not a hook that the trainer calls; did you mean '{meant}'"):
        trainer_of().validate(Net(), datamodule=Data(), verbose=False)


@pytest.mark.parametrize("name", ["prepare_batch", "setup_vocabulary", "configure_tokens", "on_my_own_event"])
def test_methods_of_ones_own_are_not_told(name, recwarn):
    Data = type("Data", (LiteDataModule,), {name: lambda self, *_: None, "val_dataloader": lambda self: loader()})
    trainer_of().validate(Net(), datamodule=Data(), verbose=False)
    assert [str(one.message) for one in recwarn if "not a hook" in str(one.message)] == []


@pytest.mark.parametrize(
    ("name", "function", "written", "wanted"),
    [
        ("on_train_epoch_end", lambda self: None, "(self)", "trainer, pl_module"),
        ("on_fit_start", lambda self, trainer: None, "(self, trainer)", "trainer, pl_module"),
        ("setup", lambda self, trainer, module: None, "(self, trainer, module)", "trainer, pl_module, stage"),
        ("on_train_batch_end", lambda trainer, module, outputs, batch, idx: None,
         "(trainer, module, outputs, batch, idx)", "trainer, pl_module, outputs, batch, batch_idx"),
        ("on_save_checkpoint", lambda self, trainer, module: None, "(self, trainer, module)",
         "trainer, pl_module, checkpoint"),
    ],
)  # fmt: skip
def test_a_callback(name, function, written, wanted):
    Mine = type("Mine", (Callback,), {name: function})
    call = lambda: Trainer(callbacks=[Mine()], **QUIET)  # noqa: E731
    refused(call, "Mine", f"{name}{written}", f"({wanted})", f"{name}(self, {wanted})")


def test_a_function_of_a_lambda_callback():
    call = lambda: Trainer(callbacks=[LambdaCallback(on_fit_start=lambda trainer: None)], **QUIET)  # noqa: E731
    wanted = "(trainer, pl_module)"
    refused(call, "LambdaCallback", "on_fit_start(trainer)", wanted, f"on_fit_start{wanted}")


def test_every_way_that_fits_is_taken():
    seen = []

    class Module(Net):
        def training_step(self, batch, *, batch_idx):
            seen.append("step")
            return super().training_step(batch, batch_idx)

        def on_validation_batch_end(self, *args, **kwargs):
            seen.append(len(args))

        def on_train_batch_end(self, outputs, batch, batch_idx, more=0):
            seen.append("end")

        setup = None

    class Mine(Callback):
        def on_train_epoch_end(self, *args):
            seen.append(len(args))

        @staticmethod
        def on_fit_end(trainer, pl_module):
            seen.append("fit end")

    class Accelerated(TrainerCallback):
        def on_train_epoch_end(self, trainer, **kwargs):
            seen.append("accelerated")

        def on_train_step_end(self, trainer, batch, batch_output, **kwargs):
            seen.append("step end")

    module = Module()
    module.setup = lambda stage: seen.append(stage)
    trainer = Trainer(max_epochs=1, limit_train_batches=1, callbacks=[Mine(), Accelerated()], **QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(loader().dataset, batch_size=4))
    assert seen == ["fit", "step", "step end", "end", 2, "accelerated", "fit end"]
