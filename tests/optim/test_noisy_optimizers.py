"""Optimizers that draw random numbers from a generator of their own, as timm's Adahessian does."""

import torch
from loader_lab import check_resumed
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule


class Noisy(torch.optim.SGD):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.generator = torch.Generator().manual_seed(3)

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter += torch.rand(parameter.shape, generator=self.generator)
        return loss


class Model(LiteModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx))
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return Noisy(self.parameters(), lr=0.1)


def test_a_resumed_run_draws_the_numbers_that_follow(tmp_path):
    whole = check_resumed(Model, lambda: DataLoader(torch.ones(8, 1), 2), tmp_path, [(0, 0), (0, 3), (1, 1)])
    assert len(whole.seen) == 8
