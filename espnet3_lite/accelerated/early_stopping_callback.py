"""`EarlyStoppingCallback`: `EarlyStopping` with pytorch-accelerated's arguments and its way to end a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.accelerated.save_best_model import new_value
from espnet3_lite.accelerated.trainer_callback import TrainerCallback
from espnet3_lite.callbacks.early_stopping import EarlyStopping
from espnet3_lite.exceptions import StopTrainingError

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class EarlyStoppingCallback(TrainerCallback):
    """Raises `StopTrainingError` when a metric has not improved for some epochs. `EarlyStopping` judges the values.

    An epoch in which the metric got no new value (no validation, say) is passed over.

    Args:
        early_stopping_patience: Epochs without improvement until the run ends. Default 1.
        early_stopping_threshold: An improvement must be larger than this. Default 0.01.
        watch_metric: A metric of ``trainer.run_history``.
        greater_is_better: Larger values are better. Default False.
        reset_on_train: Begin each fit without a best value, unless it resumes from a checkpoint. Default True.

    Attributes:
        early_stopping_patience_counter: Epochs since the last improvement.
        best_metric: The best value so far; None before the first.

    Raises:
        ValueError: the metric has no value although the epoch was evaluated, with the nearest name that has.

    Example:
        >>> callback = EarlyStoppingCallback(early_stopping_patience=2, watch_metric="accuracy", greater_is_better=True)
        >>> callback.early_stopping_patience_counter
        0
    """

    def __init__(
        self,
        early_stopping_patience: int = 1,
        early_stopping_threshold: float = 0.01,
        watch_metric: str = "eval_loss_epoch",
        greater_is_better: bool = False,
        reset_on_train: bool = True,
    ):
        self.early_stopping_patience, self.early_stopping_threshold = early_stopping_patience, early_stopping_threshold
        self.watch_metric, self.greater_is_better = watch_metric, greater_is_better
        self.reset_on_train = reset_on_train
        self._reset()

    def _reset(self) -> None:
        self._values_seen = 0
        self._judge = EarlyStopping(
            self.watch_metric,
            min_delta=self.early_stopping_threshold,
            patience=self.early_stopping_patience,
            mode="max" if self.greater_is_better else "min",
            check_finite=False,  # a NaN is no improvement; TerminateOnNaNCallback ends runs for it
        )

    @property
    def early_stopping_patience_counter(self) -> int:
        """Epochs since the last improvement."""
        return self._judge.wait_count

    @property
    def best_metric(self) -> float | None:
        """The best value so far; None before the first."""
        best = float(self._judge.best_score)
        return None if best in (float("inf"), float("-inf")) else best

    @property
    def state_key(self) -> str:
        """The callback's key in a checkpoint, which differs for callbacks that watch different metrics."""
        return self._generate_state_key(watch_metric=self.watch_metric, greater_is_better=self.greater_is_better)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of epochs without an improvement, as `EarlyStopping` saves them."""
        return self._judge.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them from a checkpoint. `early_stopping_patience` stays as this callback was constructed with."""
        self._judge.load_state_dict({**state_dict, "patience": self.early_stopping_patience})

    def on_training_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Forget the best value of an earlier run, unless this run resumes from a checkpoint."""
        if self.reset_on_train and trainer.ckpt_path is None:
            self._reset()
        self._values_seen = len(trainer.run_history.get_metric_values(self.watch_metric))

    def on_training_run_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Compare the epoch's value with the best one, and end the run after too many epochs without an improvement.

        Raises:
            StopTrainingError: the metric has not improved for `early_stopping_patience` epochs.
        """
        value = new_value(trainer, self.watch_metric, self._values_seen)
        if value is None:
            return
        self._values_seen = len(trainer.run_history.get_metric_values(self.watch_metric))
        stop, _ = self._judge._evaluate_stopping_criteria(torch.tensor(value))
        if stop:
            raise StopTrainingError(
                f"Stopping training due to no improvement of {self.watch_metric} after {self.early_stopping_patience} "
                f"epochs"
            )
