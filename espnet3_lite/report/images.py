"""`RunImages`: a callback that keeps pictures of a run's curves in its folder, as ESPnet2's users know them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.checkpoint.atomic_files import remove_leftovers
from espnet3_lite.loggers.csv_logs import CSVLogger
from espnet3_lite.report.history import Run, read_rows
from espnet3_lite.report.pictures import HOW_TO_INSTALL, can_draw, write_pictures

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)

#: Seconds between two drawings; and drawing takes at most this share of a run.
DRAW_EVERY = 30.0
LARGEST_SHARE = 0.02


class RunImages(Callback):
    """Writes ``images/*.png`` at the end of an epoch, at most every 30 seconds, and at the end of a fit; on rank zero.

    The curves are those of the trainer's `CSVLogger`. Without matplotlib (extra ``plot``) it says so once, and draws
    nothing. Nor does it draw when a signal ends the run: ``espnet3-lite plot`` does.

    Args:
        exp_dir: The run's folder.

    Example:
        >>> RunImages("exp/digits").folder.name
        'images'
    """

    def __init__(self, exp_dir: str | Path):
        self.folder = Path(exp_dir) / "images"
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The first pictures come after half a minute."""
        self._next = time.monotonic() + DRAW_EVERY
        if trainer.is_global_zero and not can_draw():
            logger.info("%s; training goes on without", HOW_TO_INSTALL)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Draw, if it is time."""
        if time.monotonic() >= self._next:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run that was killed while it drew its last pictures, and has nothing left to train, draws them again."""
        unfinished = [path.name[1:].partition(".new.")[0] for path in self.folder.glob(".*.tmp")]
        for name in unfinished:
            remove_leftovers(self.folder / name)
        if unfinished:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.stopped_by_signal or trainer.stopping.signals.received is not None:
            return  # who sent it waits for the end, and may kill
        log = next((log for log in trainer.loggers if isinstance(log, CSVLogger)), None)
        if not trainer.is_global_zero or log is None or not can_draw():
            return
        began = time.monotonic()
        log.save()
        metrics = Path(str(log.log_dir)) / "metrics.csv"
        if metrics.exists():  # nothing may have been logged yet
            try:
                write_pictures(Run(self.folder.parent, read_rows(metrics), {}, [], "").pictures(), self.folder)
            except OSError as error:  # a full disk is the checkpoints' to tell; a picture ends no run
                logger.warning("%s: no pictures could be written: %s", self.folder, error)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(DRAW_EVERY, took / LARGEST_SHARE)
