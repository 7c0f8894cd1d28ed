"""A NaN on one of two ranks. By hand it spoils the weights of both; with the vote both skip the batch.

Two processes train. In the third of four batches rank 1 meets a NaN. DDP averages gradients, so one rank's NaN reaches
all. A rank that skips alone is no way out: the others wait for its gradients for ever. So all agree before backward.

    python examples/tour/08_nan_on_one_rank.py
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from espnet3_lite import LiteModule, Trainer


class Line(LiteModule):
    """Two weights, trained towards zero."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)

    def forward(self, batch):
        return self.layer(batch).square().mean()

    def training_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches(torch.utils.data.Dataset):
    """Eight samples, dealt out to the two ranks in turn. The sixth, rank 1's third, is NaN."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((2,), float("nan") if index == 5 else 1.0)


def by_hand(rank):
    """DDP without a vote."""
    line = Line()
    model, optimizer = DistributedDataParallel(line), torch.optim.SGD(line.parameters(), lr=0.1)
    for index in range(rank, 8, 2):
        optimizer.zero_grad()
        model(Batches()[index].unsqueeze(0)).backward()
        optimizer.step()
    return line


def with_the_vote():
    """The trainer: one all-reduce before backward."""
    line, loader = Line(), torch.utils.data.DataLoader(Batches(), batch_size=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(line, loader)
    print(f"rank {trainer.global_rank}, with the vote: steps {trainer.global_step} of 4", flush=True)
    return line


if "RANK" not in os.environ:  # started by hand: start two processes of this script
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    sys.exit(subprocess.run([*torchrun, __file__]).returncode)
dist.init_process_group("gloo")
rank = dist.get_rank()
print(f"rank {rank}, by hand: weights {by_hand(rank).layer.weight.tolist()}", flush=True)
line = with_the_vote()
print(f"rank {rank}, with the vote: all finite {bool(torch.isfinite(line.layer.weight).all())}", flush=True)
