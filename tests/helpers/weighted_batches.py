"""Batches of different sizes, and a model whose batches weigh as much: in one process and on two ranks."""

import torch
from rank_lab import Samples, collate

from espnet3_lite import OptimizationStep

SIZES = [1, 4, 2, 3, 5, 1, 6]  # windows of 3: 1 + 4 + 2, 3 + 5 + 1, and a short last one


def batches():
    samples, rows, first = Samples(sum(SIZES)), [], 0
    for size in SIZES:
        rows.append(collate([samples[index] for index in range(first, first + size)]))
        first += size
    return rows


class Model(torch.nn.Module):
    """The mean error over a batch; its size is the weight. With `names` the loss of each optimizer."""

    def __init__(self, names=()):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.names, self.layer, self.other = names, torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def errors(self, x, y):
        return (self.layer(x).squeeze(1) - y).square(), (self.other(x).squeeze(1) + y).square()

    def forward(self, x, y):
        one, other = (error.mean() for error in self.errors(x.double(), y.double()))
        loss = [OptimizationStep(one, "one"), OptimizationStep(other, "other")] if self.names else one + other
        return loss, {"loss": (one + other).detach()}, torch.tensor(len(y))


ADAM = {"_target_": "torch.optim.Adam", "lr": 0.05}
SEVERAL = {
    "optimizers": {
        "one": {"optimizer": ADAM, "params": "layer", "accum_grad_steps": 3},
        "other": {"optimizer": ADAM, "params": "other", "accum_grad_steps": 3},
    }
}
