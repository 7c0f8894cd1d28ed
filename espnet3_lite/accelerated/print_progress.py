"""`PrintProgressCallback`: a line where a run or an epoch begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espnet3_lite.accelerated.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class PrintProgressCallback(TrainerCallback):
    """Prints, on rank zero, that a run starts or ends, and the number of each epoch from 1.

    Example:
        >>> from espnet3_lite import Trainer
        >>> trainer = Trainer(max_epochs=1, callbacks=PrintProgressCallback(), logger=False, accelerator="cpu")
    """

    def on_training_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Print a line when a fit begins."""
        trainer.print("\nStarting training run")

    def on_train_epoch_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Print the number of the epoch that begins, counted from 1."""
        trainer.print(f"\nStarting epoch {trainer.run_history.current_epoch}")

    def on_training_run_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Print a line when the fit ends."""
        trainer.print("Finishing training run")

    def on_evaluation_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Print a line when `trainer.validate` or `trainer.test` begins; a fit's own validations print nothing."""
        trainer.print("\nStarting evaluation run")

    def on_evaluation_run_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Print a line when `trainer.validate` or `trainer.test` ends."""
        trainer.print("Finishing evaluation run")
