"""Which sample is when in an epoch, and which part of each step's samples is whose. No process group is needed here.

The order of an epoch is the same on all ranks; a step takes the next few of it, and each rank its share of them. How a
user's loader is rebuilt around this is in `loaders/rank_share.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy
import torch
from torch.utils.data import Sampler


def global_seed() -> int:
    """The run's seed: what `seed_everything` was given, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class EpochSampler(Sampler[int]):
    """All samples once an epoch, in an order that depends on seed and epoch alone.

    Neither the number of ranks nor the random numbers that were drawn meanwhile change it, so a run may stop in
    mid-epoch and go on with another number of ranks.

    Args:
        data: A data set, or how many samples there are. Asked for its length at each epoch.
        shuffle: False: the data set's own order, in each epoch. Default True.
        seed: What the order is drawn from, besides the epoch; the run's seed by default.

    Example:
        >>> sampler = EpochSampler(100, seed=1)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> second = list(sampler)
        >>> sorted(first) == sorted(second) == list(range(100)), first == second
        (True, False)
        >>> first == list(EpochSampler(100, seed=1))
        True
    """

    def __init__(self, data: Sized | int, shuffle: bool = True, seed: int | None = None):
        self.data, self.shuffle = data, shuffle
        self.seed = global_seed() if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data if isinstance(self.data, int) else len(self.data)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(len(self)))
        # Mixed, not added: epoch 1 of seed 3 is not epoch 0 of seed 4.
        mixed = numpy.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return iter(torch.randperm(len(self), generator=generator).tolist())


def share_of(items: Sequence, world_size: int, rank: int) -> Sequence:
    """A rank's part of the items: consecutive, and as even as can be.

    >>> [share_of([1, 2, 3, 4, 5], 3, rank) for rank in range(3)]
    [[1, 2], [3, 4], [5]]
    """
    size, rest = divmod(len(items), world_size)
    start = rank * size + min(rank, rest)
    return items[start : start + size + (rank < rest)]


class ShareSampler(Sampler):
    """The batches of one rank: of each step's items (samples, or whole batches) its share.

    A step takes the next `step_size` items of the epoch's order. Where items are samples, each rank gets a consecutive
    part. Where they are batches to be split, rank r gets every `world_size`-th sample from the r-th on, as in ESPnet3:
    a batch is sorted by length, and so each rank gets long and short ones. Where batches stay whole, rank r gets the
    r-th. The last step may have fewer. A rank that gets nothing there gets what the first rank gets, as a stand-in, and
    `is_stand_in` tells.

    Args:
        source: Gives the epoch's items when iterated over, the same ones on all ranks; knows their number.
        step_size: Items a step, over all ranks.
        world_size: Ranks.
        rank: Which of them this is.
        split: What becomes of a step's items: ``samples`` (a part of them is a batch), ``batches`` (one of them is a
            batch) or ``batch`` (the step's only item is a batch, of which each rank gets a part).
        drop_last: Leave out the last step where it is not full (only ``samples``).
        stand_ins: False: a rank that gets nothing in the last step simply has a batch less.

    Example:
        >>> sampler = ShareSampler(range(7), step_size=4, world_size=2, rank=1, split="samples")
        >>> list(sampler), len(sampler)
        ([[2, 3], [6]], 2)
        >>> sampler.start_epoch(position=5)
        >>> list(sampler), len(sampler)
        ([[6]], 1)
    """

    def __init__(
        self,
        source: Any,
        step_size: int,
        world_size: int,
        rank: int,
        split: str,
        drop_last: bool = False,
        stand_ins: bool = True,
    ):
        self.stand_ins = stand_ins
        self.source, self.step_size, self.split, self.drop_last = source, step_size, split, drop_last
        self.world_size, self.rank = world_size, rank
        #: Items of the epoch in work that were over before it was begun here.
        self.position = 0
        self.items: Sequence | None = None

    def start_epoch(self, position: int = 0) -> None:
        """Ask the source for the epoch's order, and leave out the first `position` items of it."""
        self.items, self.position = list(self.source), position

    def __len__(self) -> int:
        return self.steps_from(self.position)

    def steps_from(self, position: int) -> int:
        """Steps from an item of the epoch on."""
        remaining = max(0, len(self.source if self.items is None else self.items) - position)
        return remaining // self.step_size if self.drop_last else -(-remaining // self.step_size)

    def __iter__(self) -> Iterator[Any]:
        if self.items is None:
            self.start_epoch()
        for step in range(len(self)):
            taken = self._taken(step)
            if self._has_share(taken):
                yield self._part(taken, self.rank)
            elif self.stand_ins:
                yield self._part(taken, 0)

    def is_stand_in(self, step: int) -> bool:
        """True where the `step`-th batch, counted from where the iteration began, is another rank's."""
        return not self._has_share(self._taken(step))

    def _taken(self, step: int) -> Sequence:
        start = self.position + step * self.step_size
        return self.items[start : start + self.step_size]

    def _has_share(self, taken: Sequence) -> bool:
        return self.rank < len(taken[0] if self.split == "batch" else taken)

    def _part(self, taken: Sequence, rank: int) -> Any:
        if self.split == "batches":
            return taken[rank]
        if self.split == "batch":
            return taken[0][rank :: self.world_size]
        return share_of(taken, self.world_size, rank)
