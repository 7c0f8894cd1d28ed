"""What `configure_optimizers` gave that would train wrongly without a word. With several ranks: `test_strategies`."""

import warnings

import pytest
import torch
from quiet import quiet_trainer
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, SequentialLR

from espnet3_lite import LiteModule, MisconfigurationException


class Two(LiteModule):
    """Gives what a function makes of it; by hand it steps nothing."""

    def __init__(self, optimizers, by_hand=False):
        super().__init__()
        self.first, self.second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.optimizers_of, self.automatic_optimization = optimizers, not by_hand

    def training_step(self, batch, batch_idx):
        return self.second(self.first(batch)).mean() if self.automatic_optimization else None

    def configure_optimizers(self):
        return self.optimizers_of(self)


def told(module):
    """What a fit of one batch warns of optimizers, but for the steps that `Two` does not make by hand."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(max_epochs=1).fit(module, [torch.ones(1, 1)])
    messages = [str(warning.message) for warning in caught]
    return [told for told in messages if "optimizer" in told and not told.startswith("manual optimization: in 1 ")]


def sgd(*parts):
    return torch.optim.SGD([parameter for part in parts for parameter in part.parameters()], lr=0.1)


def twice(module):
    optimizer = sgd(module)
    scheduler = ExponentialLR(optimizer, 0.5)
    return [optimizer], [scheduler, {"scheduler": scheduler, "interval": "step"}]


def inside(kind):
    def optimizers(module):
        optimizer = sgd(module)
        inner = [ExponentialLR(optimizer, 0.5), ExponentialLR(optimizer, 0.1)]
        outer = ChainedScheduler(inner) if kind is ChainedScheduler else kind(optimizer, inner, milestones=[2])
        return [optimizer], [outer, inner[1]]

    return optimizers


@pytest.mark.parametrize("optimizers", [twice, inside(SequentialLR), inside(ChainedScheduler)])
def test_a_scheduler_that_would_step_twice_is_refused(optimizers):
    with pytest.raises(MisconfigurationException) as raised:
        told(Two(optimizers))
    assert str(raised.value) == (
        "Two.configure_optimizers() returned the same ExponentialLR twice, which would step twice each time. Return it "
        "once"
    )


def test_by_hand_the_module_steps_them():
    assert told(Two(twice, by_hand=True)) == []


def test_two_schedulers_of_one_optimizer_are_no_mistake():
    def optimizers(module):
        optimizer = sgd(module)
        return [optimizer], [ExponentialLR(optimizer, 0.5), ExponentialLR(optimizer, 0.1)]

    assert told(Two(optimizers)) == []


def test_parameters_that_two_optimizers_step_are_told():
    assert told(Two(lambda module: [sgd(module), sgd(module.second)], by_hand=True)) == [
        "the optimizers 0 and 1 have 2 parameters in common, second.weight, second.bias: each of them steps it. Give "
        "each parameter to one optimizer, unless this was on purpose"
    ]
    assert told(Two(lambda module: [sgd(module.first), sgd(module.second)], by_hand=True)) == []


def test_an_optimizer_that_stands_there_twice_is_told():
    def optimizers(module):
        return [sgd(module.first)] * 2

    (said,) = told(Two(optimizers, by_hand=True))
    assert said.startswith("the optimizers 0 and 1 have 2 parameters in common, first.weight, first.bias")
