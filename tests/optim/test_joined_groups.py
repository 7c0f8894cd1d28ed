"""Schedules and parameter groups: one that joins in the middle of a run follows the first; others' are refused."""

import pytest
import torch
from torch.optim import lr_scheduler
from weights_parts import Net, loader, trainer_of

from espnet3_lite import Callback, ESPnetModule, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import BackboneFinetuning
from espnet3_lite.espnet import schedulers as espnet

SCHEDULES = {
    "warm-up": lambda o: espnet.WarmupLR(o, 4),
    "Noam": lambda o: espnet.NoamLR(o, 4, 4),
    "steps": lambda o: espnet.WarmupStepLR(o, 2, 2, 1),
    "piecewise": lambda o: espnet.PiecewiseLinearWarmupLR(o, [0, 4], [0.0, 0.4]),
    "tristage": lambda o: espnet.TristageLR(o, max_steps=12, warmup_ratio=0.3, hold_ratio=0.2, decay_ratio=0.5),
    "linear decay": lambda o: espnet.LinearWarmupDecayLR(o, 4, 12),
    "exponential": lambda o: espnet.ExponentialDecayWarmup(o, 0.2, 0.1, 10),
    "cosine": lambda o: espnet.CosineAnnealingWarmupRestarts(o, 8, warmup_steps=2),
    "plateau": lambda o: espnet.WarmupReduceLROnPlateau(o, 4, patience=0, min_lr=[0.0]),
    "torch lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "torch multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "torch cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "torch restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "torch cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, cycle_momentum=False),
    "torch one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=13),
    "torch sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "torch exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "torch plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, min_lr=[0.0]),
}  # fmt: skip


class Joins(Callback):
    """A group joins after the third update, at a tenth of the first one's rate."""

    def __init__(self, joins):
        self.joins, self.rates = joins, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        if self.joins and trainer.global_step == 3:
            optimizer.add_param_group({"params": [pl_module.late], "lr": optimizer.param_groups[0]["lr"] / 10})
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])


class Scheduled(Net):
    def __init__(self, make):
        super().__init__()
        self.make, self.late = make, torch.nn.Parameter(torch.zeros(1))

    def validation_step(self, batch, batch_idx):
        self.log("loss", 1.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.4)
        scheduler = self.make(optimizer)
        by_metric = isinstance(scheduler, (lr_scheduler.ReduceLROnPlateau, espnet.WarmupReduceLROnPlateau))
        settings = {"interval": "epoch", "monitor": "loss"} if by_metric else {"interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **settings}}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_group_that_joins_follows_the_first_in_proportion(name):
    def run(joins):
        callback = Joins(joins)
        trainer_of(callback, max_epochs=4).fit(Scheduled(SCHEDULES[name]), loader(), loader())
        return callback.rates

    alone, together = run(False), run(True)
    assert len(alone) == 12 and len({rate for (rate,) in alone}) > 2
    assert [rates[:1] for rates in together] == alone  # the first group does not notice
    assert [len(rates) for rates in together] == [1, 1, *[2] * 10]
    for first, late in together[2:]:
        assert late == pytest.approx(first / 10, rel=1e-9)


def test_backbone_finetuning_with_a_warm_up():
    class Model(Net):
        def __init__(self):
            super().__init__()
            self.backbone = self.net[:2]

        def configure_optimizers(self):
            optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.4)
            return [optimizer], [{"scheduler": espnet.WarmupLR(optimizer, 4), "interval": "step"}]

    callback = Joins(False)
    trainer = trainer_of(callback, BackboneFinetuning(1), max_epochs=3)
    trainer.fit(Model(), loader())
    assert [len(rates) for rates in callback.rates] == [1] * 3 + [2] * 6
    first, late = callback.rates[3]
    assert first == pytest.approx(0.4 * 2 * 5**-0.5) and late == pytest.approx(first / 10)


def test_a_warm_up_with_a_plateau_gets_its_metric():
    """From a module: before, `monitor` was dropped without a word."""
    callback = Joins(False)
    trainer_of(callback, max_epochs=4).fit(Scheduled(SCHEDULES["plateau"]), loader(), loader())
    expected = [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.04, 0.04, 0.04, 0.004, 0.004, 0.004]
    # The first update has the whole rate; `on_train_batch_end` sees the rate of the next one.
    assert [rate for (rate,) in callback.rates] == pytest.approx(expected)


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
def test_a_warm_up_with_a_plateau_from_a_configuration(interval):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.layer(x).square().mean(), {"loss": torch.ones(())}, len(x)

    config = {
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.4}, "scheduler_monitor": "valid/loss",
        "scheduler": {
            "_target_": "espnet2.schedulers.warmup_reducelronplateau.WarmupReduceLROnPlateau", "warmup_steps": 2,
            "patience": 0,
        },
    }  # fmt: skip
    config.update({"scheduler_interval": interval} if interval else {})
    callback = Joins(False)
    batches = torch.utils.data.DataLoader([(["a"], {"x": torch.ones(1, 1)})] * 2, batch_size=None)
    trainer_of(callback, max_epochs=3).fit(ESPnetModule(Model(), config), batches, batches)
    assert [rate for (rate,) in callback.rates] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.04, 0.04])


def test_a_plateau_without_monitor_is_an_error():
    class Forgets(Scheduled):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.net.parameters(), lr=0.4)
            return [optimizer], [espnet.WarmupReduceLROnPlateau(optimizer, 4)]

    with pytest.raises(MisconfigurationException, match="WarmupReduceLROnPlateau steps by a metric"):
        trainer_of(max_epochs=1).fit(Forgets(None), loader())


class Returns(LiteModule):
    """Its optimizers are what a function of the module makes."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.make = torch.nn.Linear(4, 1).double(), make

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", 1.0)

    def configure_optimizers(self):
        return self.make(self)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda m: ([sgd(m)], [lr_scheduler.StepLR(sgd(m), 1)]), "StepLR for a SGD that it did not return"),
        (lambda m: {"optimizer": sgd(m), "scheduler": None}, "unknown key 'scheduler'.*did you mean 'lr_scheduler'"),
        (lambda m: {"optimizer": sgd(m), "lr_schedule": 1}, "unknown key 'lr_schedule'.*did you mean 'lr_scheduler'"),
        (lambda m: [{"optimizer": sgd(m), "frequency": 1}], "unknown key 'frequency'"),
        (lambda m: sgd(torch.nn.Linear(1, 1)), "none of the parameters of SGD is one of the module's"),
    ],
)
def test_what_would_train_or_change_nothing_is_refused(make, message):
    with pytest.raises(MisconfigurationException, match=message):
        trainer_of(max_epochs=1).fit(Returns(make), loader())


def test_a_monitor_beside_the_optimizer_is_the_schedulers_as_in_lightning():
    def make(module):
        optimizer = sgd(module)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "loss"}

    module = Returns(make)
    trainer = trainer_of(max_epochs=3)
    trainer.fit(module, loader(), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_scheduler_that_names_no_optimizer_belongs_to_the_only_one():
    class Own:
        steps = 0

        def step(self):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    scheduler = Own()
    module = Returns(lambda m: ([sgd(m)], [{"scheduler": scheduler, "interval": "step"}]))
    trainer_of(max_epochs=1).fit(module, loader())
    assert scheduler.steps == 3
