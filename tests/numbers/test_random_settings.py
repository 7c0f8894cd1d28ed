"""Random small settings, drawn from a seed: the trainer's numbers are those of fifty lines of plain torch."""

import copy
import importlib.util
import random
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from weights_parts import trainer_of

from espnet3_lite import LiteModule, OptimizationStep
from espnet3_lite.callbacks import EMAWeightAveraging

#: Skipped batches are told, and torch tells of a schedule that steps before any update.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_spec = importlib.util.spec_from_file_location("reference_loop", Path(__file__).with_name("reference_loop.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


class Model(torch.nn.Module):
    def __init__(self, width, spike):
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh())
        self.second, self.spike = torch.nn.Linear(width, 1), spike

    def loss(self, x, y):
        """Where a sample's first value is 9 the gradient is more than float16 can hold, and the loss is not."""
        size = self.spike if x[0, 0] == 9 else 1.0
        return (self.second(self.first(x)).squeeze(1) - y).square().mean() * size

    def losses(self, x, y, names):
        """One for each of `names`, from one forward pass."""
        hidden = self.first(x)
        error = self.second(hidden).squeeze(1) - y
        every = {"first": error.square().mean() + hidden.abs().mean(), "second": error.abs().mean()}
        if x[0, 0] == 9:
            every[names[0]] = every[names[0]] * self.spike
        return {name: every[name] for name in names}


class Module(LiteModule):
    def __init__(self, model, setting):
        super().__init__()
        self.model, self.setting, self.means = model, setting, []
        self.accumulate_by_weight = setting["by_weight"]

    def training_step(self, batch, batch_idx):
        self.batch_weight = len(batch[0]) if self.accumulate_by_weight else None
        loss = self.model.loss(*batch)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def on_train_epoch_end(self):
        self.means.append(float(self.trainer.callback_metrics["loss"]))

    def configure_optimizers(self):
        optimizer = reference.OPTIMIZERS[self.setting["optimizer"]](self.parameters())
        schedule = reference.SCHEDULES[self.setting["schedule"]]
        if schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": schedule(optimizer), "interval": self.setting["interval"]}]


class Named(LiteModule):
    """Two optimizers by name, as ESPnet's configurations name them."""

    def __init__(self, model, setting):
        super().__init__()
        clip = {None: {}, "norm": {"gradient_clip_val": 0.3},
                "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}}  # fmt: skip
        self.model, self.setting, self.seen = model, setting, 0
        self.named_optimizers = {
            name: {"window": own["window"], **clip[own["clip"]]} for name, own in setting["named"].items()
        }

    def training_step(self, batch, batch_idx):
        turn = self.setting["turns"][self.seen % len(self.setting["turns"])]
        self.seen += 1
        return [OptimizationStep(loss, name) for name, loss in self.model.losses(*batch, turn).items()]

    def configure_optimizers(self):
        optimizers, schedulers = [], []
        for name, own in self.setting["named"].items():
            optimizers.append(reference.OPTIMIZERS[own["optimizer"]](getattr(self.model, name).parameters()))
            make = reference.SCHEDULES[own["schedule"]]
            if make is not None:
                schedulers.append({"scheduler": make(optimizers[-1]), "interval": own["interval"]})
        return optimizers, schedulers


def draw(seed):
    pick = random.Random(seed)
    batches = pick.randint(1, 6)
    setting = {
        "optimizer": pick.choice(list(reference.OPTIMIZERS)), "schedule": pick.choice(list(reference.SCHEDULES)),
        "interval": pick.choice(["step", "epoch"]), "window": pick.randint(1, 4), "epochs": pick.randint(1, 3),
        "clip": pick.choice([None, "norm", "value"]), "by_weight": pick.random() < 0.4,
        "sizes": [pick.randint(1, 4) for _ in range(batches)], "width": pick.randint(1, 4),
        "bad": pick.randrange(batches) if batches > 1 and pick.random() < 0.3 else None,
        "average": pick.random() < 0.5, "decay": pick.choice([0.0, 0.5, 0.9]), "average_from": pick.choice([0, 2, 99]),
        "precision": pick.choice(["64", "64", "bf16-mixed", "16-mixed"]), "named": {},
        "spike": pick.randrange(batches) if batches > 1 and pick.random() < 0.4 else None,
    }  # fmt: skip
    if pick.random() < 0.4:
        setting["named"] = {
            name: {"optimizer": pick.choice(list(reference.OPTIMIZERS)), "window": pick.randint(1, 4),
                   "schedule": pick.choice(list(reference.SCHEDULES)), "interval": pick.choice(["step", "epoch"]),
                   "clip": pick.choice([None, "norm", "value"])}
            for name in ("first", "second")
        }  # fmt: skip
        both = [("first", "second"), ("second", "first"), ("first",), ("second",)]
        setting["turns"] = [pick.choice(both[:2]), *(pick.choice(both) for _ in range(pick.randint(0, 3)))]
    if setting["precision"] != "64":
        setting["by_weight"] = False  # a weight before or after the scale is another rounding
    if setting["spike"] == setting["bad"]:
        setting["spike"] = None
    return setting


def data_of(setting, generator):
    dtype = torch.float64 if setting["precision"] == "64" else torch.float32
    batches = [
        (torch.randn(n, 3, generator=generator).to(dtype), torch.randn(n, generator=generator).to(dtype))
        for n in setting["sizes"]
    ]
    if setting["bad"] is not None:
        batches[setting["bad"]][0][0, 0] = float("nan")
    if setting["spike"] is not None:
        batches[setting["spike"]][0][0, 0] = 9
    return batches


def fit(module, batches, setting):
    callbacks, more = [], {}
    if not setting["named"]:
        if setting["average"]:
            from_step = setting["average_from"]
            callbacks.append(EMAWeightAveraging(decay=setting["decay"], update_starting_at_step=from_step))
        more = {None: {}, "norm": {"gradient_clip_val": 0.3},
                "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}}[setting["clip"]]  # fmt: skip
        more["accumulate_grad_batches"] = setting["window"]
    if setting["precision"] != "64":
        more["precision"] = setting["precision"]
    trainer = trainer_of(*callbacks, max_epochs=setting["epochs"], **more)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def compare(seed):
    setting = draw(seed)
    torch.manual_seed(seed)
    model = Model(setting["width"], spike=1e7 if setting["precision"] == "16-mixed" else 3.0)
    model = model.double() if setting["precision"] == "64" else model
    batches = data_of(setting, torch.Generator().manual_seed(seed))
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    module = (Named if setting["named"] else Module)(ours, setting)
    trainer = fit(module, batches, setting)
    scaler, near = trainer.precision_plugin.scaler, 1e-12 if setting["precision"] == "64" else 1e-6
    exact, expected = True, theirs
    if setting["named"]:
        updates, scale, steps = reference.train_named(theirs, batches, setting)
        assert {name: slot.update_step for name, slot in trainer.plan.slots.items()} == updates, (seed, setting)
    else:
        means, average, scale, steps = reference.train(theirs, batches, setting)
        exact = not setting["average"] and not setting["by_weight"]
        expected = average if setting["average"] else theirs
        assert module.means == pytest.approx(means, rel=near, abs=near), (seed, setting)
    assert trainer.global_step == steps, (seed, setting)
    assert scaler is None or scaler.get_scale() == scale, (seed, setting)
    for one, other in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=0, atol=near), (seed, setting)


@pytest.mark.parametrize("part", range(10))
def test_two_hundred_settings(part):
    for seed in range(20 * part, 20 * part + 20):
        compare(seed)


@pytest.mark.slow
def test_two_thousand_settings():
    for seed in range(200, 2200):
        compare(seed)
