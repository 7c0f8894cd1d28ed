"""`BasePredictionWriter`: predictions go to files as they come, not into memory."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import BatchSampler, SequentialSampler

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.exceptions import MisconfigurationException, nearest

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

INTERVALS = ("batch", "epoch", "batch_and_epoch")


class WriteInterval(str, Enum):
    """Which of a writer's two methods are called; equal to the strings that `BasePredictionWriter` takes."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """After each batch."""
        return self != "epoch"

    @property
    def on_epoch(self) -> bool:
        """After the last one."""
        return self != "batch"


class BasePredictionWriter(Callback):
    """Base class: override `write_on_batch_end` or `write_on_epoch_end`, on each rank for its own predictions.

    With ``trainer.predict(..., return_predictions=False)`` nothing is kept but what `write_on_epoch_end` gets.

    Args:
        write_interval: ``batch`` (default), ``epoch`` or ``batch_and_epoch``: which of the two is called.

    Raises:
        MisconfigurationException: an unknown `write_interval`.

    Example:
        >>> class ToFiles(BasePredictionWriter):
        ...     def write_on_batch_end(self, trainer, pl_module, prediction, indices, batch, batch_idx, loader_idx):
        ...         torch.save(prediction, f"{trainer.global_rank}_{batch_idx}.pt")
        >>> ToFiles().interval.value
        'batch'
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        if write_interval not in INTERVALS:
            raise MisconfigurationException(
                f"write_interval={write_interval!r} is not one of {', '.join(map(repr, INTERVALS))}"
                f"{nearest(str(write_interval), INTERVALS)}"
            )
        self.interval = WriteInterval(write_interval)
        self._predictions: list[list[Any]] = []
        self._indices: list[list[list[int] | None]] = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, prediction: Any, batch_indices: Sequence[int] | None, batch: Any,
        batch_idx: int, dataloader_idx: int,
    ) -> None:  # fmt: skip
        """Write one batch's prediction.

        Args:
            trainer: In a prediction.
            pl_module: Its module.
            prediction: What `predict_step` returned.
            batch_indices: The samples' indices in the data set; None where they are not known by the loader alone: its
                order is not the data set's, or several ranks share it. Let the batch carry ids then.
            batch: The batch.
            batch_idx: Its index with this loader, on this rank.
            dataloader_idx: The loader's index.
        """

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LiteModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write all predictions.

        Args:
            trainer: In a prediction.
            pl_module: Its module.
            predictions: One a batch; of several loaders a list of such lists.
            batch_indices: A list of batches' indices for each loader, as in `write_on_batch_end`.
        """

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Begin anew."""
        self._predictions, self._indices = [], []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write, or keep, one batch's prediction."""
        indices = _indices_of(trainer, batch_idx, dataloader_idx)
        if self.interval.on_batch:
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)
        if self.interval.on_epoch:
            while len(self._predictions) <= dataloader_idx:
                self._predictions.append([])
                self._indices.append([])
            self._predictions[dataloader_idx].append(outputs)
            self._indices[dataloader_idx].append(indices)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Write all predictions."""
        if self.interval.on_epoch:
            several = len(trainer.num_predict_batches) > 1
            predictions = self._predictions if several else (self._predictions or [[]])[0]
            self.write_on_epoch_end(trainer, pl_module, predictions, self._indices)
        self._predictions, self._indices = [], []


def _indices_of(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> list[int] | None:
    """A batch's samples where the loader goes through the data set in its order; None where that is not known."""
    sampler = getattr(trainer.evaluation_loops["predict"].loaders[dataloader_idx].given, "batch_sampler", None)
    if trainer.world_size > 1 or type(sampler) is not BatchSampler or type(sampler.sampler) is not SequentialSampler:
        return None
    first = batch_idx * sampler.batch_size
    return list(range(first, min(first + sampler.batch_size, len(sampler.sampler))))
