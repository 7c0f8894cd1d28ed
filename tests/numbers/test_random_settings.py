"""Random small settings, drawn from a seed: the trainer's numbers are those of fifty lines of plain torch."""

import copy
import importlib.util
import random
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from weights_parts import trainer_of

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import EMAWeightAveraging

_spec = importlib.util.spec_from_file_location("reference_loop", Path(__file__).with_name("reference_loop.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)).double()

    def loss(self, x, y):
        return (self.net(x).squeeze(1) - y).square().mean()


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


def draw(seed):
    pick = random.Random(seed)
    batches = pick.randint(1, 6)
    return {
        "optimizer": pick.choice(list(reference.OPTIMIZERS)), "schedule": pick.choice(list(reference.SCHEDULES)),
        "interval": pick.choice(["step", "epoch"]), "window": pick.randint(1, 4), "epochs": pick.randint(1, 3),
        "clip": pick.choice([None, "norm", "value"]), "by_weight": pick.random() < 0.4,
        "sizes": [pick.randint(1, 4) for _ in range(batches)], "width": pick.randint(1, 4),
        "bad": pick.randrange(batches) if batches > 1 and pick.random() < 0.3 else None,
        "average": pick.random() < 0.5, "decay": pick.choice([0.0, 0.5, 0.9]), "average_from": pick.choice([0, 2, 99]),
    }  # fmt: skip


def compare(seed):
    setting = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Model(setting["width"])
    batches = [
        (torch.randn(n, 3, generator=generator).double(), torch.randn(n, generator=generator).double())
        for n in setting["sizes"]
    ]
    if setting["bad"] is not None:
        batches[setting["bad"]][0][0, 0] = float("nan")
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    callbacks = []
    if setting["average"]:
        callbacks.append(EMAWeightAveraging(decay=setting["decay"], update_starting_at_step=setting["average_from"]))
    clip = {None: {}, "norm": {"gradient_clip_val": 0.3},
            "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}}[setting["clip"]]  # fmt: skip
    module = Module(ours, setting)
    trainer = trainer_of(*callbacks, max_epochs=setting["epochs"], accumulate_grad_batches=setting["window"], **clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(batches, batch_size=None))
    means, average = reference.train(theirs, batches, setting)
    expected = average if setting["average"] else theirs
    exact = not setting["average"] and not setting["by_weight"]
    for one, other in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=0, atol=1e-12), (seed, setting)
    assert module.means == pytest.approx(means, rel=0, abs=1e-12), (seed, setting)


@pytest.mark.parametrize("part", range(10))
def test_two_hundred_settings(part):
    for seed in range(20 * part, 20 * part + 20):
        compare(seed)


@pytest.mark.slow
def test_two_thousand_settings():
    for seed in range(200, 2200):
        compare(seed)
