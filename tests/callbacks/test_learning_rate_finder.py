"""`LearningRateFinder`: Lightning's trial, with the true loss and its slope over the logarithm of the rate.

And that the run notices nothing but its rate.
"""

import math

import pytest
import torch
from quiet import QUIET

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import Callback, LearningRateFinder
from espnet3_lite.callbacks.learning_rate_finder import Found
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


def test_the_trial_is_lightnings_and_the_curve_begins_at_the_true_loss():
    found, module, start, _ = search()  # the numbers are Lightning 2.6.6's, of the same module and data
    rates, losses = found.results["lr"], found.results["loss"]
    assert rates[:3] == pytest.approx([1e-08, 2.51188643e-08, 3.98107171e-08])
    assert (len(rates), rates[-1]) == (40, 1.0)
    assert losses[0] == 5.0**2 + 3.0**2
    # It corrects the running mean's bias as if it were one step on, so that its curve begins at half the loss.
    as_lightning = [loss * (1 - 0.98**step) / (1 - 0.98 ** (step + 1)) for step, loss in enumerate(losses, start=1)]
    assert as_lightning[:4] == pytest.approx([17.17172, 22.21466, 25.25088, 27.07211], abs=1e-5)
    assert as_lightning[-1] == pytest.approx(26.743049139)


def test_the_suggestion_is_where_the_drawn_curve_falls_fastest():
    found, module, start, _ = search()
    drawn = list(zip(map(math.log, found.results["lr"]), found.results["loss"], strict=True))[10:-1]
    falls = {x: (before - after) for (_, before), (x, _), (_, after) in zip(drawn, drawn[1:], drawn[2:], strict=False)}
    assert found.suggestion() == module.lr == start.rate == pytest.approx(math.exp(max(falls, key=falls.get)))
    assert found.suggestion() == pytest.approx(0.3981071705534969)


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
    *before, last = found.results["loss"]
    assert len(before) < 39 and last > 1.2 * min(before)
    assert all(loss <= 1.2 * min(before[: index + 1]) for index, loss in enumerate(before))


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(MisconfigurationException, match="have 'rate'; name the attribute in attr_name"):
        search(attr_name="rate")
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        LearningRateFinder(mode="liner")
    with pytest.warns(UserWarning, match="not enough points"):
        assert search()[0].suggestion(skip_begin=39) is None
