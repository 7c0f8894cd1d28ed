"""Whose loader is asked for, what counts as a loader, how many batches are taken, and how a rank uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders import rank_loader
from espnet3_lite.loaders.rank_loader import RankLoader, SharedLoader, StreamLoader, check_same_epochs, is_map_style

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def request_loaders(trainer: Trainer, prefix: str) -> Any:
    """The loaders that were given to the call, else the data module's, else the module's.

    Args:
        trainer: The trainer that runs.
        prefix: ``train``, ``val``, ``test`` or ``predict``.

    Raises:
        MisconfigurationException: nobody provides them.
    """
    if (given := trainer.given_loaders.get(prefix)) is not None:
        return given
    if (owner := trainer.provider_of(f"{prefix}_dataloader")) is not None:
        return getattr(owner, f"{prefix}_dataloader")()
    name = type(trainer.data_provider or trainer.lightning_module).__name__
    raise MisconfigurationException(
        f"no loader for {trainer.state.fn}: pass {'train_dataloaders=' if prefix == 'train' else 'dataloaders='} to "
        f"Trainer.{trainer.state.fn}(), or define {name}.{prefix}_dataloader()"
    )


def has_loaders(trainer: Trainer, prefix: str) -> bool:
    """True where `request_loaders` would find some."""
    return trainer.given_loaders.get(prefix) is not None or trainer.provider_of(f"{prefix}_dataloader") is not None


def limited(length: int | float, limit: int | float, name: str) -> int | float:
    """How many batches to take: `limit` of `length`.

    >>> limited(10, 0.25, "limit_val_batches"), limited(10, 3, "limit_val_batches"), limited(math.inf, 5, "x")
    (2, 3, 5)
    """
    if length == 0 or limit == 0:
        return 0
    if isinstance(limit, int):
        return min(length, limit)
    if limit == 1.0:
        return length
    if length == math.inf:
        raise MisconfigurationException(
            f"{name}={limit}: a loader that does not know its length can be limited by a number of batches only; "
            f"give an int"
        )
    count = int(length * limit)
    if count == 0:
        raise MisconfigurationException(
            f"{name}={limit} of {length} batches is less than one batch; give a fraction of at least {1 / length:.3g}"
        )
    return count


# ---- what was given ------------------------------------------------------------------------------------------------


def named_loaders(given: Any) -> list[tuple[str, Any]]:
    """The loaders in a dict, or in a list of nothing but loaders, each behind what is appended to the names it logs.

    Anything else, such as a list of batches, is one loader, which appends nothing.
    """
    if isinstance(given, Mapping):
        return [(f"/{key}", loader) for key, loader in given.items()]
    if isinstance(given, (list, tuple)) and given and all(map(_is_loader, given)):
        return [(f"/dataloader_idx_{index}", loader) for index, loader in enumerate(given)]
    return [("", given)]


def _is_loader(data: Any) -> bool:
    """True for what gives batches, and is not itself a batch or a list of batches."""
    batch_like = isinstance(data, (torch.Tensor, Mapping, list, tuple, str, bytes)) or hasattr(data, "to")
    return isinstance(data, DataLoader) or (hasattr(data, "__iter__") and not batch_like and not hasattr(data, "dtype"))


def check_loader(loader: Any, name: str) -> None:
    """What was given can be iterated over, batch by batch.

    Args:
        loader: The user's.
        name: How the message calls it: ``the training loader``, ``val_dataloader/clean``.

    Raises:
        MisconfigurationException: it is a data set, cannot be iterated over, or was prepared by accelerate.
    """
    kind = type(loader).__name__
    if type(loader).__module__.startswith("accelerate."):
        raise MisconfigurationException(f"{name} was prepared by accelerate ({kind}): give the loader it was given")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise MisconfigurationException(
            f"{name} is a data set ({kind}), which gives samples and not batches: wrap it in a DataLoader, "
            f"torch.utils.data.DataLoader({kind.lower()}, batch_size=...)"
        )
    if isinstance(loader, (Mapping, str, bytes, torch.Tensor)) or not hasattr(loader, "__iter__"):
        raise MisconfigurationException(f"{name} must be a loader, an iterable of batches (a DataLoader); got {kind}")


# ---- a rank's part of it -------------------------------------------------------------------------------------------


def prepare_loader(loader: Any, trainer: Trainer, training: bool) -> RankLoader:
    """The loader that gives this rank its share. All ranks call it together.

    Args:
        loader: A `DataLoader`, a list of batches, or any iterable of batches.
        trainer: Its strategy: which rank of how many; and whether the user has dealt the samples out
            (``use_distributed_sampler=False``).
        training: The last batch is to be known as such, and a rank without data takes part all the same.
    """
    strategy = trainer.strategy
    deal_out = trainer.use_distributed_sampler and strategy.deals_out
    if deal_out and isinstance(loader, (list, tuple)):
        batches: Any = loader
        loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    has_indices = is_map_style(loader)
    if deal_out and has_indices and not isinstance(loader.sampler, DistributedSampler):
        check_same_epochs(loader, strategy)
        return SharedLoader(loader, strategy, stand_ins=training or strategy.equal_batches)
    # What iterates as its own class says, or keeps its own position, is left to do so.
    has_indices = has_indices and type(loader).__iter__ is DataLoader.__iter__ and not hasattr(loader, "state_dict")
    own = SharedLoader(loader, strategy, alone=True) if has_indices else StreamLoader(loader, ahead=training)
    if strategy.deals_out:
        own.wait_for(strategy, training)
    return own


def as_set_now(loaders: list[RankLoader], trainer: Trainer, training: bool) -> list[RankLoader]:
    """What `prepare_loader` gave; anew where a program has set a loader's sampler, `collate_fn` or the like since."""
    set_anew = any(rank_loader.settings_of(loader.given) != loader.settings for loader in loaders)
    if not trainer.strategy.any(set_anew):  # collective, and all ranks reach it: an epoch begins, or an evaluation
        return loaders
    return [prepare_loader(loader.given, trainer, training) for loader in loaders]
