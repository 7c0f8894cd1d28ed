"""Data loaders as the loops need them: who provides them, how many batches, and from which batch on.

How data sets and samplers are built is `data/`; which rank sees which sample is `distributed/`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.rank_share import (
    DrawnOrder,
    OwnLoader,
    SharedLoader,
    how_dealt,
    is_map_style,
    length_of,
    order_is_agreed,
    rebuild,
    set_epoch,
)
from espnet3_lite.loaders.samplers import EpochSampler, global_seed
from espnet3_lite.seed import collect_random_state, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


_END = object()


def request_loaders(trainer: Trainer, prefix: str) -> Any:
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


def has_loaders(trainer: Trainer, prefix: str) -> bool:
    """True where `request_loaders` would find some."""
    sources = (trainer.datamodule, trainer.lightning_module)
    return trainer.given_loaders.get(prefix) is not None or any(
        source is not None and trainer.is_overridden(f"{prefix}_dataloader", source) for source in sources
    )


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


def _size_of(loader: Any) -> str:
    """Why it may be empty: what it says of itself."""
    dataset = getattr(loader, "dataset", None)
    known = {"samples": len(dataset)} if hasattr(dataset, "__len__") else {}
    known.update({name: getattr(loader, name) for name in ("batch_size", "drop_last") if hasattr(loader, name)})
    return ", ".join([type(loader).__name__, *(f"{name}={value}" for name, value in known.items())])


class TrainData:
    """The training loader over a whole run: its length, its epochs, its position.

    Args:
        trainer: Settings (`limit_train_batches`, ...) and strategy.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.loader: Any = None
        self.num_batches: int | float = math.inf  # not known yet
        #: The index of the batch that `start_epoch` begins with: not 0 in a run that resumes within an epoch.
        self.first_batch = 0
        self._loaded_in_epoch = 0
        #: What iterates over the epoch in work; where its first batch stands, in samples (or batches) over all ranks.
        self._loader_in_use: Any = None
        self._first_item = 0
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
        if self.num_batches == 0:
            rank_zero_warn(f"the training loader gives no batches, so that nothing is trained: {_size_of(loader)}")
        self._loaded_in_epoch = trainer.current_epoch

    def reload_if_due(self) -> None:
        """``reload_dataloaders_every_n_epochs``."""
        every, epoch = self.trainer.reload_dataloaders_every_n_epochs, self.trainer.current_epoch
        if every and epoch - self._loaded_in_epoch >= every:
            self.setup()

    # ---- an epoch --------------------------------------------------------------------------------------------------

    def start_epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Any, bool]]:
        """Iterate over (batch, is it the epoch's last).

        Args:
            epoch: From 0.
            skip: Leave out that many batches, which are over already; what has indices is not loaded. In a run that
                resumes, the checkpoint's own position counts, which another number of ranks may have reached.
        """
        state, self.resume_state = self.resume_state, None
        if state is not None:
            self._restore(state)
        self.epoch_random_state = collect_random_state()
        self._generator_state = generator.get_state() if (generator := _generator_of(self.loader)) else None
        self.first_batch, self._first_item = skip, 0
        self._loader_in_use = loader = self._resumed_loader(state) if skip else self.loader
        set_epoch(loader, epoch)
        if skip and isinstance(loader, SharedLoader):
            known = state is not None and state["position"] is not None
            self._first_item = state["position"] if known else skip * loader.step_size
            self.first_batch = self._go_on_at(loader, self._first_item)
        elif skip and isinstance(loader, OwnLoader):
            loader.start_at(skip)
        elif skip and (state is None or state["loader"] is None or not hasattr(loader, "load_state_dict")):
            loader = _without_first(loader, skip)  # the others know their own position
        batches = begin(loader)
        if skip or state is not None:  # the order, and what was left out, draw before the run's own state is put back
            batches = itertools.chain([first for first in (next(batches, _END),) if first is not _END], batches)
        if self.num_batches != math.inf:
            return _counted(batches, self.first_batch, int(self.num_batches))
        if isinstance(loader, OwnLoader):
            return ((batch, False) for batch in batches)  # the vote finds out which is the last
        return _look_ahead(batches)

    def _go_on_at(self, loader: SharedLoader, position: int) -> int:
        """Let the epoch go on at `position`; returns the index of the batch there, so that the last one's is kept."""
        loader.sampler.position = position
        remaining = len(loader)
        if self.num_batches == math.inf:
            self.num_batches = position // loader.step_size + remaining
        elif self.num_batches * loader.step_size < position + remaining * loader.step_size:  # `limit_train_batches`
            remaining = max(0, -(-(int(self.num_batches) * loader.step_size - position) // loader.step_size))
        return int(self.num_batches) - remaining

    @property
    def replaying(self) -> bool:
        """This rank has no data for the step in work, and takes part with zero weight."""
        return getattr(self._loader_in_use, "replaying", False)

    @property
    def ended(self) -> bool:
        """This rank has no batch after the one in work; others may have."""
        return getattr(self._loader_in_use, "ended", False)

    # ---- its position ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the order of the epoch in work was drawn from, and how much of it is over, whatever the number of ranks.

        All ranks call it. `position` counts samples over all ranks (whole batches where batches are dealt out), and is
        None for a loader without indices.
        """
        loader, strategy = self.loader, self.trainer.strategy
        position, drawn = None, False
        if (dealt := _dealt(self._loader_in_use, strategy)) is not None:
            step_size, drawn = dealt
            position = self._first_item + (self.trainer.fit_loop.batches_done - self.first_batch) * step_size
        given = getattr(loader, "given", loader)
        own = strategy.gather_objects(given.state_dict()) if hasattr(given, "state_dict") else None  # collective
        return {
            "random": self.epoch_random_state, "generator": self._generator_state, "loader": own,
            "position": position, "drawn": drawn, "seed": global_seed(), "ranks": strategy.world_size,
        }  # fmt: skip

    def resume_from_loader_state(self, state: dict[str, Any]) -> None:
        """Let the loader go on from its own `state_dict`, which is all that a file of Lightning's has of the data."""
        self.resume_state = {
            "random": collect_random_state(), "generator": None, "loader": [state], "position": None, "drawn": True,
            "seed": None,
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        """Draw the same order as the epoch that was cut."""
        restore_random_state(state["random"])
        generator = _generator_of(self.loader)
        if generator is not None and state["generator"] is not None:
            generator.set_state(state["generator"])
        given = getattr(self.loader, "given", self.loader)
        if state["loader"] is not None and hasattr(given, "load_state_dict"):
            given.load_state_dict(state["loader"][self.trainer.global_rank % len(state["loader"])])

    def _resumed_loader(self, state: dict[str, Any] | None) -> Any:
        """What goes on with a cut epoch: for a map-style loader in the order in which it was begun."""
        strategy, loader = self.trainer.strategy, self.loader
        given = loader.given if isinstance(loader, SharedLoader) else loader
        if not is_map_style(given) or hasattr(given, "load_state_dict"):
            if state is not None and state.get("ranks", strategy.world_size) != strategy.world_size:
                rank_zero_warn(
                    f"the checkpoint was written by {state['ranks']} processes, this run has {strategy.world_size}: a "
                    f"loader without indices goes on after as many batches on each, so that what is left of this epoch "
                    f"may repeat or lack samples"
                )
            return loader
        if state is None or state["position"] is None:
            return loader if isinstance(loader, SharedLoader) else SharedLoader(given, strategy, drawn=True)
        return SharedLoader(given, strategy, drawn=state["drawn"], seed=state["seed"])


def begin(loader: Any) -> Iterator[Any]:
    """Iterate over a loader, which draws its workers' seed from the random state now.

    Where its workers have stayed from an epoch before (`persistent_workers`), torch would draw none. A run that resumes
    has new workers: for its random numbers to be the same ones, a seed is drawn in either case.
    """
    given = getattr(loader, "loader", loader)
    if getattr(given, "persistent_workers", False) and getattr(given, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_(generator=given.generator)
    return iter(loader)


def _is_batches(loader: Any) -> bool:
    """A plain list of batches is a loader too; a list or dict of loaders is not."""
    return isinstance(loader, (list, tuple)) and not any(isinstance(item, DataLoader) for item in loader)


def _generator_of(loader: Any) -> torch.Generator | None:
    loader = getattr(loader, "given", loader)
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


def _without_first(loader: Any, skip: int) -> Any:
    """What has no indices must be read through."""
    return loader[skip:] if isinstance(loader, (list, tuple)) else itertools.islice(iter(loader), skip, None)


def _dealt(loader: Any, strategy: Any) -> tuple[int, bool] | None:
    """Items of a step over all ranks, and whether their order was drawn from the random state; None without indices."""
    if isinstance(loader, SharedLoader):
        return loader.step_size, isinstance(loader.order, DrawnOrder)
    if strategy.world_size == 1 and is_map_style(loader):
        items, step_size, _ = how_dealt(loader)
        return step_size, not order_is_agreed(items)
    return None


def without_shuffling(loader: Any) -> Any:
    """The loader in the data set's order (`overfit_batches`: the same batches each epoch)."""
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, (RandomSampler, EpochSampler)):
        return loader
    rank_zero_warn("overfit_batches: shuffling of the training loader is turned off")
    sampler = SequentialSampler(loader.dataset)
    return rebuild(loader, sampler=sampler, batch_size=loader.batch_size, drop_last=loader.drop_last)
