"""`AverageCheckpointsCallback`: the mean of the best checkpoints, written when a run ends.

Which checkpoints are the best is `model_checkpoint.py`'s, the arithmetic `checkpoints/averaging.py`'s.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.checkpoints.averaging import average_usable, kind_of
from espnet3_lite.checkpoint.files import save_checkpoint
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import CheckpointError

if TYPE_CHECKING:
    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class AverageCheckpointsCallback(Callback):
    """Averages the best checkpoints of each criterion into ``{monitor, / as .}.ave_{K}best.pth``.

    It runs once, after the last checkpoint of a run is saved, from the best that are on disk then: also when the run
    ends early by `max_time`, early stopping, a signal or Ctrl-C. K is how many there were. The file holds a plain state
    dict that loads into the user's model: floating tensors are averaged, integer ones summed, boolean ones the best's,
    and a wrapper's ``model.`` prefix is gone. Older averages of the same criterion are removed. Rank zero alone works.

    Args:
        output_dir: Where to write.
        best_ckpt_callbacks: The `ModelCheckpoint` callbacks whose `best_k_models` are averaged.

    Raises:
        KeyError: checkpoints with different keys.
        CheckpointError: there is no room for the average, say, at the end of a run that no signal ended.

    Example:
        >>> from espnet3_lite.callbacks import ModelCheckpoint
        >>> best = ModelCheckpoint(monitor="valid/loss", save_top_k=3)
        >>> average = AverageCheckpointsCallback(output_dir="exp", best_ckpt_callbacks=[best])
        >>> average.output_dir, len(average.best_ckpt_callbacks)
        ('exp', 1)
    """

    place = 2  # in the handler's order: after the callbacks that save

    def __init__(self, output_dir: str | os.PathLike, best_ckpt_callbacks: Sequence[ModelCheckpoint]):
        self.output_dir = output_dir
        self.best_ckpt_callbacks = list(best_ckpt_callbacks)

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The run is over: not `on_train_end`, which a resumed run that has nothing left to train does not call."""
        trainer.strategy.barrier()  # all ranks: those that write parts of a checkpoint have done so
        if trainer.is_global_zero:
            for best in self.best_ckpt_callbacks:
                if best.save_top_k and not (best.best_k_models or trainer.validation_ran or trainer.fast_dev_run):
                    logger.warning("Nothing was validated: no best checkpoint by %r, and no average", best.monitor)
            trainer.strategy.saver.when_saved(self._try_to_average if trainer.stopped_by_signal else self.average)

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """Ctrl-C ends a run too; any other exception is a failure, and what is on disk is left as it is."""
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit" and trainer.is_global_zero:
            trainer.strategy.saver.when_saved(self._try_to_average)

    def _try_to_average(self) -> None:
        """Where a signal ends the run: that is how it ends, also if there is no room for the average."""
        try:
            self.average()
        except CheckpointError as error:
            rank_zero_warn(str(error))

    def average(self) -> list[Path]:
        """Write one file for each criterion that has checkpoints; returns their paths."""
        written = []
        for callback in self.best_ckpt_callbacks:
            if callback.best_k_models and callback.monitor is not None:
                with told_in_one_message(self.output_dir):
                    path = average_best(callback.monitor, callback.mode, callback.best_k_models, self.output_dir)
                written += [path] if path is not None else []
        return written


def average_best(
    monitor: str, mode: str, best_k_models: Mapping[str, Any], output_dir: str | os.PathLike
) -> Path | None:
    """Average one criterion's checkpoints, as a callback or the command line knows them.

    Args:
        monitor: The metric they were chosen by.
        mode: ``min`` or ``max``.
        best_k_models: Score by path, as `ModelCheckpoint` keeps it.
        output_dir: Where to write.

    Returns:
        The file, or None when no checkpoint is left, which is warned about. What is missing, damaged or another model's
        is left out, with a warning: it is no reason to end a run as if it had failed.

    Raises:
        CheckpointError, OSError: the average cannot be written.
    """
    paths = sorted(best_k_models, key=lambda path: float(best_k_models[path]), reverse=mode == "max")
    try:
        averaged, used = average_usable([Path(path) for path in paths], Path(output_dir), leave_out=True)
    except CheckpointError as error:
        logger.warning("No average by %r: %s", monitor, error)
        return None
    name = monitor.replace("/", ".")
    output = Path(output_dir) / f"{name}.ave_{len(used)}best.pth"
    save_checkpoint(averaged, output)
    summed = [key for key, value in averaged.items() if kind_of(value) == "integer"]
    if summed:
        logger.info("The following parameters were only accumulated, not averaged: %s", ", ".join(summed))
    logger.info("Averaged the best %d checkpoints by %r: %s", len(used), monitor, output)
    stale = re.compile(rf"{re.escape(name)}\.ave_\d+best\.pth")
    for path in output.parent.iterdir():
        if stale.fullmatch(path.name) and path != output:
            path.unlink()
    return output


@contextmanager
def told_in_one_message(folder: str | os.PathLike) -> Iterator[None]:
    """Every reason why there is no average in a folder is a `CheckpointError` that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, ValueError) as error:  # of different models: the file and the keys are named
        raise CheckpointError(error.args[0]) from error
    except OSError as error:
        raise CheckpointError(f"{folder}: no average can be written there: {error}") from error
