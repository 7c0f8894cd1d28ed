"""What the user may write: `LiteDataModule`, the data of a model on its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from espnet3_lite.checks.signatures import taken_of
from espnet3_lite.module.hooks import DataHooks, ModuleHooks
from espnet3_lite.module.hparams import HyperparametersMixin
from espnet3_lite.module.lite_module import LiteModule

if TYPE_CHECKING:
    from typing_extensions import Self

    from espnet3_lite.trainer.trainer import Trainer


#: A data set, or several.
DatasetOrSeveral = Dataset[Any] | Iterable[Dataset[Any]] | Mapping[str, Dataset[Any]]


class LiteDataModule(DataHooks, HyperparametersMixin):
    """Data on its own: the loaders and the data hooks of a `LiteModule`, to share between models.

    Its hooks are called before the module's: `prepare_data`, `setup`, `teardown`, the loaders, and the three that move
    a batch. `state_dict` and `load_state_dict` are kept in checkpoints.

    Example:
        >>> import torch
        >>> class Digits(LiteDataModule):
        ...     def train_dataloader(self):
        ...         return torch.utils.data.DataLoader([torch.ones(1)] * 4, batch_size=2)
        >>> len(Digits().train_dataloader())
        2
    """

    trainer: Trainer = None  # type: ignore[assignment]  # from the first call on

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the data module from its saved hyperparameters, and load its state.

        Args:
            checkpoint_path: A file that we or Lightning wrote.
            map_location: Where to put tensors; the CPU by default.
            hparams_file: A YAML file with the arguments, instead of those in the checkpoint.
            weights_only: Lightning's argument. None or True; False would let a checkpoint run code, and is an error.
            kwargs: Arguments of ``__init__``, instead of saved ones.
        """
        prefix = "datamodule_"
        data, checkpoint = cls._built_from(checkpoint_path, map_location, weights_only, prefix, hparams_file, kwargs)
        if cls.__qualname__ in checkpoint:
            data.load_state_dict(checkpoint[cls.__qualname__])
        return data

    @classmethod
    def from_datasets(
        cls,
        train_dataset: DatasetOrSeveral | None = None,
        val_dataset: DatasetOrSeveral | None = None,
        test_dataset: DatasetOrSeveral | None = None,
        predict_dataset: DatasetOrSeveral | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> Self:
        """A data module of data sets, each in a `DataLoader` of its own. Training data are shuffled.

        Args:
            train_dataset: A data set. The others may be several, as a list or dict.
            val_dataset: For validation.
            test_dataset: For tests.
            predict_dataset: For predictions.
            batch_size: Of each loader; also given to ``__init__`` where it takes an argument of this name.
            num_workers: Processes of each loader; likewise.
            kwargs: Further arguments of ``__init__``.

        >>> data = LiteDataModule.from_datasets(val_dataset=[1.0, 2.0, 3.0], batch_size=2)
        >>> [batch.tolist() for batch in data.val_dataloader()]
        [[1.0, 2.0], [3.0]]
        """
        shared = {"batch_size": batch_size, "num_workers": num_workers}
        data = cls(**kwargs, **taken_of(cls, shared))
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for prefix, datasets in given.items():
            if datasets is not None:
                make = functools.partial(_loaders, datasets, shuffle=prefix == "train", **shared)
                setattr(data, f"{prefix}_dataloader", make)
        return data

    def on_exception(self, exception: BaseException) -> None:
        """The run ends by `exception`."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


def _loaders(datasets: Any, shuffle: bool, **arguments: Any) -> Any:
    """A loader for a data set, for each of a list or dict of data sets one."""
    if isinstance(datasets, Mapping):
        return {name: _loaders(dataset, shuffle, **arguments) for name, dataset in datasets.items()}
    if isinstance(datasets, (list, tuple)) and datasets and all(isinstance(part, Dataset) for part in datasets):
        return [_loaders(dataset, shuffle, **arguments) for dataset in datasets]
    shuffle = shuffle and not isinstance(datasets, IterableDataset)
    return DataLoader(datasets, shuffle=shuffle, pin_memory=torch.cuda.is_available(), **arguments)


def is_overridden(method: str, owner: Any) -> bool:
    """True where `owner`, a module or data module, defines the method itself (None on an instance does not count)."""
    if method in owner.__dict__:
        return owner.__dict__[method] is not None
    mine = getattr(type(owner), method, None)
    bases = (getattr(base, method, None) for base in (LiteModule, LiteDataModule, ModuleHooks))
    return mine is not None and mine not in tuple(bases)
