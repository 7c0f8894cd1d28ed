"""What the user may write: `LiteDataModule`, the data of a model on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.module.hparams import HyperparametersMixin
from espnet3_lite.module.lite_module import LiteModule

if TYPE_CHECKING:
    from typing_extensions import Self

    from espnet3_lite.trainer.trainer import Trainer


class LiteDataModule(HyperparametersMixin):
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

    prepare_data = ModuleHooks.prepare_data
    setup = ModuleHooks.setup
    teardown = ModuleHooks.teardown
    on_before_batch_transfer = ModuleHooks.on_before_batch_transfer
    transfer_batch_to_device = ModuleHooks.transfer_batch_to_device
    on_after_batch_transfer = ModuleHooks.on_after_batch_transfer
    train_dataloader = LiteModule.train_dataloader
    val_dataloader = LiteModule.val_dataloader
    test_dataloader = LiteModule.test_dataloader
    predict_dataloader = LiteModule.predict_dataloader

    trainer: Trainer = None

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None, **kwargs: Any
    ) -> Self:
        """Build the data module from its saved hyperparameters, and load its state.

        Args:
            checkpoint_path: A file that we or Lightning wrote.
            map_location: Where to put tensors; the CPU by default.
            hparams_file: A YAML file with the arguments, instead of those in the checkpoint.
            kwargs: Arguments of ``__init__``, instead of saved ones.
        """
        checkpoint = checkpoint_io.load_checkpoint(checkpoint_path, map_location=map_location or "cpu")
        data = cls._from_hyperparameters(checkpoint, "datamodule_", hparams_file, kwargs)
        if cls.__qualname__ in checkpoint:
            data.load_state_dict(checkpoint[cls.__qualname__])
        return data

    def on_exception(self, exception: BaseException) -> None:
        """The run ends by `exception`."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


_MISSING = object()


def is_overridden(method: str, owner: Any) -> bool:
    """True where a module or data module really defines a method (None on an instance counts as not defined)."""
    own = owner.__dict__.get(method, _MISSING)
    if own is not _MISSING:
        return own is not None
    mine = getattr(type(owner), method, None)
    bases = (getattr(base, method, None) for base in (LiteModule, LiteDataModule, ModuleHooks))
    return mine is not None and mine not in tuple(bases)
