"""`StatusFile`: how a fit stands or ended, as ``status.json``, for people and schedulers."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.distributed.rank import rank_zero_warn

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


#: Seconds between two writes within an epoch.
WRITE_EVERY = 10.0


class StatusFile(Callback):
    """Writes a small JSON file while a fit runs and when it ends, however it does. Rank zero alone writes.

    ``status`` is ``running``, ``finished``, ``interrupted`` (by a signal or Ctrl-C) or ``failed`` (by an exception,
    which is ``error``). While it runs, the file is written at each epoch's start, and every 10 seconds between two
    batches; it stays ``running``, with the ``time`` at which it was written, where the process was killed.

    A full disk is warned about and no more: how the run ends is not this file's to say.

    Args:
        path: Where to write.

    Example:
        >>> StatusFile("exp/status.json").path.name
        'status.json'
    """

    place = 3  # in the handler's order: a run that has finished has also averaged its checkpoints

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._next = 0.0  # when an epoch that goes on is due

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A resumed run knows where it stands by now."""
        self.write(trainer, "running")

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The same where there is no sanity check."""
        self.write(trainer, "running")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """An epoch is over, and its checkpoint is saved."""
        self.write(trainer, "running")

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Long epochs are not silent."""
        if time.monotonic() >= self._next:
            self.write(trainer, "running")

    def teardown(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """The fit has ended in order, by a signal or by itself."""
        self.write(trainer, "interrupted" if trainer.stopped_by_signal else "finished")

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """The fit has failed, or Ctrl-C ends it at once."""
        failed = isinstance(exception, Exception) and not trainer.stopped_by_signal
        self.write(trainer, "failed" if failed else "interrupted", exception)

    def write(self, trainer: Trainer, status: str, exception: BaseException | None = None) -> None:
        """Write it anew."""
        if trainer.state.fn != "fit" or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        self._next = time.monotonic() + WRITE_EVERY
        signal = None
        if trainer.stopped_by_signal:
            received = trainer.stopping.signals.received
            signal = received.name if received is not None else "on another rank"
        between = status != "running" and not trainer.fit_loop.within_epoch  # it has ended behind its last epoch
        values = {
            "call": str(trainer.state.fn),
            "status": status,
            "epoch": max(0, trainer.current_epoch - between),  # as in file names, from 0
            "epochs_done": trainer.current_epoch,
            "global_step": trainer.global_step,
            "signal": signal,
            "error": f"{type(exception).__name__}: {exception}" if exception is not None else None,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            rank_zero_warn(f"{self.path}: could not be written: {error}")
