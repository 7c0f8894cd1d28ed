"""`LearningRateFinder`: Lightning's trial, a suggestion with which training goes well, and nothing else is changed."""

import math

import pytest
import torch
from quiet import QUIET

from espnet3_lite import LiteModule, Trainer, load_config, seed_everything
from espnet3_lite.callbacks import Callback, LearningRateFinder
from espnet3_lite.callbacks.learning_rate_finder import Found
from espnet3_lite.cli.new_recipe import write_recipe
from espnet3_lite.espnet import experiment
from espnet3_lite.exceptions import MisconfigurationException


class Net(LiteModule):
    def __init__(self, scheduled=False):
        super().__init__()
        self.lr, self.scheduled = 0.1, scheduled
        self.w = torch.nn.Parameter(torch.tensor([5.0, -3.0]))

    def training_step(self, batch, batch_idx):
        return ((self.w - batch.mean()) ** 2).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if not self.scheduled:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]


class AtStart(Callback):
    def on_train_start(self, trainer, pl_module):
        self.weights, self.random = pl_module.w.tolist(), torch.rand(3).tolist()
        self.rate, self.step = trainer.optimizers[0].param_groups[0]["lr"], trainer.global_step


def search(module=None, epochs=1, **arguments):
    module, finder, start = module or Net(), LearningRateFinder(num_training_steps=40, **arguments), AtStart()
    torch.manual_seed(5)
    trainer = Trainer(max_epochs=epochs, callbacks=[finder, start], **QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(torch.arange(100).remainder(3).float(), batch_size=1))
    return finder.optimal_lr, module, start, trainer


def test_the_trial_is_lightnings_and_the_curve_is_the_true_loss():
    found, module, start, _ = search()  # the numbers are Lightning 2.6.6's, of the same module and data
    rates, losses = found.results["lr"], found.results["loss"]
    assert rates[:3] == pytest.approx([1e-08, 2.51188643e-08, 3.98107171e-08])
    assert (len(rates), rates[-1]) == (40, 1.0)
    assert losses[0] == 5.0**2 + 3.0**2
    mean, as_lightning = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = 0.98 * mean + 0.02 * loss
        as_lightning.append(mean / (1 - 0.98 ** (step + 1)))  # as if it were one step on: it begins at half the loss
    assert as_lightning[:4] == pytest.approx([17.17172, 22.21466, 25.25088, 27.07211], abs=1e-5)
    assert as_lightning[-1] == pytest.approx(26.743049139)


class Falls(Net):
    """Its loss falls by 2 around the rate `middle`, and explodes at `explodes`."""

    def __init__(self, middle, explodes=math.inf, explosion=1e12):
        super().__init__()
        self.middle, self.explodes, self.explosion = middle, explodes, explosion

    def training_step(self, batch, batch_idx):
        rate = self.optimizers().param_groups[0]["lr"]
        fallen = 2.5 - 2 / (1 + math.exp(-3 * math.log10(rate / self.middle)))
        return 0.0 * self.w.sum() + (fallen if rate < self.explodes else self.explosion)


@pytest.mark.parametrize(("arguments", "middle"), [({}, 1e-3), ({"min_lr": 1e-4, "max_lr": 1e2}, 1.0)])
def test_the_suggestion_does_not_lag_behind_the_loss(arguments, middle):
    assert abs(math.log10(search(Falls(middle), **arguments)[0].suggestion() / middle)) < 0.15


@pytest.mark.parametrize("explosion", [50.0, 1e12])
def test_an_explosion_at_the_end_does_not_move_the_suggestion(explosion):
    found, *_ = search(Falls(1e-3, explodes=0.2, explosion=explosion), early_stop_threshold=None)
    assert found.results["loss"][-1] == pytest.approx(explosion)
    assert abs(math.log10(found.suggestion() / 1e-3)) < 0.15


class Classifier(LiteModule):
    def __init__(self, optimizer):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
        self.optimizer, self.lr = optimizer, 1.0

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


class Losses(Callback):
    def __init__(self, rate):
        self.rate, self.losses = rate, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate or group["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(math.inf if loss is None else float(loss))  # None: skipped

    def at_the_end(self):
        return sum(self.losses[-20:]) / 20


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_training_with_the_suggestion_goes_as_well_as_with_the_best_of_a_grid(optimizer):
    generator = torch.Generator().manual_seed(1)
    inputs, weights = torch.randn(2000, 20, generator=generator), torch.randn(20, 3, generator=generator)
    noise = 0.5 * torch.randn(2000, 3, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, (inputs.tanh() @ weights + noise).argmax(1))

    def after(rate):  # None: the finder's
        seed_everything(0, verbose=False)
        seen, finder = Losses(rate), [] if rate else [LearningRateFinder()]
        trainer = Trainer(max_steps=150, callbacks=[*finder, seen], **QUIET)
        trainer.fit(Classifier(optimizer), torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
        return seen.at_the_end()

    assert after(None) <= 1.1 * min(after(10 ** (power / 2)) for power in range(-7, 1))


@pytest.mark.slow
@pytest.mark.parametrize("example", [None, "examples/digits/train.yaml"], ids=["the recipe of `init`", "the example"])
def test_training_the_digits_with_the_suggestion_goes_as_well_as_with_the_best_of_a_grid(
    example, tmp_path, monkeypatch
):
    path = example
    if example is None:
        write_recipe(tmp_path / "recipe")
        path = tmp_path / "recipe" / "conf" / "training.yaml"
        monkeypatch.syspath_prepend(str(tmp_path / "recipe"))

    def after(rate):
        trainer, seen = experiment.build(load_config(path)).trainer, Losses(rate)
        trainer.callbacks, trainer.loggers, trainer.max_steps, trainer.limit_val_batches = [seen], [], 100, 0
        trainer.fit(experiment.build(load_config(path)).model)
        return seen.at_the_end()

    suggested = experiment.find_lr(load_config(path)).suggestion()
    assert 1e-3 < suggested < 3e-2
    assert after(suggested) <= 1.1 * min(after(10 ** (power / 2)) for power in range(-6, 0))


def test_a_short_epoch_does_not_end_the_search():
    finder = LearningRateFinder(num_training_steps=40)
    trainer = Trainer(max_epochs=1, callbacks=[finder], **QUIET)
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.arange(6).float(), batch_size=1))
    assert len(finder.optimal_lr.results["lr"]) == 40 and trainer.global_step == 6


@pytest.mark.parametrize("seed", range(5))
def test_noise_at_tiny_rates_suggests_nothing(seed):
    """A loss with noise, which falls from 1e-2 on: steps of 1e-7 do not make it steep."""
    generator = torch.Generator().manual_seed(seed)
    rates = [10 ** (-8 + 8 * step / 99) for step in range(100)]
    noise = (0.01 * torch.randn(100, generator=generator)).tolist()
    losses = [2.3 - 0.5 * max(0.0, math.log10(rate) + 2) + one for rate, one in zip(rates, noise, strict=True)]
    assert 1e-2 <= Found({"lr": rates, "loss": losses}).suggestion() <= 1.0


def test_the_run_notices_nothing_but_its_rate():
    _, _, start, trainer = search(update_attr=False)
    assert (start.weights, start.step, start.rate) == ([5.0, -3.0], 0, 0.1) and trainer.global_step == 100
    torch.manual_seed(5)
    assert start.random == torch.rand(3).tolist()


def test_a_schedule_goes_on_from_the_rate_that_was_found():
    found, _, start, trainer = search(Net(scheduled=True), epochs=2)
    assert start.rate == pytest.approx(found.suggestion())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(found.suggestion() / 100)


def test_it_stops_where_the_loss_explodes():
    found, *_ = search(mode="linear", max_lr=20, early_stop_threshold=1.2)
    mean, means = 0.0, []
    for step, loss in enumerate(found.results["loss"], start=1):
        mean = 0.98 * mean + 0.02 * loss
        means.append(mean / (1 - 0.98**step))
    *before, last = means
    assert len(before) < 39 and last > 1.2 * min(before)
    assert all(loss <= 1.2 * min(before[: index + 1]) for index, loss in enumerate(before))


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(MisconfigurationException, match="have 'rate'; name the attribute in attr_name"):
        search(attr_name="rate")
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        LearningRateFinder(mode="liner")
    with pytest.warns(UserWarning, match="not enough points"):
        assert search()[0].suggestion(skip_begin=39) is None
