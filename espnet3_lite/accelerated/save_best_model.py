"""`SaveBestModelCallback`: the best model of a run, in one file and, at the end, in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from espnet3_lite.accelerated.trainer_callback import TrainerCallback
from espnet3_lite.checkpoint import files as checkpoint_io

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class SaveBestModelCallback(TrainerCallback):
    """Saves the weights after each epoch that is better than all before; loads the best ones when the run ends.

    The file is a checkpoint without optimizers, as ``trainer.save_checkpoint(path, weights_only=True)`` writes it. An
    epoch in which the metric got no new value (no validation, say) is passed over. All ranks decide by the same number.

    Args:
        save_path: The file; it should end in ``.pt``.
        watch_metric: A metric of ``trainer.run_history``.
        greater_is_better: Larger values are better. Default False.
        reset_on_train: Begin each fit without a best value, unless it resumes from a checkpoint. Default True.

    Attributes:
        best_metric: The best value so far; None before the first.
        best_metric_epoch: Its epoch, from 1.

    Raises:
        ValueError: the metric has no value although the epoch was evaluated, with the nearest name that has.

    Example:
        >>> SaveBestModelCallback("best.pt", watch_metric="accuracy", greater_is_better=True).best_metric is None
        True
    """

    def __init__(
        self,
        save_path: str | os.PathLike[str] = "best_model.pt",
        watch_metric: str = "eval_loss_epoch",
        greater_is_better: bool = False,
        reset_on_train: bool = True,
    ):
        self.save_path = os.fspath(save_path)
        self.watch_metric, self.greater_is_better = watch_metric, greater_is_better
        self.reset_on_train = reset_on_train
        self.best_metric: float | None = None
        self.best_metric_epoch: int | None = None
        self._values_seen = 0

    @property
    def state_key(self) -> str:
        """Tells callbacks apart that watch another metric."""
        return self._generate_state_key(watch_metric=self.watch_metric, save_path=self.save_path)

    def state_dict(self) -> dict[str, Any]:
        """The best value and its epoch."""
        return {"best_metric": self.best_metric, "best_metric_epoch": self.best_metric_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it."""
        self.best_metric, self.best_metric_epoch = state_dict["best_metric"], state_dict["best_metric_epoch"]

    def on_training_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Forget another run's best value."""
        self._values_seen = len(trainer.run_history.get_metric_values(self.watch_metric))
        if self.reset_on_train and trainer.ckpt_path is None:
            self.best_metric = self.best_metric_epoch = None

    def on_training_run_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Compare, and save what is better."""
        value = new_value(trainer, self.watch_metric, self._values_seen)
        if value is None:
            return
        self._values_seen = len(trainer.run_history.get_metric_values(self.watch_metric))
        best = self.best_metric
        if best is None or (value > best if self.greater_is_better else value < best):
            self.best_metric, self.best_metric_epoch = value, trainer.run_history.current_epoch
            trainer.save_checkpoint(self.save_path, weights_only=True)

    def on_training_run_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Load the best weights."""
        if self.best_metric is None:
            return
        trainer.print(
            f"Loading checkpoint with {self.watch_metric}: {self.best_metric} from epoch {self.best_metric_epoch}"
        )
        trainer.strategy.saver.finish()
        trainer.strategy.barrier()  # collective, all ranks end the run: rank zero has written the file
        state = checkpoint_io.load_checkpoint(self.save_path)["state_dict"]
        trainer.strategy.load_module_state_dict(trainer.lightning_module, state, strict=True)


def new_value(trainer: Trainer, name: str, seen: int) -> float | None:
    """The newest value of a metric of ``trainer.run_history``, equal on all ranks; None where it is not new.

    Args:
        trainer: Whose history.
        name: The metric.
        seen: How many values were there before.

    Raises:
        ValueError: there is none, although the epoch was evaluated.
    """
    history = trainer.run_history
    if len(history.get_metric_values(name)) == seen and (seen or not trainer.validation_ran):
        return None
    return float(trainer.strategy.agreed_metric(history.get_latest_metric(name)))  # collective: all ranks compare
