"""Schedulers of other packages: their `step` takes an epoch first, or a metric later; some have no state.

As timm's, fairseq's, warmup_scheduler's and pytorch_optimizer's are.
"""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from weights_parts import loader, trainer_of

from espnet3_lite import Callback, LiteModule, MisconfigurationException


class Scheduler:
    """Keeps the arguments of each step."""

    def __init__(self):
        self.steps = []

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps[:] = state["steps"]


class EpochFirst(Scheduler):
    def step(self, epoch, metric=None):
        self.steps.append((epoch, metric))


class MetricLater(Scheduler):
    def step(self, epoch=None, metrics=None):
        self.steps.append((epoch, metrics))


class NoState:
    def step(self):
        pass


class Plain(LiteModule):
    def __init__(self, scheduler, **settings):
        super().__init__()
        self.layer, self.scheduler, self.settings = torch.nn.Linear(4, 1).double(), scheduler, settings

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", 1.0 + self.current_epoch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, **self.settings}}


class ItsWay(Plain):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(epoch=self.current_epoch + 1, metric=metric)


def fit(module):
    trainer_of(max_epochs=2).fit(module, loader(), loader())
    return module.scheduler.steps


@pytest.mark.parametrize(
    "scheduler, settings, message",
    [
        (EpochFirst, {}, r"EpochFirst\.step\(epoch, metric=None\) cannot be called as step\(\)\. .*Plain\.lr_sched"),
        (EpochFirst, {"monitor": "loss"}, r"cannot be called as step\(metric\).*Plain\.lr_scheduler_step"),
        (MetricLater, {"monitor": "loss"}, r"epoch=None, metrics=None\) cannot be called as step\(metric\)"),
        (NoState, {}, r"has no state_dict\(\), load_state_dict\(\)"),
    ],
)  # fmt: skip
def test_what_the_trainer_cannot_step_is_refused_before_anything_runs(scheduler, settings, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(Plain(scheduler(), **settings))


def test_a_metric_in_a_later_place_may_be_left_out_as_in_lightning():
    assert fit(Plain(MetricLater())) == [(None, None)] * 2


def test_the_modules_own_step_gets_the_metric_where_one_is_monitored():
    assert fit(ItsWay(EpochFirst())) == [(1, None), (2, None)]
    assert fit(ItsWay(EpochFirst(), monitor="loss")) == [(1, 1.0), (2, 2.0)]


class WarmUp(LRScheduler):
    """Hands over to another scheduler, which its state holds as an object."""

    def __init__(self, optimizer):
        self.after = CosineAnnealingLR(optimizer, 7)
        super().__init__(optimizer)

    def get_lr(self):
        return [base * min(1.0, (self.last_epoch + 1) / 2) for base in self.base_lrs]

    def step(self, epoch=None, metrics=None):
        if self.last_epoch >= 1:
            self.last_epoch += 1
            self.after.step()
        else:
            super().step()


class WarmsUp(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": WarmUp(optimizer), "interval": "step"}}


class Rates(Callback):
    """The rate after each batch; a file after the one with the number `save`."""

    def __init__(self, path, save=None):
        self.path, self.save, self.rates = path, save, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if trainer.global_step == self.save:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("save", [1, 4])
def test_a_scheduler_within_a_scheduler_goes_on_where_it_stood(save, tmp_path):
    whole, rest = Rates(tmp_path / "a.ckpt", save), Rates(None)
    trainer_of(whole, max_epochs=2).fit(WarmsUp(None), loader())
    assert len(set(whole.rates)) == 6
    trainer_of(rest, max_epochs=2).fit(WarmsUp(None), loader(), ckpt_path=whole.path)
    assert rest.rates == whole.rates[save:]
    assert torch.load(whole.path, weights_only=True)["lr_schedulers"][0]["after"]["last_epoch"] == max(0, save - 1)
