"""`TrainerCallback`: callbacks written for pytorch-accelerated. How its events map to ours is in `event_aliases.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


#: Events that both families have by the same name; pytorch-accelerated's methods get the trainer alone.
_SAME_NAME = ("on_train_epoch_start", "on_train_epoch_end", "on_stop_training_error")


class TrainerCallback(Callback):
    """Base class with pytorch-accelerated's events: a callback that was written for it moves over by its import.

    Every event gets the trainer; `on_train_step_end` and `on_eval_step_end` also ``batch`` and ``batch_output``, by
    keyword. All hooks of `Callback` may be used beside them. Any `Callback` may use these names too; there the three
    that both have (`on_train_epoch_start`, `on_train_epoch_end`, `on_stop_training_error`) get the module as well.
    Two events differ from pytorch-accelerated's: validation runs with an epoch's last batch, so `on_train_epoch_end`
    comes after it; and a sanity check calls no event.

    ``trainer.run_history`` is recorded wherever a `TrainerCallback` is among the callbacks.

    Example:
        >>> class Losses(TrainerCallback):
        ...     def on_train_epoch_end(self, trainer, **kwargs):
        ...         print(trainer.run_history.get_latest_metric("train_loss_epoch"))
        >>> Losses().state_key
        'Losses'
    """

    _is_interface = True
    uses_run_history = True

    def _listener(self, event: str) -> Callable[..., Any] | None:
        method = super()._listener(event)
        if method is None or event not in _SAME_NAME:
            return method
        return lambda trainer, pl_module: method(trainer)

    def on_init_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """The trainer is made."""

    def on_training_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """`fit` begins; the model and its optimizers are there (`on_fit_start`)."""

    def on_train_epoch_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """An epoch begins."""

    def on_train_step_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """A training batch begins (`on_train_batch_start`)."""

    def on_train_step_end(self, trainer: Trainer, batch: Any, batch_output: dict[str, Any], **kwargs: Any) -> None:
        """A training batch is over (`on_train_batch_end`).

        Args:
            trainer: The trainer.
            batch: On its device.
            batch_output: What the step returned, as a dict, its loss divided by the accumulation window; of a batch
                that was skipped, ``{"loss": nan}``.
            kwargs: Nothing so far.
        """

    def on_train_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """An epoch's batches and its validation are over; the epoch's means are in ``trainer.run_history``."""

    def on_training_run_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """The epoch is over altogether: after the module's own `on_train_epoch_end` and the monitored schedulers."""

    def on_training_run_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """`fit` ends, after the last checkpoint (`on_fit_end`); not where an exception ends it."""

    def on_evaluation_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """`validate` or `test` begins; not a validation within a fit."""

    def on_eval_epoch_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """A validation or test begins (`on_validation_epoch_start`, `on_test_epoch_start`)."""

    def on_eval_step_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """A validation or test batch begins."""

    def on_eval_step_end(self, trainer: Trainer, batch: Any, batch_output: dict[str, Any], **kwargs: Any) -> None:
        """A validation or test batch is over.

        Args:
            trainer: The trainer.
            batch: On its device.
            batch_output: What the step returned, as a dict: of a tensor ``loss``, of other things ``model_outputs``.
            kwargs: Nothing so far.
        """

    def on_eval_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """A validation or test is over, its means in ``trainer.run_history`` (`on_validation_end`, `on_test_end`)."""

    def on_evaluation_run_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """`validate` or `test` ends."""

    def on_stop_training_error(self, trainer: Trainer, **kwargs: Any) -> None:
        """A `StopTrainingError` ends the run."""
