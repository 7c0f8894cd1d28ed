"""`EarlyStopping`: ends a run when a metric has stopped improving."""

from __future__ import annotations

import logging
import math
import operator
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import MonitoringCallback
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, MisconfigurationRuntimeError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class EarlyStoppingReason(Enum):
    """Why a run was stopped. The names and values are Lightning's, and stand in checkpoints."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(MonitoringCallback):
    """Stops training when a metric has not improved for `patience` checks. All ranks decide by the same number.

    Args:
        monitor: The metric's name in ``trainer.callback_metrics``.
        min_delta: An improvement must be larger than this. Default 0.0.
        patience: Checks (not epochs) without improvement until the run ends. Default 3.
        verbose: Log each improvement and the reason of the end.
        mode: ``min`` or ``max``: which values are better.
        strict: Raise when the metric was not logged; else wait for it.
        check_finite: Stop at once when the metric is NaN or infinite.
        stopping_threshold: Stop at once when the metric is better than this.
        divergence_threshold: Stop at once when the metric is worse than this.
        check_on_train_epoch_end: Check at the end of each training epoch, rather than of each validation. Default:
            where there is one validation an epoch, or none at all.
        log_rank_zero_only: Log on rank zero alone.

    Attributes:
        wait_count: Checks since the last improvement.
        best_score: The best value so far, ``()``.
        stopped_epoch: The epoch in which the run was stopped; 0 if it was not.
        stopping_reason: An `EarlyStoppingReason`.
        stopping_reason_message: The same in words, or None.

    A run that was stopped stays so when it is resumed: it ends again at once, as one that had reached ``max_epochs``.

    Raises:
        MisconfigurationException: an unknown `mode`, a threshold that is NaN, a negative `patience`.
        MisconfigurationRuntimeError: the metric was not logged, with `strict`.

    Example:
        >>> stopping = EarlyStopping("valid/loss", patience=2, min_delta=0.01)
        >>> for loss in (0.5, 0.495, 0.494):
        ...     stopped, message = stopping._evaluate_stopping_criteria(torch.tensor(loss))
        >>> stopped, stopping.wait_count, stopping.stopping_reason.name
        (True, 2, 'PATIENCE_EXHAUSTED')
    """

    order_dict = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ):
        if mode not in self.order_dict:
            raise MisconfigurationException(f"EarlyStopping: `mode` can be min, max, got {mode!r}")
        thresholds = ("stopping_threshold", stopping_threshold), ("divergence_threshold", divergence_threshold)
        for name, value in (("patience", patience), ("min_delta", min_delta), *thresholds):
            if not isinstance(value, (Real, type(None))) or (value is not None and math.isnan(value)):
                raise MisconfigurationException(f"EarlyStopping: {name}={value!r} cannot be compared; give a number")
        if patience < 0:
            raise MisconfigurationException(f"EarlyStopping: patience={patience!r} is below 0; 0 ends the run at the "
                                            f"first check without improvement")  # fmt: skip
        self.monitor = monitor
        self.min_delta = min_delta if mode == "max" else -min_delta  # what a better value lies beyond, signed
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self._moment_was_given = check_on_train_epoch_end is not None
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self.best_score = torch.tensor(float("inf" if mode == "min" else "-inf"))
        self._stopped_before = False

    @property
    def monitor_op(self) -> Callable[[Any, Any], Any]:
        """``monitor_op(a, b)``: is `a` better than `b`?"""
        return operator.lt if self.mode == "min" else operator.gt

    # ---- when -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Find the moment to check, where it was not given."""
        if not self._moment_was_given:
            once_an_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
            self.check_on_train_epoch_end = once_an_epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A checkpoint was written after the decision to stop: the resumed run must not train on."""
        stopped, self._stopped_before = self._stopped_before, False
        if stopped and trainer.ckpt_path is not None:  # else it was an evaluation that loaded the state
            trainer.should_stop = True
            rank_zero_info(
                "EarlyStopping had stopped this run in epoch %d: %s. To train on, resume without this callback.",
                self.stopped_epoch, self.stopping_reason_message,
            )  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Where nothing is validated, a training metric is checked when its epoch ends."""
        if not self._moment_was_given and not trainer.plan.validation.enabled:
            self.check_on_train_epoch_end = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Check, if this is the moment."""
        if self.check_on_train_epoch_end and not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Check, if this is the moment."""
        if not self.check_on_train_epoch_end and not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)

    # ---- what -----------------------------------------------------------------------------------------------------

    # These methods, which a subclass may override, bear the names that Lightning gave them.

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return trainer.state.fn != "fit" or trainer.sanity_checking

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:
            return
        metrics = dict(trainer.callback_metrics)
        # Collective: all ranks decide by the same number, also one that has logged none itself.
        current = trainer.strategy.agreed_metric(metrics.get(self.monitor))
        if current is not None:
            metrics[self.monitor] = torch.as_tensor(current).detach().squeeze().cpu()
        if not self._validate_condition_metric(metrics):
            return
        stop, message = self._evaluate_stopping_criteria(metrics[self.monitor])
        if stop:
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = message
        if message and (self.verbose or stop):
            self._log_info(trainer, message, self.log_rank_zero_only)

    @staticmethod
    def _log_info(trainer: Trainer, message: str, log_rank_zero_only: bool) -> None:
        if trainer.is_global_zero or not log_rank_zero_only:
            prefix = f"[rank: {trainer.global_rank}] " if trainer.world_size > 1 else ""
            logger.info("%s%s", prefix, message)

    def _validate_condition_metric(self, logs: dict[str, torch.Tensor]) -> bool:
        """Is the metric there?

        Raises:
            MisconfigurationRuntimeError: it is not, and `strict` is set.
        """
        if self.monitor in logs:
            return True
        message = (
            f"Early stopping conditioned on metric `{self.monitor}` which is not available. Pass in or modify your "
            f"`EarlyStopping` callback to use any of the following: `{'`, `'.join(logs)}`"
            f"{nearest(self.monitor, logs)}"
        )
        if self.strict:
            raise MisconfigurationRuntimeError(message)
        if self.verbose:
            rank_zero_warn(message, RuntimeWarning)
        return False

    def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str | None]:
        """Take one more value of the metric.

        Args:
            current: ``()``.

        Returns:
            Whether to stop; and a sentence about it, None where nothing happened.
        """
        order, better = self.order_dict[self.mode], self.monitor_op
        if self.check_finite and not torch.isfinite(current):
            self.stopping_reason = EarlyStoppingReason.NON_FINITE_METRIC
            return True, (
                f"Monitored metric {self.monitor} = {current} is not finite. Previous best value was "
                f"{self.best_score:.3f}. Signaling Trainer to stop."
            )
        if self.stopping_threshold is not None and better(current, self.stopping_threshold):
            self.stopping_reason = EarlyStoppingReason.STOPPING_THRESHOLD
            return True, (
                f"Stopping threshold reached: {self.monitor} = {current} {order} {self.stopping_threshold}. Signaling "
                f"Trainer to stop."
            )
        if self.divergence_threshold is not None and better(-current, -self.divergence_threshold):
            self.stopping_reason = EarlyStoppingReason.DIVERGENCE_THRESHOLD
            worse = ">" if self.mode == "min" else "<"
            return True, (
                f"Divergence threshold reached: {self.monitor} = {current} {worse} {self.divergence_threshold}. "
                f"Signaling Trainer to stop."
            )
        if better(current - self.min_delta, self.best_score):
            message = self._improvement_message(current)
            self.best_score = current
            self.wait_count = 0
            return False, message
        self.wait_count += 1
        if self.wait_count < self.patience:
            return False, None
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
        return True, (
            f"Monitored metric {self.monitor} did not improve in the last {self.wait_count} records. Best score: "
            f"{self.best_score:.3f}. Signaling Trainer to stop."
        )

    def _improvement_message(self, current: torch.Tensor) -> str:
        if not torch.isfinite(self.best_score):
            return f"Metric {self.monitor} improved. New best score: {current:.3f}"
        return (
            f"Metric {self.monitor} improved by {abs(self.best_score - current):.3f} >= min_delta = "
            f"{abs(self.min_delta)}. New best score: {current:.3f}"
        )

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Tells callbacks apart that watch another metric; as Lightning writes it."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's six entries."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on waiting where the checkpoint stands. Files of older versions of Lightning know no reason."""
        for name in ("wait_count", "stopped_epoch", "best_score", "patience"):
            setattr(self, name, state_dict[name])
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        self._stopped_before = self.stopping_reason != EarlyStoppingReason.NOT_STOPPED
