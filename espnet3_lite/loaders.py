"""Data loaders as the loops need them: who provides them, how many batches, and from which batch on.

How data sets and samplers are built is `data/`; which rank sees which sample is `distributed/`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.seed import collect_random_state, restore_random_state


def request_loaders(trainer: Any, prefix: str) -> Any:
    """The loaders that were given to the call, else the data module's, else the module's.

    Args:
        trainer: The trainer that runs.
        prefix: ``train``, ``val``, ``test`` or ``predict``.

    Raises:
        MisconfigurationException: nobody provides them.
    """
    given = trainer.given_loaders.get(prefix)
    if given is not None:
        return given
    method = f"{prefix}_dataloader"
    for source in (trainer.datamodule, trainer.lightning_module):
        if source is not None and trainer.is_overridden(method, source):
            return getattr(source, method)()
    name = type(trainer.lightning_module).__name__
    raise MisconfigurationException(
        f"no loader for {trainer.state.fn}: pass {'train_dataloaders=' if prefix == 'train' else 'dataloaders='} to "
        f"Trainer.{trainer.state.fn}(), or define {name}.{method}()"
    )


def has_loaders(trainer: Any, prefix: str) -> bool:
    """True where `request_loaders` would find some."""
    sources = (trainer.datamodule, trainer.lightning_module)
    return trainer.given_loaders.get(prefix) is not None or any(
        source is not None and trainer.is_overridden(f"{prefix}_dataloader", source) for source in sources
    )


def length_of(loader: Any) -> int | float:
    """Batches in a loader; infinity where it does not say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an iterable data set without __len__
        return math.inf


def limited(length: int | float, limit: int | float, name: str) -> int | float:
    """How many batches to take: `limit` of `length`.

    >>> limited(10, 0.25, "limit_val_batches"), limited(10, 3, "limit_val_batches"), limited(math.inf, 5, "x")
    (2, 3, 5)
    """
    if length == 0:
        return 0
    if isinstance(limit, int):
        return min(length, limit)
    if length == math.inf:
        if limit in (0.0, 1.0):
            return 0 if limit == 0.0 else math.inf
        raise MisconfigurationException(
            f"{name}={limit}: a loader that does not know its length can be limited by a number of batches only; "
            f"give an int"
        )
    count = int(length * limit)
    if count == 0 and limit > 0:
        raise MisconfigurationException(
            f"{name}={limit} of {length} batches is none; give a larger fraction, at least {1 / length:.3g}"
        )
    return count


class TrainData:
    """The training loader over a whole run: its length, its epochs, its position.

    Args:
        trainer: Settings (`limit_train_batches`, ...) and strategy.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.loader: Any = None
        self.num_batches: int | float = 0
        self._loaded_in_epoch = 0
        #: The random state from which this epoch's order was drawn, and the loader's own generator's.
        self.epoch_random_state: dict | None = None
        self._generator_state: torch.Tensor | None = None
        #: What `state_dict` gave, for a run that resumes within an epoch.
        self.resume_state: dict | None = None

    def setup(self) -> None:
        """Ask for the loader, and count its batches."""
        trainer = self.trainer
        loader = request_loaders(trainer, "train")
        if isinstance(loader, (dict, list, tuple)) and not _is_batches(loader):
            raise MisconfigurationException(
                f"train_dataloader gave a {type(loader).__name__} of loaders; give one loader "
                f"(combine the data sets with torch.utils.data.ConcatDataset or StackDataset)"
            )
        if not hasattr(loader, "__iter__"):
            raise MisconfigurationException(f"the training loader must be iterable, got {type(loader).__name__}")
        if trainer.overfit_batches:
            loader = without_shuffling(loader)
        self.loader = trainer.strategy.prepare_loader(loader, training=True)
        self.num_batches = limited(length_of(self.loader), trainer.limit_train_batches, "limit_train_batches")
        self._loaded_in_epoch = trainer.current_epoch

    def reload_if_due(self) -> None:
        """``reload_dataloaders_every_n_epochs``."""
        every, epoch = self.trainer.reload_dataloaders_every_n_epochs, self.trainer.current_epoch
        if every and epoch - self._loaded_in_epoch >= every:
            self.setup()

    def start_epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Any, bool]]:
        """Iterate over (batch, is it the epoch's last), from batch `skip` on; what is skipped is not loaded."""
        if self.resume_state is not None:
            self._restore(self.resume_state)
            self.resume_state = None
        self.epoch_random_state = collect_random_state()
        self._generator_state = generator.get_state() if (generator := _generator_of(self.loader)) else None
        set_epoch(self.loader, epoch)
        loader = skip_batches(self.loader, skip) if skip else self.loader
        batches = iter(loader)
        if self.num_batches == math.inf:
            return _look_ahead(batches)
        return _counted(batches, skip, int(self.num_batches))

    def state_dict(self) -> dict[str, Any]:
        """What the order of the epoch in work was drawn from."""
        stateful = self.loader.state_dict() if hasattr(self.loader, "state_dict") else None
        return {"random": self.epoch_random_state, "generator": self._generator_state, "loader": stateful}

    def _restore(self, state: dict[str, Any]) -> None:
        """Draw the same order as the epoch that was cut."""
        restore_random_state(state["random"])
        generator = _generator_of(self.loader)
        if generator is not None and state["generator"] is not None:
            generator.set_state(state["generator"])
        if state["loader"] is not None and hasattr(self.loader, "load_state_dict"):
            self.loader.load_state_dict(state["loader"])


def _is_batches(loader: Any) -> bool:
    """A plain list of batches is a loader too; a list or dict of loaders is not."""
    return isinstance(loader, (list, tuple)) and not any(isinstance(item, DataLoader) for item in loader)


def _generator_of(loader: Any) -> torch.Generator | None:
    return getattr(loader, "generator", None) or getattr(getattr(loader, "sampler", None), "generator", None)


def _counted(batches: Iterator, first: int, count: int) -> Iterator[tuple[Any, bool]]:
    """No batch is fetched before it is asked for: random numbers that loading draws stay in the step they belong to."""
    for index, batch in enumerate(itertools.islice(batches, count - first), start=first + 1):
        yield batch, index == count


def _look_ahead(batches: Iterator) -> Iterator[tuple[Any, bool]]:
    """A loader without a length: one batch ahead, to know the last one."""
    end = object()
    batch = next(batches, end)
    while batch is not end:
        following = next(batches, end)
        yield batch, following is end
        batch = following


class _SkippingBatchSampler:
    """A batch sampler without its first batches; their indices are drawn and dropped, nothing is loaded."""

    def __init__(self, batch_sampler: Any, skip: int):
        self.batch_sampler, self.skip = batch_sampler, skip

    def __iter__(self) -> Iterator:
        return itertools.islice(iter(self.batch_sampler), self.skip, None)

    def __len__(self) -> int:
        return max(0, len(self.batch_sampler) - self.skip)


def skip_batches(loader: Any, skip: int) -> Any:
    """The same loader without its first batches. A map-style `DataLoader` skips indices; others must be read through."""
    if hasattr(loader, "load_state_dict"):
        return loader  # it knows its own position
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        if isinstance(loader, (list, tuple)):
            return loader[skip:]
        return itertools.islice(iter(loader), skip, None)
    if loader.batch_sampler is None:
        return rebuild(loader, sampler=_SkippingBatchSampler(loader.sampler, skip), batch_size=None)
    return rebuild(loader, batch_sampler=_SkippingBatchSampler(loader.batch_sampler, skip))


def without_shuffling(loader: Any) -> Any:
    """The loader in the data set's order (`overfit_batches`: the same batches each epoch)."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RandomSampler):
        return loader
    rank_zero_warn("overfit_batches: shuffling of the training loader is turned off")
    sampler = SequentialSampler(loader.dataset)
    return rebuild(loader, sampler=sampler, batch_size=loader.batch_size, drop_last=loader.drop_last)


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
