"""`MoveModulesToDeviceCallback`: modules that a trainer carries, a loss or a teacher, go where the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from espnet3_lite.accelerated.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class MoveModulesToDeviceCallback(TrainerCallback):
    """Moves the trainer's attributes that are an ``nn.Module`` to its device, as a training or evaluation run starts.

    Not the model, which the trainer moves itself (and with it everything that is one of its submodules).

    Example:
        >>> from espnet3_lite import Trainer
        >>> class Distilling(Trainer):
        ...     def __init__(self, teacher, **settings):
        ...         super().__init__(**settings)
        ...         self.teacher = teacher
        >>> trainer = Distilling(nn.Linear(1, 1), max_epochs=1, callbacks=MoveModulesToDeviceCallback(), logger=False)
    """

    def on_training_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Move them for a fit."""
        self._move(trainer)

    def on_evaluation_run_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """Move them for a validation or test of its own."""
        self._move(trainer)

    def _move(self, trainer: Trainer) -> None:
        for value in vars(trainer).values():
            if isinstance(value, nn.Module) and value is not trainer.lightning_module:
                value.to(trainer.device)
