"""`GradientAccumulationScheduler`: how many steps an epoch makes."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import GradientAccumulationScheduler, LambdaCallback, ModelCheckpoint
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.optim.slots import OptimizerSlot


class Line(LiteModule):
    def __init__(self, automatic=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = automatic

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(*callbacks, module=None, ckpt_path=None, **settings):
    trainer = Trainer(
        callbacks=list(callbacks), logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 4, **settings},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module or Line(), DataLoader(torch.arange(6.0).reshape(6, 1)), ckpt_path=ckpt_path)
    return trainer


def test_windows_by_epoch(tmp_path):
    """Six batches; from epoch 1 windows of four, from epoch 3 of two: 6 + 2 + 2 + 3 steps."""
    steps, values, estimated = [], [], []
    note = LambdaCallback(
        on_fit_start=lambda trainer, module: estimated.append(trainer.estimated_stepping_batches),
        on_train_epoch_end=lambda trainer, module: steps.append(trainer.global_step),
        on_train_end=lambda trainer, module: values.append(module.weight.item()),
    )
    fit(GradientAccumulationScheduler({1: 4, 3: 2}), note, ModelCheckpoint(tmp_path))
    assert steps == [6, 8, 10, 13]
    assert estimated == [13]
    assert values == [-15 - 15 / 4 - 15 / 4 - 15 / 2]  # each loss is divided by its epoch's window


def test_a_run_that_resumes_within_an_epoch_keeps_its_window(tmp_path):
    def state():
        return ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")

    whole = fit(GradientAccumulationScheduler({0: 2}), state(), max_epochs=1)
    resumed = fit(GradientAccumulationScheduler({0: 2}), state(), max_epochs=1, ckpt_path=tmp_path / "step=1.ckpt")
    assert whole.global_step == resumed.global_step == 3
    assert torch.equal(whole.lightning_module.weight, resumed.lightning_module.weight)
    assert resumed.accumulate_grad_batches == 1  # as it was before: the trainer may be used again


def test_the_window_of_an_epoch():
    scheduler = GradientAccumulationScheduler({4: 2, 8: 3})
    assert [scheduler.get_accumulate_grad_batches(epoch) for epoch in (0, 3, 4, 7, 8, 100)] == [1, 1, 2, 2, 3, 3]
    assert scheduler.going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({3: 1}).going_to_accumulate_grad_batches()


@pytest.mark.parametrize(
    ("scheduling", "error", "message"),
    [
        ({}, TypeError, r"`scheduling` is {}; give {epoch: batches}"),
        ([2, 4], TypeError, r"`scheduling` is \[2, 4\]; give {epoch: batches}"),
        ({"a": 1}, MisconfigurationException, r"Epoch should be an int greater than or equal to 0\. Got \['a'\]"),
        ({-1: 2}, MisconfigurationException, r"Got \[-1\]"),
        ({0: 0}, MisconfigurationException, r"Accumulation factor should be an int greater than 0\. Got \[0\]"),
        ({0: 1.5}, MisconfigurationException, r"Got \[1\.5\]"),
    ],
)
def test_what_is_no_schedule(scheduling, error, message):
    with pytest.raises(error, match=message):
        GradientAccumulationScheduler(scheduling)


def test_what_does_not_go_with_it(tmp_path):
    with pytest.raises(ValueError, match="You have set `accumulate_grad_batches` and are using"):
        fit(GradientAccumulationScheduler({0: 2}), ModelCheckpoint(tmp_path), accumulate_grad_batches=3)
    with pytest.raises(ValueError, match="It is 2; a second GradientAccumulationScheduler sets it, too: use one"):
        fit(GradientAccumulationScheduler({0: 2}), GradientAccumulationScheduler({0: 3}), ModelCheckpoint(tmp_path))
    with pytest.raises(RuntimeError, match="not supported for manual optimization"):
        fit(GradientAccumulationScheduler({0: 2}), ModelCheckpoint(tmp_path), module=Line(automatic=False))
    slots = {"generator": OptimizerSlot(None, name="generator")}
    named = SimpleNamespace(plan=SimpleNamespace(slots=slots))
    with pytest.raises(MisconfigurationException, match=r"for \['generator'\] set `accum_grad_steps`"):
        GradientAccumulationScheduler({0: 2}).on_train_start(named, Line())
