"""A user's loader, as each of several ranks uses it: its share of every step, or its own batches until all are out.

Which sample is whose is `samplers.py`'s. A loader knows while it is iterated over whether the batch that it gave last
is `replaying`: then the rank has nothing of its own in this step, and takes part with zero weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.samplers import EpochSampler, ShareSampler

_END = object()


class SharedLoader:
    """A rank's share of a map-style `DataLoader`: over all ranks each sample once an epoch.

    Args:
        loader: The user's; its data set, collate function and workers are kept, its sampler says what an epoch is.
        strategy: Which rank of how many; with one it gives what the loader gives.
        stand_ins: See `ShareSampler`.
        drawn: Shuffle as the loader's own `RandomSampler` would, from the random state, and not by seed and epoch: to
            go on in an epoch that was begun in that order.
        seed: For an order by seed and epoch; the run's seed by default.

    Example:
        >>> from espnet3_lite.distributed.single import Strategy
        >>> shared = SharedLoader(DataLoader([1, 2, 3], batch_size=2), Strategy(torch.device("cpu")))
        >>> [batch.tolist() for batch in shared]
        [[1, 2], [3]]
    """

    def __init__(
        self, loader: DataLoader, strategy: Any, stand_ins: bool = True, drawn: bool = False, seed: int | None = None
    ):
        self.given = loader
        self.dataset = loader.dataset
        self.replaying = False
        items, own_step, split = how_dealt(loader)
        if _is_plain_shuffle(items) and not drawn:
            self.order = EpochSampler(items.data_source, seed=seed)
        else:
            self.order = items if order_is_agreed(items) else DrawnOrder(loader, items, strategy)
        #: Items (samples, or whole batches) of a step over all ranks.
        self.step_size = own_step if split == "batch" else own_step * strategy.world_size
        self.sampler = ShareSampler(
            self.order, self.step_size, strategy.world_size, strategy.rank, split,
            drop_last=split == "samples" and loader.drop_last, stand_ins=stand_ins,
        )  # fmt: skip
        if loader.batch_sampler is None:
            self.loader = rebuild(loader, sampler=self.sampler, batch_size=None)
        else:
            self.loader = rebuild(loader, batch_sampler=self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 0. All ranks call it: an order that is drawn is rank zero's."""
        set_epoch(self.given, epoch)
        if isinstance(self.order, EpochSampler):
            self.order.set_epoch(epoch)
        self.sampler.start_epoch()

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self.loader):
            self.replaying = self.sampler.is_stand_in(step)
            yield batch
        self.replaying = False


class DrawnOrder:
    """What a loader's own sampler draws on rank zero, for all ranks.

    Args:
        loader: The user's.
        items: Its sampler, or its sampler of batches.
        strategy: To hand rank zero's order to the others.
    """

    def __init__(self, loader: DataLoader, items: Any, strategy: Any):
        self.loader, self.items, self.strategy = loader, items, strategy

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        # A DataLoader draws its workers' seed before its sampler draws: this way the order is what it would be there.
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        return iter(self.strategy.broadcast_object(list(self.items)))  # collective: all ranks begin an epoch together


class OwnLoader:
    """A loader of which each rank has its own batches, and maybe not as many as the others.

    That is an iterable data set, a loader that is not a `DataLoader`, or one that the user has dealt out. In training,
    a rank that has run out gives its last batch again and again, `replaying`, until the vote says that all are out; a
    rank that never had one gets another rank's. In evaluation it ends, unless all ranks must run equally often.

    Args:
        loader: This rank's.
        strategy: For the other ranks. Making an `OwnLoader` is a collective.
        training: Go on until all ranks are out.
    """

    def __init__(self, loader: Any, strategy: Any, training: bool):
        self.given, self.strategy, self.training = loader, strategy, training
        self.dataset = getattr(loader, "dataset", None)
        self.replaying = False
        #: This rank has no batch after the one that it gave last.
        self.ended = False
        self._skip = 0
        lengths = strategy.gather_objects(length_of(loader))  # collective: all ranks ask for their loaders together
        self.length = max(lengths)

    def __len__(self) -> int:
        if self.length == math.inf:
            raise TypeError(f"the number of batches in {type(self.given).__name__} is not known")
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts of the user's loader."""
        set_epoch(self.given, epoch)

    def start_at(self, batches: int) -> None:
        """Leave out the first `batches` batches of the next epoch."""
        self._skip = batches

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        self.replaying = self.ended = False
        if self.training:
            return self._until_all_are_out(skip)
        return self._equally_often() if self.strategy.equal_batches else iter(self.given)

    def _until_all_are_out(self, skip: int) -> Iterator[Any]:
        batches = iter(self.given)
        batch = next(batches, _END)
        # Collective: all ranks begin an epoch together.
        have = self.strategy.gather_objects(batch is not _END)
        if not any(have):
            return
        if not all(have):
            lent = self.strategy.broadcast_object(batch, source=have.index(True))
            batch, self.replaying = (lent, True) if batch is _END else (batch, False)
        while True:
            following = _END if self.ended else next(batches, _END)
            self.ended = following is _END
            if skip:
                skip -= 1
            else:
                yield batch
            if self.ended:
                self.replaying = True
            else:
                batch = following

    def _equally_often(self) -> Iterator[Any]:
        batches = iter(self.given)
        batch = next(batches, _END)
        have = self.strategy.gather_objects(batch is not _END)  # collective: all ranks evaluate together
        if any(have) and not all(have):
            lent = self.strategy.broadcast_object(batch, source=have.index(True))
            batch, self.replaying = (lent, True) if batch is _END else (batch, False)
        going_on = any(have)
        while going_on:
            yield batch
            following = _END if self.replaying else next(batches, _END)
            self.replaying = following is _END
            batch = batch if self.replaying else following
            going_on = self.strategy.any(not self.replaying)  # collective: once a batch, on all ranks


def prepare_loader(loader: Any, strategy: Any, training: bool, deal_out: bool) -> Any:
    """The loader that gives this rank its share. All ranks call it together.

    Args:
        loader: A `DataLoader`, a list of batches, or any iterable of batches.
        strategy: Which rank of how many.
        training: A rank without data takes part all the same.
        deal_out: False: the user has dealt the samples out (``use_distributed_sampler=False``).
    """
    if isinstance(loader, (list, tuple)):
        loader = DataLoader(loader, batch_size=None, collate_fn=_as_it_is)
    dealt_by_user = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    if deal_out and is_map_style(loader) and not dealt_by_user:
        check_same_epochs(loader, strategy)
        return SharedLoader(loader, strategy, stand_ins=training or strategy.equal_batches)
    return OwnLoader(loader, strategy, training)


def check_same_epochs(loader: DataLoader, strategy: Any) -> None:
    """An epoch has an end, and is the same one on all ranks. Collective.

    Raises:
        MisconfigurationException: on all ranks.
    """
    items, step_size, split = how_dealt(loader)
    kind = "samples" if split == "samples" else "batches"
    each = strategy.gather_objects((length_of(items), step_size))  # collective: all ranks prepare it together
    without_length = [rank for rank, (length, _) in enumerate(each) if length == math.inf]
    if without_length:
        raise MisconfigurationException(
            f"a loader's {type(items).__name__} has no `__len__` (rank {without_length[0]}), and so an epoch of it "
            f"cannot be dealt out to the ranks. Define `__len__`, or let each rank draw its own with "
            f"Trainer(use_distributed_sampler=False)"
        )
    if len(set(each)) > 1:
        found = "; ".join(f"rank {rank}: {length} {kind}, {size} a step" for rank, (length, size) in enumerate(each))
        raise MisconfigurationException(
            f"the ranks' loaders differ ({found}). Each rank must give the same loader, over all samples, which is "
            f"then dealt out; where each rank has data of its own, set Trainer(use_distributed_sampler=False)"
        )


def is_map_style(loader: Any) -> bool:
    """True for a `DataLoader` whose samples have indices."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def how_dealt(loader: DataLoader) -> tuple[Any, int, str]:
    """What a loader's epoch consists of: the items' sampler, how many one process takes a step, and `split`."""
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return loader.sampler, 1, "batches"
    if type(batch_sampler) is BatchSampler:
        return batch_sampler.sampler, batch_sampler.batch_size, "samples"
    whole = getattr(batch_sampler, "batch_distribution", "per_gpu") != "global"
    return batch_sampler, 1, "batches" if whole else "batch"


def order_is_agreed(items: Any) -> bool:
    """True where a sampler's order depends on nothing but the epoch, so that all ranks know it."""
    return isinstance(items, (EpochSampler, SequentialSampler)) or hasattr(items, "batch_distribution")


def _is_plain_shuffle(items: Any) -> bool:
    return type(items) is RandomSampler and not items.replacement and items.num_samples == len(items.data_source)


def _as_it_is(batch: Any) -> Any:
    return batch


def rebuild(loader: DataLoader, **changes: Any) -> DataLoader:
    """A `DataLoader` like the given one, but for its sampler."""
    names = (
        "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
        "persistent_workers",
    )  # fmt: skip
    settings = {name: getattr(loader, name) for name in names}
    if loader.num_workers > 0:
        settings["prefetch_factor"] = loader.prefetch_factor
    return DataLoader(loader.dataset, **{**settings, **changes})


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell every part of a loader that wants to know (samplers that shuffle by epoch)."""
    parts = (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset")))
    batch_sampler = getattr(loader, "batch_sampler", None)
    for part in (*parts, getattr(batch_sampler, "sampler", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def length_of(loader: Any) -> int | float:
    """Batches in a loader; infinity where it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set without __len__
        return math.inf
