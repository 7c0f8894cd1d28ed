"""When a fit validates. What happens in a validation is in `evaluation.py`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.requests import has_loaders

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class ValidationIntervalError(MisconfigurationException, ValueError):
    """`val_check_interval` does not fit the data. It is a ValueError too, which is what Lightning raises."""


class ValidationSchedule:
    """After which training batches a fit validates.

    Args:
        trainer: Its settings decide: `limit_val_batches`, `val_check_interval`, `check_val_every_n_epoch`.

    Attributes:
        enabled: The fit validates at all: there are a `validation_step`, loaders, and a limit above 0.
        every_n_batches: Validate after so many training batches; infinity: with the epoch's last one.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.enabled = False
        self.every_n_batches: int | float = math.inf

    def prepare(self) -> None:
        """Find out whether this fit validates; warn where half of what that needs is there."""
        trainer, has_data = self.trainer, has_loaders(self.trainer, "val")
        self.enabled = trainer.enable_validation and has_data
        if self.enabled or trainer.limit_val_batches == 0:
            return
        if has_data:
            rank_zero_warn("You passed in a `val_dataloader` but have no `validation_step`. Skipping val loop.")
        elif trainer.enable_validation:
            rank_zero_warn("You defined a `validation_step` but have no `val_dataloader`. Skipping val loop.")

    def count_batches(self) -> None:
        """Turn `val_check_interval` into a number of batches, now that their number in an epoch is known.

        Raises:
            ValidationIntervalError: it is larger than the epoch.
            MisconfigurationException: it is a fraction, of a number that is not known.
        """
        trainer, batches, interval = self.trainer, self.trainer.num_training_batches, self.trainer.val_check_interval
        if isinstance(interval, int):
            self.every_n_batches = interval
            if interval > batches and trainer.check_val_every_n_epoch is not None and self.enabled:
                raise ValidationIntervalError(
                    f"`val_check_interval` ({interval}) must be less than or equal to the number of the training "
                    f"batches ({batches}). If you want to disable validation set `limit_val_batches` to 0.0 instead. "
                    f"If you want to validate based on the total training batches, set `check_val_every_n_epoch=None`."
                )
        elif batches == math.inf:
            if interval != 1.0:
                raise MisconfigurationException(
                    "When using an IterableDataset for `train_dataloader`, `Trainer(val_check_interval)` must be `1.0` "
                    "or an int. An int k specifies checking validation every k training batches."
                )
            self.every_n_batches = math.inf
        else:
            self.every_n_batches = max(1, int(batches * interval))

    @property
    def epoch_validates(self) -> bool:
        """The epoch in work is one in which `check_val_every_n_epoch` allows validation."""
        every = self.trainer.check_val_every_n_epoch
        return every is None or (self.trainer.current_epoch + 1) % every == 0

    def is_due(self, batch_idx: int, is_last: bool) -> bool:
        """Whether to validate after this training batch.

        Args:
            batch_idx: Its index within the epoch.
            is_last: It is the epoch's last.
        """
        trainer = self.trainer
        every_n_epochs = trainer.check_val_every_n_epoch
        if not self.enabled or not self.epoch_validates:
            return False
        if trainer.stopping.agreed and trainer.stopping.allowed:
            return True
        unknown = self.every_n_batches == math.inf
        if is_last and (unknown or every_n_epochs is not None) and batch_idx + 1 < self.every_n_batches:
            return True  # the number of batches is not known, or there are fewer than the loader said
        batches = trainer.fit_loop.batches_seen if every_n_epochs is None else batch_idx + 1
        return batches % self.every_n_batches == 0
