"""What every callback can do: log in its hooks, be used by a second trainer, be copied."""

import copy
import pickle

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LearningRateMonitor,
    MetricsLogger,
    ModelCheckpoint,
    Timer,
    TQDMProgressBar,
)
from espnet3_lite.loops import fit as fit_loop

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}


class Line(LiteModule):
    """A line through one point, whose validation loss is given epoch by epoch."""

    def __init__(self, losses=(), manual=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.backbone = torch.nn.Linear(1, 1)
        self.losses, self.automatic_optimization = list(losses), not manual

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean() + self.backbone(batch).square().mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.losses[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.1)


def fit(module, callbacks, epochs=3, **settings):
    quiet = {"logger": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    quiet["enable_progress_bar"] = any(isinstance(c, TQDMProgressBar) for c in callbacks)
    trainer = Trainer(callbacks=callbacks, max_epochs=epochs, **{**QUIET, **quiet, **settings})
    trainer.fit(module, [torch.ones(2, 1), torch.zeros(3, 1)], [torch.ones(1, 1)])
    return trainer


# ---- log -----------------------------------------------------------------------------------------------------------


def test_a_callback_logs_in_its_hooks():
    class Logging(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.log("size", len(batch), on_step=False, on_epoch=True)

        def on_validation_epoch_end(self, trainer, pl_module):
            self.log_dict({"a": 1.0, "b": 2.0}, prog_bar=True)

    trainer = fit(Line([1.0]), [Logging()], epochs=1)
    assert trainer.callback_metrics["size"] == pytest.approx((2 * 2 + 3 * 3) / 5)
    assert (trainer.callback_metrics["a"], trainer.callback_metrics["b"]) == (1.0, 2.0)
    assert trainer.progress_bar_metrics == {"a": 1.0, "b": 2.0}


def test_a_callback_that_no_trainer_called_cannot_log():
    with pytest.raises(MisconfigurationException, match=r"Callback.log\('a', ...\): no trainer has called this"):
        Callback().log("a", 1.0)


def test_where_the_module_cannot_log_a_callback_cannot():
    class Logging(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.log("a", 1.0)

    with pytest.raises(MisconfigurationException, match="`on_fit_start`: it has no step and no epoch"):
        fit(Line([1.0]), [Logging()], epochs=1)


# ---- a second trainer ----------------------------------------------------------------------------------------------


def test_early_stopping_of_one_fold_does_not_end_the_next():
    early = EarlyStopping("val_loss", patience=1)
    assert fit(Line([1.0, 2.0, 3.0, 4.0]), [early], epochs=4).current_epoch == 2
    assert fit(Line([5.0, 4.0, 3.0, 2.0]), [early], epochs=4).current_epoch == 4
    assert (early.wait_count, early.best_score) == (0, 2.0)


def test_the_same_trainer_goes_on_with_its_callbacks():
    early = EarlyStopping("val_loss", patience=2)
    trainer = fit(Line([1.0, 2.0]), [early], epochs=2)
    assert early.wait_count == 1
    trainer.max_epochs = 4
    trainer.fit(Line([1.0, 2.0, 3.0, 4.0]), [torch.ones(1, 1)], [torch.ones(1, 1)])
    assert trainer.current_epoch == 3 and early.stopped_epoch == 2


def test_checkpoints_of_each_fold_have_their_own_folder_and_best(tmp_path):
    saving = ModelCheckpoint(monitor="val_loss")
    found = []
    for fold, losses in enumerate(([1.0, 2.0], [7.0, 6.0])):
        trainer = fit(Line(losses), [saving], epochs=2, default_root_dir=tmp_path / str(fold))
        found.append((saving.best_model_path, float(saving.best_model_score)))
        assert trainer.checkpoint_callback is saving
    assert found == [
        (f"{tmp_path}/0/checkpoints/epoch=0-step=2.ckpt", 1.0), (f"{tmp_path}/1/checkpoints/epoch=1-step=4.ckpt", 6.0),
    ]  # fmt: skip


def test_a_second_trainer_that_tests_still_knows_the_best_checkpoint(tmp_path):
    saving = ModelCheckpoint(monitor="val_loss")
    fit(Line([1.0, 2.0]), [saving], epochs=2, default_root_dir=tmp_path)
    best = saving.best_model_path
    module = Line([1.0])
    Trainer(callbacks=[saving], logger=False, **QUIET).validate(module, [torch.ones(1, 1)], ckpt_path="best")
    assert module._trainer.ckpt_path == best == saving.best_model_path


def test_layers_are_frozen_in_each_fold_anew():
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0)
    for _ in range(2):
        module = Line([1.0] * 3)
        before = module.backbone.weight.clone()
        fit(module, [finetuning], epochs=1)
        assert torch.equal(module.backbone.weight, before) and not module.backbone.weight.requires_grad


def test_what_a_callback_of_ones_own_collects_stays():
    class Collecting(Callback):
        def __init__(self):
            self.epochs = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs.append(trainer.current_epoch)

    collecting = Collecting()
    for _ in range(2):
        fit(Line([1.0] * 2), [collecting], epochs=2)
    assert collecting.epochs == [0, 1, 0, 1]


# ---- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True])
def test_a_trainer_can_be_copied_before_and_after_a_fit(manual):
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **QUIET)
    twin = copy.deepcopy(trainer)
    trainer.fit(Line([1.0] * 9, manual), [torch.ones(1, 1)])
    assert (trainer.global_step, twin.global_step) == (1, 0)
    third = copy.deepcopy(trainer)
    third.max_epochs = 3
    third.fit(third.lightning_module, [torch.ones(1, 1)])
    assert (third.global_step, trainer.global_step) == (3, 1)
    assert third.lightning_module is not trainer.lightning_module
    assert third.lightning_module.trainer is third and trainer.lightning_module.trainer is trainer
    assert not torch.equal(third.lightning_module.layer.bias, trainer.lightning_module.layer.bias)
    twin.fit(Line([1.0] * 9, manual), [torch.ones(1, 1)])
    assert twin.global_step == 1


@pytest.mark.parametrize("manual", [False, True])
def test_a_module_can_be_pickled_after_a_fit(manual):
    class Keeping(Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.kept = pl_module.optimizers()

    module = Line([1.0], manual)
    fit(module, [Keeping()], epochs=1)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again.layer.weight, module.layer.weight) and again._trainer is None
    assert isinstance(again.kept, torch.optim.SGD) and again.kept.param_groups[0]["lr"] == 0.1
    assert copy.deepcopy(module).kept.param_groups[0]["lr"] == 0.1


def test_a_callback_can_be_copied_after_a_fit():
    early = EarlyStopping("val_loss", patience=5)
    fit(Line([1.0, 2.0]), [early], epochs=2)
    for twin in (copy.deepcopy(early), pickle.loads(pickle.dumps(early))):
        assert twin.wait_count == 1 and twin._trainer is None


def test_one_callback_twice_is_refused():
    callback = LearningRateMonitor()
    with pytest.raises(MisconfigurationException, match=r"LearningRateMonitor\(\) is among the callbacks twice"):
        quiet_trainer(max_epochs=1, callbacks=[callback, callback])
    quiet_trainer(max_epochs=1, callbacks=[callback, LearningRateMonitor()])


@pytest.mark.parametrize(("kind", "arguments"), [(ModelCheckpoint, {}), (Timer, {}), (Timer, {"interval": "epoch"})])
def test_a_subclass_is_called_where_its_base_has_nothing_to_do(kind, arguments, tmp_path):
    class Mine(kind):
        calls = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.calls += 1

    mine = Mine(**({"dirpath": tmp_path} if kind is ModelCheckpoint else {}), **arguments)
    fit(Line([1.0] * 3), [mine])
    assert mine.calls == 6


# ---- the list of callbacks, changed while a call runs ----------------------------------------------------------------


class Hears(Callback):
    def __init__(self):
        self.heard = []

    def setup(self, trainer, pl_module, stage):
        self.heard.append(f"setup {stage}")

    def on_train_epoch_end(self, trainer, pl_module):
        self.log("heard", 1.0)
        self.heard.append(trainer.current_epoch)


CHANGES = {
    "append": lambda callbacks, new: callbacks.append(new),
    "extend": lambda callbacks, new: callbacks.extend([new]),
    "insert": lambda callbacks, new: callbacks.insert(0, new),
    "+=": lambda callbacks, new: callbacks.__iadd__([new]),
    "slice": lambda callbacks, new: callbacks.__setitem__(slice(1, 1), [new]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_a_callback_that_joins_in_a_hook_is_set_up_and_called(hook, change):
    new = Hears()

    def joins(self, trainer, pl_module, *arguments):
        if new not in trainer.callbacks:
            change(trainer.callbacks, new)

    trainer = fit(Line([1.0] * 3), [type("Joins", (Callback,), {hook: joins})()])
    assert new.heard == ["setup fit", 0, 1, 2]
    assert trainer.callback_metrics["heard"] == 1


def test_one_that_joins_or_leaves_at_an_epochs_end_does_so_from_the_next_one_on():
    new = Hears()

    class Leaves(Callback):
        calls = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.calls += 1
            trainer.callbacks.remove(self)
            trainer.callbacks.append(new)

    leaves = Leaves()
    trainer = fit(Line([1.0] * 3), [leaves])
    assert leaves.calls == 1 and new.heard == ["setup fit", 1, 2] and leaves not in trainer.callbacks


def test_a_change_that_is_refused_changes_nothing():
    known = Hears()
    trainer = quiet_trainer(callbacks=[known])
    before = [*trainer.callbacks]
    for wrong in (known, Hears, 3):
        with pytest.raises((TypeError, MisconfigurationException)):
            trainer.callbacks.append(wrong)
        assert trainer.callbacks == before


def test_a_copied_trainer_has_a_list_of_its_own():
    trainer = quiet_trainer(callbacks=[Hears()], max_epochs=1)
    for other in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        other.callbacks.append(new := Hears())
        assert len(other.callbacks) == len(trainer.callbacks) + 1
        other.fit(Line([1.0] * 3), [torch.ones(2, 1)])
        assert new.heard == ["setup fit", 0]


# ---- a batch's outputs ---------------------------------------------------------------------------------------------


class Looks(Timer):
    """Overrides a hook that does not look at outputs, and does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen = outputs


class EndsBatches(Line):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen = outputs


@pytest.mark.parametrize("monitors", [False, True])
def test_a_batchs_outputs_are_made_for_those_alone_who_may_look_at_them(monkeypatch, tmp_path, monitors):
    made, original = [], fit_loop.outputs_of
    monkeypatch.setattr(fit_loop, "outputs_of", lambda *arguments: made.append(1) or original(*arguments))
    others = [ModelCheckpoint(tmp_path, every_n_train_steps=1)] if monitors else []
    fit(Line([1.0]), [Timer("0:0:1:0"), MetricsLogger(1), TQDMProgressBar(), *others], epochs=1)
    assert made == []
    looks = Looks("0:0:1:0")
    trainer = fit(Line([1.0]), [looks, *others], epochs=1)
    assert len(made) == 2 and looks.seen.keys() == {"loss"} and not looks.seen["loss"].requires_grad
    module = EndsBatches([1.0])
    fit(module, [Timer("0:0:1:0"), *others], epochs=1)
    assert len(made) == 4 and module.seen.keys() == {"loss"}
    trainer.callbacks.remove(looks)
    assert not trainer.callback_handler.outputs_wanted
