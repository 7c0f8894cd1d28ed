"""A model with two optimizers, whose steps the test says, and its configuration."""

import torch

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class Returns(torch.nn.Module):
    """Returns what the test says."""

    def __init__(self, make):
        super().__init__()
        self.generator, self.discriminator = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.make = make

    def forward(self, x):
        return self.make(self.generator(x).mean(), self.discriminator(x).mean()), {}, None


BLOCK = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}
TWO = {"optimizers": {key: {**BLOCK, "params": key} for key in (GENERATOR, DISCRIMINATOR)}}
