"""Started by torchrun: what a rank sends in a step, counted where it is sent. ``rank_counts.py FILE STRATEGY``."""

import json
import os
import sys
from collections import defaultdict

import torch
import torch.distributed as dist
from quiet import quiet_trainer
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from espnet3_lite import Callback, ESPnetModule, LiteModule, OptimizationStep
from espnet3_lite.strategies import FSDPStrategy

STEPS = 4
#: The place of each collective's input among its arguments.
INPUTS = {
    "all_reduce": 0, "broadcast": 0, "all_gather_object": None, "broadcast_object_list": None, "gather_object": None,
    "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1,  # FSDP's, before and ...
    "all_gather_single": 1, "reduce_scatter_single": 1,  # ... since torch 2.13
}  # fmt: skip
#: One name for both.
NAMES = {"all_gather_into_tensor": "all_gather", "all_gather_single": "all_gather",
         "reduce_scatter_tensor": "reduce_scatter", "reduce_scatter_single": "reduce_scatter"}  # fmt: skip


class Count(Callback):
    """Collectives from the third batch on, in which nothing is set up any more: how many a batch, and their bytes."""

    def __init__(self):
        self.bytes, self.counting = defaultdict(list), False
        for name, place in ((name, place) for name, place in INPUTS.items() if hasattr(dist, name)):
            setattr(dist, name, self.counted(name, getattr(dist, name), place))

    def counted(self, name, function, place):
        def call(*args, **kwargs):
            given = (
                args[place] if place is not None and len(args) > place else kwargs.get("tensor", kwargs.get("input"))
            )
            if self.counting:
                self.bytes[NAMES.get(name, name)].append(0 if given is None else given.nbytes)
            return function(*args, **kwargs)

        return call

    def on_train_start(self, trainer, pl_module):
        if isinstance(trainer.strategy.model, torch.nn.parallel.DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, reduce_bucket)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counting = batch_idx >= 2

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.counting = False

    def found(self):
        return {name: [len(sizes) / STEPS, sum(sizes) / STEPS] for name, sizes in self.bytes.items()}


class Looks(Callback):
    """At gradients, one may think."""

    def on_after_backward(self, trainer, pl_module):
        pass


def reduce_bucket(state, bucket):
    """As DDP does it by itself in C++, where nothing of ours could count it."""
    return allreduce_hook(state, bucket)


class Halves(LiteModule):
    """Two layers without a bias, under one optimizer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(40, 25, bias=False) for _ in range(2))

    def training_step(self, batch, batch_idx):
        return self.first(batch).square().mean() + self.second(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Named(torch.nn.Module):
    """The same layers, each with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(40, 25, bias=False) for _ in range(2))

    def forward(self, x):
        steps = [OptimizationStep(getattr(self, name)(x).square().mean(), name) for name in ("first", "second")]
        return steps, {}, torch.tensor(float(len(x)))


def main(output, strategy):
    torch.manual_seed(0)
    count = Count()
    batches = [torch.ones(3, 40)] * (2 + STEPS) * int(os.environ["WORLD_SIZE"])
    module, settings = Halves(), {"strategy": strategy}
    if strategy == "fsdp by windows":  # of two batches
        settings = {"strategy": FSDPStrategy(sync_each_batch=False), "accumulate_grad_batches": 2}
    if strategy.startswith("named"):
        blocks = {
            n: {"params": n, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01}} for n in ("first", "second")
        }
        module, settings = ESPnetModule(Named(), {"optimizers": blocks}), {"strategy": "ddp"}
        batches = [(["a", "b", "c"], {"x": batch}) for batch in batches]
    callbacks = [count, *([Looks()] if strategy.endswith("looks") else [])]
    trainer = quiet_trainer(max_epochs=1, devices=int(os.environ["WORLD_SIZE"]), callbacks=callbacks, **settings)
    trainer.fit(module, batches)
    if trainer.is_global_zero:
        with open(output, "w", encoding="utf-8") as file:
            json.dump(count.found(), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
