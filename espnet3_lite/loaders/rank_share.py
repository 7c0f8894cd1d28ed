"""A loader as one rank uses it. Where samples have indices: its share of every step, each sample seeded by its place.

Which sample is whose is `samplers.py`'s; loaders without indices are in `uneven_ranks.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from espnet3_lite.loaders.samplers import EpochSampler, ShareSampler
from espnet3_lite.loaders.worker_seeds import SeededInWorkers, seeded_in_workers, tell_epoch

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy


class RankLoader:
    """A user's loader as one rank uses it.

    Args:
        given: The user's.

    Attributes:
        replaying: While it is iterated over: the rank has nothing of its own in this step, and takes part in it with
            zero weight.
        ended: While it is iterated over: the batch that it gave last is the rank's last one of the epoch.
        gave_batches: The rank has had batches of its own in some epoch; who iterates over it says so.
        length: Batches an epoch; infinity where that is not known.
        step_size: Items (samples, or whole batches) of a step over all ranks.
        limit: No batch after so many of the next epoch is read ahead.
        random_state: What this process's generators were like before the batch that was read ahead; None where no
            batch is.
        resumed_random_state: What they are set to in a run that resumes, before the first batch that is not left out.
    """

    #: An epoch ends when the vote says that all ranks are out. False: all ranks' epochs end with the same step.
    waits_for_others = False

    def __init__(self, given: Any):
        self.given, self.step_size = given, 1
        self.replaying = self.ended = self.gave_batches = False
        self.limit: int | float = math.inf
        self.length = length_of(given)
        self.random_state: dict[str, Any] | None = None
        self.resumed_random_state: dict[str, Any] | None = None
        self._seeded: SeededInWorkers | None = None

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        tell_epoch(self.given, epoch)
        if self._seeded is not None:
            self._seeded.set_epoch(epoch)

    def start_at(self, position: int) -> None:
        """Leave out so many of the next epoch's items."""
        raise NotImplementedError

    def state_dict(self) -> Any:
        """The user's loader's own position behind the batch that was given last; None where it has none."""
        return self.given.state_dict() if hasattr(self.given, "state_dict") else None

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch. All ranks call it together."""
        raise NotImplementedError


class SharedLoader(RankLoader):
    """A rank's share of a map-style `DataLoader`: over all ranks each sample once an epoch.

    Args:
        loader: The user's; its data set, collate function and workers are kept, its sampler says what an epoch is.
        strategy: Which rank of how many; with one process it gives what the loader gives.
        stand_ins: See `ShareSampler`.
        by_epoch: Shuffle by seed and epoch where the loader's own `RandomSampler` would shuffle from the random state.
            By default where the strategy deals samples out.
        seed: For an order by seed and epoch; the run's seed by default.
        alone: The loader holds this rank's samples alone: nothing is dealt out.

    Example:
        >>> from espnet3_lite.distributed.single import Strategy
        >>> shared = SharedLoader(DataLoader([1, 2, 3], batch_size=2), Strategy(torch.device("cpu")))
        >>> [batch.tolist() for batch in shared]
        [[1, 2], [3]]
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        strategy: Strategy,
        stand_ins: bool = True,
        by_epoch: bool | None = None,
        seed: int | None = None,
        alone: bool = False,
    ):
        super().__init__(loader)
        here = (strategy.world_size, strategy.global_rank)
        ranks, rank = (1, 0) if alone else here
        self.order, own_step, split = how_dealt(loader)
        if _is_plain_shuffle(self.order) and (strategy.deals_out and not alone if by_epoch is None else by_epoch):
            self.order = EpochSampler(self.order.data_source, seed=seed)
        #: Its order is drawn from the random state, and not from seed and epoch.
        self.is_drawn = not order_is_agreed(self.order)
        self.step_size = own_step if split == "batch" else own_step * ranks
        seeded = seeded_in_workers(loader, seed)
        self._seeded = seeded.get("dataset")
        self.sampler = ShareSampler(
            self.order, self.step_size, ranks, rank, split,
            drop_last=split == "samples" and getattr(loader.batch_sampler, "drop_last", False),
            stand_ins=stand_ins, placed=bool(seeded), places=here if alone else (1, 0),
            agree=strategy.broadcast if ranks > 1 and self.is_drawn else None,
        )  # fmt: skip
        self.length = length_of(self.sampler)
        self.loader = rebuild(loader, **seeded, **{"sampler" if split == "single" else "batch_sampler": self.sampler})

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is for this epoch, counted from 0."""
        super().set_epoch(epoch)
        if isinstance(self.order, EpochSampler):
            self.order.set_epoch(epoch)
        self.sampler.position = 0

    def start_at(self, position: int) -> None:
        """Leave out the first `position` items of the next epoch; none of them is loaded."""
        self.sampler.position = position

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch: its order is drawn now, no sample is fetched in this process. All ranks call it together."""
        self.replaying = self.ended = False
        batches = begin(self.loader)
        self.sampler.draw()
        return self._marked(batches)

    def _marked(self, batches: Iterator[Any]) -> Iterator[Any]:
        given, marks = 0, self.sampler.marks
        for batch in batches:
            self.replaying, self.ended = marks.popleft()
            given += 1
            yield batch
        self.replaying = False
        if marks:
            raise RuntimeError(
                f"a loader ended after {given} batches of an epoch, though its sampler had more: a StopIteration "
                f"came out of {type(self.given.dataset).__name__}.__getitem__ or the collate function (a `next(...)` "
                f"without a default, on something that is at its end)"
            )


def is_map_style(loader: Any) -> bool:
    """True for a `DataLoader` whose samples have indices."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def goes_its_own_way(loader: Any) -> bool:
    """True for a loader that iterates as its own class says, or keeps its own position."""
    return type(loader).__iter__ is not DataLoader.__iter__ or hasattr(loader, "state_dict")


def how_dealt(loader: DataLoader[Any]) -> tuple[Any, int, str]:
    """What a loader's epoch consists of: the items' sampler, how many one process takes a step, and `split`."""
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return loader.sampler, 1, "single"
    if type(batch_sampler) is BatchSampler:
        return batch_sampler.sampler, batch_sampler.batch_size, "samples"
    whole = getattr(batch_sampler, "batch_distribution", "per_gpu") != "global"
    return batch_sampler, 1, "batches" if whole else "batch"


def order_is_agreed(items: Any) -> bool:
    """True where a sampler's order depends on nothing but the epoch, so that all ranks know it."""
    return isinstance(items, (EpochSampler, SequentialSampler)) or hasattr(items, "batch_distribution")


def _is_plain_shuffle(items: Any) -> bool:
    return type(items) is RandomSampler and not items.replacement and items.num_samples == len(items.data_source)


def rebuild(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A copy of a `DataLoader`, of its own class, with another data set or sampler."""
    clone = copy.copy(loader)
    vars(clone).update(_iterator=None, **changes)  # torch refuses to have these set, so that workers know of them
    return clone


def begin(loader: Any) -> Iterator[Any]:
    """Iterate over a loader, which draws its workers' seed from the random state now.

    Where its workers have stayed from an epoch before (`persistent_workers`), torch would draw none. A run that resumes
    has new workers: for its random numbers to be the same ones, a seed is drawn in either case.
    """
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return iter(loader)


def length_of(loader: Any) -> int | float:
    """Batches in a loader; infinity where it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set without __len__
        return math.inf
