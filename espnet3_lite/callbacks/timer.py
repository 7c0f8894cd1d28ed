"""`Timer`: how long each stage took, and an end to training when the time is over."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.checks.value_kinds import parse_duration
from espnet3_lite.distributed.rank import rank_zero_info
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.trainer.states import RunningStage

if TYPE_CHECKING:
    from collections.abc import Callable

    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: ``batch`` is pytorch-accelerated's word for a step.
INTERVALS = {"step": "step", "batch": "step", "epoch": "epoch"}


class Timer(Callback):
    """Measures training, validation, test and prediction, and stops training after `duration`.

    The time that was used before a run was resumed counts. Training stops after the batch in which the time runs out.

    Args:
        duration: A timedelta, a dict of its arguments, or ``"DD:HH:MM:SS"``. Default: no limit.
        interval: Look at the clock after each ``step`` (also ``batch``), or after each ``epoch``.
        verbose: Log that the limit was reached.

    Raises:
        MisconfigurationException: `duration` is not a duration, or `interval` is unknown.

    Example:
        >>> timer = Timer(duration="00:12:00:00")
        >>> timer.time_elapsed("train"), timer.time_remaining()
        (0.0, 43200.0)
    """

    def __init__(
        self, duration: timedelta | str | dict[str, float] | None = None, interval: str = "step", verbose: bool = True
    ):
        if interval not in INTERVALS:
            raise MisconfigurationException(
                f"Unsupported parameter value `Timer(interval={interval!r})`. Possible choices are: step, epoch"
                f"{nearest(interval, INTERVALS)}"
            )
        limit = parse_duration(duration)
        self.duration = None if limit is None else limit.total_seconds()
        self.interval = INTERVALS[interval]
        self.verbose = verbose
        self._start: dict[RunningStage, float] = {}
        self._end: dict[RunningStage, float] = {}
        self._offset = 0.0  # seconds of training before this run was resumed

    # ---- asking ---------------------------------------------------------------------------------------------------

    def start_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When a stage began (``train``, ``validate``, ``test``, ``predict``): `time.monotonic` seconds, or None."""
        return self._start.get(RunningStage(stage))

    def end_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When `stage` ended, in seconds of `time.monotonic`; None if it has not."""
        return self._end.get(RunningStage(stage))

    def time_elapsed(self, stage: str = RunningStage.TRAINING) -> float:
        """Seconds that a stage has taken; for training, with those before the run was resumed."""
        offset = self._offset if RunningStage(stage) == RunningStage.TRAINING else 0.0
        start, end = self.start_time(stage), self.end_time(stage)
        if start is None:
            return offset
        return (time.monotonic() if end is None else end) - start + offset

    def time_remaining(self, stage: str = RunningStage.TRAINING) -> float | None:
        """Seconds of `stage` that are left of `duration`; None without a limit."""
        return None if self.duration is None else self.duration - self.time_elapsed(stage)

    # ---- measuring ------------------------------------------------------------------------------------------------

    def _begin(self, stage: RunningStage) -> None:
        self._start[stage] = time.monotonic()
        self._end.pop(stage, None)

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Training begins."""
        self._begin(RunningStage.TRAINING)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Training is over."""
        self._end[RunningStage.TRAINING] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A validation begins."""
        self._begin(RunningStage.VALIDATING)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """It is over."""
        self._end[RunningStage.VALIDATING] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A test begins."""
        self._begin(RunningStage.TESTING)

    def on_test_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """It is over."""
        self._end[RunningStage.TESTING] = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A prediction begins."""
        self._begin(RunningStage.PREDICTING)

    def on_predict_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """It is over."""
        self._end[RunningStage.PREDICTING] = time.monotonic()

    # ---- stopping -------------------------------------------------------------------------------------------------

    def _listener(self, event: str) -> Callable | None:
        """Without a limit, and between two epochs, batches cost our own method nothing."""
        idle = self.duration is None or self.interval != "step"
        ours = type(self).on_train_batch_end is Timer.on_train_batch_end
        return None if event == "on_train_batch_end" and idle and ours else super()._listener(event)

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run may be resumed whose time is over."""
        self._stop_if_over(trainer)

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, if steps are the interval."""
        self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Look at the clock, if epochs are the interval."""
        if self.interval == "epoch":
            self._stop_if_over(trainer)

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self.duration is None:
            return
        over = self.time_elapsed() >= self.duration  # this rank's clock: the next vote makes its wish everybody's
        if over and not trainer.should_stop and self.verbose:
            elapsed = timedelta(seconds=int(self.time_elapsed()))
            rank_zero_info("Time limit reached. Elapsed time is %s. Signaling Trainer to stop.", elapsed)
        trainer.should_stop = trainer.should_stop or over

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Seconds by stage."""
        return {"time_elapsed": {stage.value: self.time_elapsed(stage) for stage in RunningStage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The time that training has used already counts."""
        self._offset = state_dict.get("time_elapsed", {}).get(RunningStage.TRAINING.value, 0.0)
