"""Callbacks of Lightning's own classes: taken where all their hooks exist here, refused with our name otherwise."""

import line_model
import pytest
import torch
from quiet import QUIET

from espnet3_lite import MisconfigurationException, Trainer
from espnet3_lite.exceptions import is_lightnings

QUIET = {**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0}


def lightnings(name, *bases, **methods):
    """A class as Lightning would define it (which is not installed here)."""
    return type(name, bases, {"__module__": "lightning.pytorch.callbacks.some_file", **methods})


def nothing(self, *args):
    """A hook that does nothing."""


#: The hooks of Lightning's base class that matter here, one of them of Lightning 1.
HOOKS = ("setup", "teardown", "on_fit_start", "on_train_epoch_end", "on_validation_end", "on_batch_end")
Base = lightnings(
    "Callback", **dict.fromkeys(HOOKS, nothing), state_dict=lambda self: {}, load_state_dict=nothing,
    state_key=property(lambda self: type(self).__qualname__),
)  # fmt: skip
EarlyStopping = lightnings("EarlyStopping", Base, on_train_epoch_end=lambda self, trainer, pl_module: None)


class Line(line_model.Line):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 2.0)


class Pruned(Exception):
    pass


class Pruning(Base):
    """In the manner of Optuna's: reports after each validation, and prunes by an exception."""

    def __init__(self, prune):
        self.prune, self.calls = prune, []

    def on_fit_start(self, trainer, pl_module):
        self.calls.append(("on_fit_start", trainer._accelerator_connector.is_distributed))

    def on_validation_end(self, trainer, pl_module):
        self.calls.append(("on_validation_end", trainer.callback_metrics["val_loss"].item(), pl_module.current_epoch))
        if self.prune:
            raise Pruned


def test_one_whose_hooks_exist_here_is_taken_as_it_is():
    callback = Pruning(prune=False)
    trainer = Trainer(callbacks=[callback], **{**QUIET, "max_epochs": 2})
    trainer.fit(Line(), [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert callback.calls == [("on_fit_start", False), ("on_validation_end", 2.0, 0), ("on_validation_end", 2.0, 1)]
    assert trainer.callbacks == [callback]


def test_what_it_raises_ends_the_fit():
    with pytest.raises(Pruned):
        Trainer(callbacks=Pruning(prune=True), **QUIET).fit(Line(), [torch.ones(1, 1)], [torch.ones(1, 1)])


def test_its_state_is_kept_in_checkpoints(tmp_path):
    class Counting(Base):
        def __init__(self):
            self.count = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    trainer = Trainer(callbacks=Counting(), **QUIET)
    trainer.fit(Line(), [torch.ones(1, 1)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Counting()
    Trainer(callbacks=again, **{**QUIET, "max_epochs": 3}).fit(
        Line(), [torch.ones(1, 1)], ckpt_path=tmp_path / "a.ckpt"
    )
    assert again.count == 3


def test_one_that_we_have_is_refused_with_our_name():
    with pytest.raises(TypeError, match="EarlyStopping is Lightning's own.*`espnet3_lite.callbacks.EarlyStopping`"):
        Trainer(callbacks=[EarlyStopping()], **QUIET)

    class Mine(EarlyStopping):
        pass

    with pytest.raises(TypeError, match="EarlyStopping, which Mine is derived from, is Lightning's own callback"):
        Trainer(callbacks=[Mine()], **QUIET)


def test_a_hook_that_nobody_calls_here_is_refused():
    class Old(Base):
        def on_batch_end(self, trainer, pl_module):
            pass

    with pytest.raises(TypeError, match=r"callback Old: its hooks \['on_batch_end'\] are Lightning's"):
        Trainer(callbacks=[Old()], **QUIET)


def test_other_objects_and_classes_are_refused():
    with pytest.raises(TypeError, match="callbacks must be instances of Callback, got 3"):
        Trainer(callbacks=[3], **QUIET)
    with pytest.raises(TypeError, match="add the parentheses"):
        Trainer(callbacks=[Pruning], **QUIET)


def test_lightnings_module_and_data_module():
    Module = type("LightningModule", (torch.nn.Module,), {"__module__": "lightning.pytorch.core.module"})

    class Theirs(Module):
        pass

    with pytest.raises(TypeError, match="`model` must be a `LiteModule`, got `.*Theirs`; it is derived from Lightning's"
                                        ".*`LightningModule` from `espnet3_lite.compat`"):  # fmt: skip
        Trainer(**QUIET).fit(Theirs(), [torch.ones(1, 1)])
    Data = type("LightningDataModule", (), {"__module__": "pytorch_lightning.core.datamodule"})
    with pytest.raises(TypeError, match="`datamodule` must be a `LiteDataModule`.*`LightningDataModule` from"):
        Trainer(**QUIET).fit(Line(), datamodule=Data())


def test_whose_class_it_is():
    assert is_lightnings(Base) and not is_lightnings(Line) and not is_lightnings(MisconfigurationException)
