"""A rank's batches. Samples with indices: its share of every step, each sample seeded by its place; else a stream.

Which sample is whose is `samplers.py`'s; what both kinds can do, and who waits for whom, is in `rank_loader.py`.
"""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.datapipes.datapipe import IterDataPipe

from espnet3_lite.loaders.rank_loader import END, RankLoader, length_of
from espnet3_lite.loaders.samplers import EpochSampler, ShareSampler
from espnet3_lite.loaders.worker_seeds import seeded_in_workers
from espnet3_lite.seed import Generator, collect_random_state, generators_in, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy


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

    def _begin(self) -> Iterator[Any]:
        """The epoch's order is drawn now, no sample is fetched in this process."""
        batches = begin(self.loader)
        self.sampler.draw()
        return self._marked(batches)

    def _marked(self, batches: Iterator[Any]) -> Iterator[Any]:
        given, marks = 0, self.sampler.marks
        for batch in batches if self.copy is None else self._one_ahead(next(batches, END), batches):
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


class StreamLoader(RankLoader):
    """A loader without indices: an iterable data set, a list or a generator of batches, a loader of the user's own.

    In training it is read one batch ahead, so that the last batch is known as such whatever its length says.

    Args:
        loader: The user's.
        ahead: Read one batch ahead.
    """

    def __init__(self, loader: Any, ahead: bool):
        super().__init__(loader)
        self.loader, self.ahead = loader, ahead
        self._skip = 0
        #: It is read in this process, and may draw from its generators.
        self._may_draw = not isinstance(loader, (list, tuple)) and not getattr(loader, "num_workers", 0)
        self._own: dict[str, Generator] = {}  # that the loader, its data set and the like keep for themselves
        # Workers that stay would keep their random state and their epoch; others get both with each epoch.
        they_stay = isinstance(loader, DataLoader) and loader.persistent_workers
        if they_stay and not isinstance(loader.dataset, IterDataPipe):
            changes = seeded_in_workers(loader)
            self._seeded, self.loader = changes["dataset"], rebuild(loader, **changes)

    def start_at(self, position: int) -> None:
        """Leave out the first `position` batches of the next epoch; they must be read."""
        self._skip = position

    def _begin(self) -> Iterator[Any]:
        """What is left out, and the first batch, are read now."""
        skip, self._skip, self._state = self._skip, 0, None
        self._own = generators_in({"loader": self.given}) if self._may_draw else {}
        batches = begin(self.loader)
        collections.deque(itertools.islice(batches, skip), maxlen=0)
        state, self.resumed_random_state = self.resumed_random_state, None
        if state is not None:
            restore_random_state(state, self._own)
        return self._one_ahead(next(batches, END), batches) if self.ahead else batches

    def _note_position(self) -> None:
        if hasattr(self.given, "state_dict"):
            self._state = copy.deepcopy(self.given.state_dict())
        if self._may_draw:
            self.random_state = collect_random_state(self._own)


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
