"""The run history, the run's settings by other names, and the override point of a training step."""

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import ModelCheckpoint, TrainerCallback
from espnet3_lite.callbacks.calling.run_history import RunHistory, RunHistoryRecorder

VALUES = torch.tensor([[1.0], [2.0], [6.0]])


class Module(LiteModule):
    """The losses are the batch's means; the weight stays 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = batch.mean() * self.weight
        self.log("own", loss, on_step=True, on_epoch=True)
        self.log("steps_only", loss)
        return loss

    def on_train_epoch_end(self):
        self.log("late", float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        self.log("quality", batch.mean())
        return {"loss": 10 * batch.mean()}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(trainer, **settings):
    loader = DataLoader(VALUES, batch_size=2)
    trainer.fit(Module(), loader, loader, **settings)
    return trainer


def test_the_trainer_records_losses_and_what_was_logged_for_an_epoch():
    trainer = fit(Trainer(max_epochs=2, callbacks=TrainerCallback(), accumulate_grad_batches=2, **QUIET))
    assert dict(trainer.run_history.items()) == {
        "quality": [3.0, 3.0],  # (1.5 * 2 + 6 * 1) / 3: by batch size
        "eval_loss_epoch": [30.0, 30.0],
        "own_epoch": [3.0, 3.0],
        "train_loss_epoch": [3.0, 3.0],
        "late": [0.0, 1.0],
    }
    trainer.test(Module(), DataLoader(VALUES, batch_size=3), verbose=False)
    assert trainer.run_history.get_metric_values("eval_loss_epoch") == [30.0, 30.0, 30.0]


def test_the_trainer_s_own_metrics_hold_the_losses_too():
    trainer = fit(Trainer(max_epochs=1, callbacks=TrainerCallback(), **QUIET))
    assert {name: float(trainer.callback_metrics[name]) for name in ("train_loss_epoch", "eval_loss_epoch")} == {
        "train_loss_epoch": 3.0,
        "eval_loss_epoch": 30.0,
    }


def test_nothing_is_recorded_until_somebody_looks():
    trainer = fit(Trainer(max_epochs=1, **QUIET))
    assert trainer.callbacks == [] and "train_loss_epoch" not in trainer.callback_metrics
    assert trainer.run_history.get_metric_names() == set()
    fit(trainer)
    assert [type(callback) for callback in trainer.callbacks] == [RunHistoryRecorder]


def test_a_look_before_the_fit_is_enough():
    trainer = Trainer(max_epochs=1, **QUIET)
    history = trainer.run_history
    fit(trainer)
    assert history is trainer.run_history and history.get_latest_metric("train_loss_epoch") == 3.0


def test_each_fit_begins_anew_and_a_resumed_one_goes_on(tmp_path):
    def make(epochs):
        callbacks = [TrainerCallback(), ModelCheckpoint(tmp_path, save_last=True)]
        return Trainer(max_epochs=epochs, callbacks=callbacks, **{**QUIET, "enable_checkpointing": True})

    first = fit(make(2))
    second = fit(make(3), ckpt_path=first.checkpoint_callback.last_model_path)
    assert second.run_history.get_metric_values("train_loss_epoch") == [3.0] * 3
    assert second.run_history.current_epoch == 3
    again = Trainer(max_epochs=1, callbacks=TrainerCallback(), **QUIET)
    fit(again)
    again.fit_loop.epoch = 0
    fit(again)
    assert again.run_history.get_metric_values("train_loss_epoch") == [3.0]


def test_what_a_callback_tells_the_history_can_be_monitored(tmp_path):
    class Measure(TrainerCallback):
        def on_eval_epoch_end(self, trainer, **kwargs):
            epoch = trainer.run_history.current_epoch
            trainer.run_history.update_metric("accuracy", torch.tensor([0.1, 0.9, 0.5][epoch - 1]))
            trainer.run_history.update_metric("picture", "a thing that is no number")

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="accuracy", mode="max")
    trainer = fit(Trainer(max_epochs=3, callbacks=[Measure(), saver], **{**QUIET, "enable_checkpointing": True}))
    assert saver.best_model_path == str(tmp_path / "epoch=1.ckpt")
    assert [float(value) for value in trainer.run_history.get_metric_values("accuracy")] == pytest.approx(
        [0.1, 0.9, 0.5]
    )
    state = next(c for c in trainer.callbacks if isinstance(c, RunHistoryRecorder)).state_dict()
    assert state["values"]["picture"] == [] and state["values"]["accuracy"] == pytest.approx([0.1, 0.9, 0.5])


def test_manual_optimization_may_return_no_loss():
    class Manual(Module):
        def __init__(self, output):
            super().__init__()
            self.automatic_optimization = False
            self.output = output

        def training_step(self, batch, batch_idx):
            self.optimizers().step()
            return self.output

    loader = DataLoader(VALUES, batch_size=2)
    for output, losses in (
        ({"generator_loss": torch.tensor(1.0)}, []),
        ({"loss": None}, []),
        ({"loss": torch.ones(2)}, []),
        ({"loss": torch.tensor(5.0)}, [5.0]),
        (None, []),
    ):
        trainer = Trainer(max_epochs=1, callbacks=TrainerCallback(), **QUIET)
        trainer.fit(Manual(output), loader)
        assert trainer.global_step == 2
        assert trainer.run_history.get_metric_values("train_loss_epoch") == losses


def test_history_alone():
    history = RunHistory()
    history.update_metric("loss", 2.0)
    history.update_metric("loss", 1.0)
    assert (history.get_metric_names(), history.get_metric_values("loss")) == ({"loss"}, [2.0, 1.0])
    assert (history.get_latest_metric("loss"), history.get_metric_values("other")) == (1.0, [])
    history.increment_epoch()
    assert history.current_epoch == 2
    with pytest.raises(ValueError, match=r"metric los; did you mean 'loss'\? \(recorded: loss\)"):
        history.get_latest_metric("los")
    history.reset()
    assert (history.get_metric_names(), history.current_epoch) == (set(), 1)


def test_run_config():
    seen = {}

    class Look(Callback):
        def on_fit_start(self, trainer, pl_module):
            seen.update(trainer.run_config.to_dict())

    trainer = fit(Trainer(max_epochs=1, callbacks=Look(), gradient_clip_val=0.5, accumulate_grad_batches=2, **QUIET))
    config = trainer.run_config
    assert config.to_dict() == {
        "num_epochs": 1, "train_per_device_batch_size": 2, "eval_per_device_batch_size": 2,
        "gradient_accumulation_steps": 2, "gradient_clip_value": 0.5, "mixed_precision": "32-true",
        "num_processes": 1, "is_distributed": False, "is_local_process_zero": True, "is_world_process_zero": True,
    }  # fmt: skip
    assert (seen["train_per_device_batch_size"], seen["eval_per_device_batch_size"]) == (2, 2)
    assert config["train_per_device_batch_size"] == config.train_per_device_batch_size == 2
    with pytest.raises(KeyError, match="did you mean 'num_epochs'"):
        config["num_epoch"]


def test_gather_joins_the_ranks_batches(monkeypatch):
    trainer = Trainer(max_epochs=1, **QUIET)
    mine = torch.ones(2, 3)
    assert trainer.gather(mine) is mine
    trainer._accelerator.wait_for_everyone()  # one process: nobody to wait for
    monkeypatch.setattr(trainer.strategy, "world_size", 2, raising=False)
    monkeypatch.setattr(trainer.strategy, "gather_objects", lambda value: [value, torch.zeros_like(value[:1])])
    assert trainer.gather({"a": mine})["a"].tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    monkeypatch.setattr(trainer.strategy, "gather_objects", lambda value: [value, value + 1])
    assert trainer.gather(torch.tensor(1)).tolist() == [1, 2]
    monkeypatch.setattr(trainer.strategy, "gather_objects", lambda value: [value, {"another": "exchange"}])
    with pytest.raises(RuntimeError, match="called on some ranks only"):
        trainer.gather(mine)


def test_a_trainer_that_overrides_the_batch_s_loss():
    class Doubling(Trainer):
        def calculate_train_batch_loss(self, batch):
            output = super().calculate_train_batch_loss(batch)
            return {"loss": output["loss"] * 2, "model_outputs": batch}

    class Outputs(TrainerCallback):
        def __init__(self):
            self.losses = []

        def on_train_step_end(self, trainer, batch, batch_output):
            assert torch.equal(batch_output["model_outputs"], batch)
            self.losses.append(float(batch_output["loss"]))

    callback = Outputs()
    fit(Doubling(max_epochs=1, callbacks=callback, **QUIET))
    assert callback.losses == [3.0, 12.0]
