"""Training steps on two ranks: `DistributedDataParallel` with the vote on both sides. Also the ranks' own script.

A step is two or three messages, and lasts as long as the ranks wait for each other: on a machine with as many cores as
ranks one step in a few takes many times as long as the others, whenever something else runs. So each step is timed, and
a sample is a block's median step; blocks are short, and both sides' alternate. Neither the ends of an epoch count, nor
the first two steps, within which DDP arranges its buckets.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measuring import BY_HAND, Options, Row, Samples, clock, now, use_clock
from benchmarks.steps import Model, Module, Outcome, compare, fit, make_batches, make_layer, named_module
from espnet3_lite import Callback, LiteModule


def vote(loss_is_finite: bool) -> bool:
    """What the ranks must know of one another in a batch, by hand: one small vector, one all-reduce."""
    vector = torch.tensor([not loss_is_finite, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    dist.all_reduce(vector)
    return not vector[0].item()


def ddp_by_hand(batches: list[Any]) -> Outcome:
    """Seconds of the median step of one layer under DDP, and its weight."""
    plain = make_layer()
    layer = torch.nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    begun = []
    for x, y in batches:
        begun.append(now())
        loss = torch.nn.functional.mse_loss(layer(x), y)
        if not vote(math.isfinite(loss.item())):
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return median_step(begun), plain.weight.detach()


def named_by_hand(batches: list[Any]) -> Outcome:
    """Two optimizers. Their gradients are averaged by one flat all-reduce, for both step in each batch."""
    model = Model(named=True)
    layers = [model.first, model.second]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in layers]
    parameters = [[*layer.parameters()] for layer in layers]
    sizes = [parameter.numel() for of_one in parameters for parameter in of_one]
    begun = []
    for _, batch in batches:
        begun.append(now())
        steps, _, _ = model(**batch)
        if not vote(all(math.isfinite(step.loss.item()) for step in steps)):
            continue
        for step, of_one, optimizer in zip(steps, parameters, optimizers, strict=True):
            optimizer.zero_grad()
            step.loss.backward(inputs=of_one)
        gradients = [parameter.grad for of_one in parameters for parameter in of_one]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
        dist.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(piece.view_as(gradient))
        for optimizer in optimizers:
            optimizer.step()
    return median_step(begun), model.first.weight.detach()


class Beginnings(Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begun.append(now())


def median_step(begun: list[float]) -> float:
    """Seconds from the beginning of a step to that of the next; not of the first two.

    >>> median_step([0.0, 9.0, 12.0, 13.0, 15.0, 18.0])
    2.0
    """
    return statistics.median(after - before for before, after in itertools.pairwise(begun[2:]))


def fit_on_ranks(module: LiteModule, batches: list[Any]) -> float:
    """Seconds of the median step of one epoch: each rank trains on all of the batches, as by hand."""
    settings = {"devices": dist.get_world_size(), "strategy": "ddp", "use_distributed_sampler": False}
    beginnings = Beginnings()
    fit(module, batches, [beginnings], **settings)
    return median_step(beginnings.begun)


def ddp(batches: list[Any]) -> Outcome:
    """The trainer's step with one optimizer."""
    module = Module()
    return fit_on_ranks(module, batches), module.layer.weight.detach()


def named(batches: list[Any]) -> Outcome:
    """The trainer's step with two named ones."""
    module = named_module()
    return fit_on_ranks(module, batches), module.model.first.weight.detach()


SIDES: dict[str, dict[str, Callable[[list[Any]], Outcome]]] = {
    "ddp": {BY_HAND: ddp_by_hand, "espnet3_lite": ddp},
    "named-ranks": {BY_HAND: named_by_hand, "espnet3_lite": named},
}


def _on_two_ranks(options: Options, name: str) -> Samples:
    output = options.folder / f"{name}.json"
    arguments = [name, output, max(20, options.count(100)), 5 * options.repetitions, clock()]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
        "benchmarks.ranks", *map(str, arguments),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise RuntimeError(f"the ranks of {name!r} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return json.loads(output.read_text())


def main(name: str, output: str, count: str, repetitions: str, clock_name: str) -> None:
    """In each rank: measure both sides in alternation; rank 0 writes the samples."""
    use_clock(clock_name)
    warnings.simplefilter("ignore")
    logging.getLogger("espnet3_lite").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    batches = make_batches(int(count), espnet=name == "named-ranks")
    options = Options(Path(output).parent, int(repetitions))
    samples = compare(options, {side: lambda run=run: run(batches) for side, run in SIDES[name].items()})
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(samples))
    dist.barrier()
    dist.destroy_process_group()


ROWS = (
    Row("ddp", "DDP, 2 gloo ranks, the vote on both sides", 1.03, "us", lambda o: _on_two_ranks(o, "ddp")),
    Row("named-ranks", "two named optimizers, 2 ranks", 1.03, "us", lambda o: _on_two_ranks(o, "named-ranks")),
)

if __name__ == "__main__":
    main(*sys.argv[1:])
