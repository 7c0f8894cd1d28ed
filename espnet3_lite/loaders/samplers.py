"""Which sample is when in an epoch, and which part of each step's samples is whose. No process group is needed here.

The order of an epoch is the same on all ranks; a step takes the next few of it, and each rank its share of them. How a
user's loader is rebuilt around this is in `rank_loader.py`.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch.utils.data import Sampler, SequentialSampler

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.seed import collect_random_state, same_random_state


def global_seed() -> int:
    """The run's seed: what `seed_everything` was given, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class EpochSampler(Sampler[int]):
    """All samples once an epoch, in an order that depends on seed and epoch alone.

    Neither the number of ranks nor the random numbers that were drawn meanwhile change it, so a run may stop in
    mid-epoch and go on with another number of ranks.

    Args:
        data: A data set, or how many samples there are. Asked for its length at each epoch.
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

    def __init__(self, data: Sized | int, seed: int | None = None):
        self.data = data
        self.seed = global_seed() if seed is None else seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data if isinstance(self.data, int) else len(self.data)

    def __iter__(self) -> Iterator[int]:
        # Mixed, not added: epoch 1 of seed 3 is not epoch 0 of seed 4.
        mixed = numpy.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return iter(torch.randperm(len(self), generator=generator).tolist())


def share_of(items: Sequence[Any], world_size: int, rank: int) -> Sequence[Any]:
    """A rank's part of the items: consecutive, and as even as can be.

    >>> [share_of([1, 2, 3, 4, 5], 3, rank) for rank in range(3)]
    [[1, 2], [3, 4], [5]]
    """
    size, rest = divmod(len(items), world_size)
    start = rank * size + min(rank, rest)
    return items[start : start + size + (rank < rest)]


@dataclass(eq=False)
class ShareSampler(Sampler[Any]):
    """The batches of one rank: of each step's items (samples, or whole batches) its share.

    A step takes the next `step_size` items of the epoch's order. Where items are samples, each rank gets a consecutive
    part. Where they are batches to be split, rank r gets every `world_size`-th sample from the r-th on, as in ESPnet3:
    a batch is sorted by length, and so each rank gets long and short ones. Where batches stay whole, rank r gets the
    r-th. The last step may have fewer. A rank that gets nothing there gets what the first rank gets, as a stand-in.

    Args:
        source: Gives the epoch's items when iterated over, the same ones on all ranks. One that knows their number is
            asked for all of them at the epoch's start; another one as the epoch goes on.
        step_size: Items a step, over all ranks.
        world_size: Ranks.
        rank: Which of them this is.
        split: What becomes of a step's items: ``samples`` (a part of them is a batch), ``batches`` (one of them is a
            batch), ``batch`` (the step's only item is a batch, of which each rank gets a part) or ``single`` (one of
            them is what the data set is asked for).
        drop_last: Leave out the last step where it is not full (only ``samples``).
        stand_ins: False: a rank that gets nothing in the last step simply has a batch less.
        placed: Give ``(place, index)`` for each index: its place in the epoch's order, over all ranks.
        places: What a place is in terms of this sampler's own count: ``(factor, offset)``.
        agree: Collective: from the items that this rank's source has drawn to those that count on all ranks.

    Attributes:
        position: How many of the epoch's items the next iteration leaves out.
        marks: For each batch that was given and not looked at yet: is it a stand-in, and is it the rank's last?

    Example:
        >>> sampler = ShareSampler(range(7), step_size=4, world_size=2, rank=1, split="samples")
        >>> list(sampler), len(sampler)
        ([[2, 3], [6]], 2)
        >>> sampler.position = 5
        >>> list(sampler), len(sampler)
        ([[6]], 1)
    """

    source: Any
    step_size: int
    world_size: int
    rank: int
    split: str
    drop_last: bool = False
    stand_ins: bool = True
    placed: bool = False
    places: tuple[int, int] = (1, 0)
    agree: Callable[[list[Any]], list[Any]] | None = None
    position: int = field(default=0, init=False)
    marks: deque[tuple[bool, bool]] = field(default_factory=deque, init=False)
    _items: Iterator[Any] = field(default=iter(()), init=False)
    #: The items of the step to come; None: the epoch's order is yet to be drawn.
    _following: list[Any] | None = field(default_factory=list, init=False)

    def __len__(self) -> int:
        return self.steps_after(self.position)

    def steps_after(self, position: int) -> int:
        """How many steps are left in an epoch behind so many of its items."""
        remaining = max(0, len(self.source) - position)
        return remaining // self.step_size if self.drop_last else -(-remaining // self.step_size)

    def __iter__(self) -> Iterator[Any]:
        # What draws its order when it is asked for an iterator does so now, as it would in a `DataLoader` of its own.
        # Within a `BatchSampler` it would be asked only for the first batch.
        asked_later = itertools.chain.from_iterable([self.source])
        self._items = asked_later if self.split == "samples" else iter(self.source)
        self._following, self.marks = None, deque()
        return self._give()

    def draw(self) -> None:
        """Ask the source for the epoch's order, unless that is done; one that does not know its number is asked for
        what is left out and for the first step, and for more as the epoch goes on.
        """
        if self._following is not None:
            return
        is_open = not hasattr(self.source, "__len__")
        if not is_open and not isinstance(self.source, SequentialSampler):
            items = list(self._items)
            self._items = iter(items if self.agree is None else self.agree(items))
        before = collect_random_state() if is_open and self.position else None
        self._items = itertools.islice(self._with_places(self._items), self.position, None)
        self._following = self._next_step()
        if before is not None and not same_random_state(before, collect_random_state()):
            rank_zero_warn(
                f"{type(self.source).__name__} has no `__len__` and draws from the global random generators while the "
                f"epoch goes on: the order of this resumed run may differ. Give it a generator of its own "
                f"(self.generator = torch.Generator()), whose state is kept"
            )

    def _give(self) -> Iterator[Any]:
        self.draw()
        while step := self._following:
            self._following = self._next_step()
            stands_in = self.rank >= len(step[0] if self.split == "batch" else step)
            if self.stand_ins or not stands_in:
                self.marks.append((stands_in, not self._following))
                yield self._part(step, 0 if stands_in else self.rank)

    def _with_places(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, in which each index stands with its place where that is wanted."""
        if not self.placed:
            return items
        factor, offset = self.places
        places = itertools.count(offset, factor)
        if self.split in ("batches", "batch"):
            return ([(next(places), index) for index in batch] for batch in items)
        return ((next(places), index) for index in items)

    def _next_step(self) -> list[Any]:
        step = list(itertools.islice(self._items, self.step_size))
        return step if len(step) == self.step_size or not self.drop_last else []

    def _part(self, step: list[Any], rank: int) -> Any:
        if self.split == "samples":
            return share_of(step, self.world_size, rank)
        return step[0][rank :: self.world_size] if self.split == "batch" else step[rank]
