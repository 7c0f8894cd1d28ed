"""`LogMetricsCallback`: hands each epoch's metrics to a platform; by default it prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espnet3_lite.accelerated.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class LogMetricsCallback(TrainerCallback):
    """Logs the newest values in ``trainer.run_history``; override `log_metrics` for a platform of yours.

    Names with ``train`` are logged after each training epoch, the others after each evaluation.

    Example:
        >>> class Collect(LogMetricsCallback):
        ...     def __init__(self):
        ...         self.logged = []
        ...     def log_metrics(self, trainer, metrics):
        ...         if trainer.run_config.is_world_process_zero:
        ...             self.logged.append(metrics)
        >>> Collect().logged
        []
    """

    def on_train_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Log what belongs to training."""
        self._log_newest(trainer, training=True)

    def on_eval_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Log the rest."""
        self._log_newest(trainer, training=False)

    def _log_newest(self, trainer: Trainer, training: bool) -> None:
        history = trainer.run_history
        names = sorted(name for name in history.get_metric_names() if ("train" in name) == training)
        self.log_metrics(trainer, {name: history.get_latest_metric(name) for name in names})

    def log_metrics(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Take an epoch's metrics. Called on every rank; by default the first of each machine prints them.

        Args:
            trainer: The trainer.
            metrics: Name to newest value, in alphabetical order.
        """
        if trainer.run_config.is_local_process_zero:
            write = trainer.print if trainer.is_global_zero else print
            for name, value in metrics.items():
                write(f"{name}: {value}")
