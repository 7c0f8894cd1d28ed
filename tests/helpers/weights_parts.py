"""A small model in float64, its data and a silent trainer: for the callbacks that change weights."""

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import LiteModule, Trainer


def data(count=12):
    """`count` samples, ``(count, 4)`` float64; always the same."""
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loader(batch_size=4, count=12, shuffle=False):
    return DataLoader(TensorDataset(data(count)), batch_size=batch_size, shuffle=shuffle)


class Net(LiteModule):
    """Linear, BatchNorm (optional), linear; the loss is the mean square of the output."""

    def __init__(self, batch_norm=True, interval=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        norm = [torch.nn.BatchNorm1d(3)] if batch_norm else []
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 3), *norm, torch.nn.Linear(3, 1)).double()
        self.interval = interval
        self.validated = []

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.net(batch[0]).square().mean().item())

    def configure_optimizers(self):
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9)
        if self.interval is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


def trainer_of(*callbacks, **settings):
    """A trainer that writes, prints and checks nothing by itself."""
    silent = {**QUIET, "num_sanity_val_steps": 0}
    return Trainer(callbacks=list(callbacks), **{**silent, **settings})


def near(numbers):
    """Equal but for the last bits of float64, which depend on the number of threads."""
    return pytest.approx(numbers, rel=1e-12, abs=1e-14)


def weights(module):
    """Copies of all parameters and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_equal(first, second):
    """Bit by bit, with the same names."""
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
