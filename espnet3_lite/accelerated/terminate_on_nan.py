"""`TerminateOnNaNCallback`: the first loss that is not finite ends the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.accelerated.trainer_callback import TrainerCallback
from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.loaders.transfer import loss_of

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class TerminateOnNaNCallback(TrainerCallback):
    """Ends the run with `StopTrainingError` at the first loss that is NaN or infinite, in training or evaluation.

    Without it such a training batch is skipped, and only the 101st in a row ends the run. All ranks decide alike. The
    loop has checked the training loss already. In an evaluation one flag is read from the device, at its end.

    Attributes:
        triggered: It ended a run.

    Example:
        >>> TerminateOnNaNCallback().triggered
        False
    """

    triggered = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Was the batch skipped? With manual optimization nobody has looked: read the loss."""
        if trainer.plan.automatic_optimization:
            bad = outputs is None
        else:
            bad = trainer.strategy.any(bool(_is_bad(outputs)))  # collective: all ranks end the batch
        if bad:
            self._terminate("training")

    def on_eval_epoch_start(self, trainer: Trainer, **kwargs: Any) -> None:
        """No batch was bad so far."""
        self._bad_flags: list[torch.Tensor] = []

    def on_eval_step_end(self, trainer: Trainer, batch: Any, batch_output: dict[str, Any], **kwargs: Any) -> None:
        """Look at the loss, on its device."""
        if (flag := _is_bad(batch_output)) is not None:
            self._bad_flags.append(flag)

    def on_eval_epoch_end(self, trainer: Trainer, **kwargs: Any) -> None:
        """Read what was found."""
        bad = bool(self._bad_flags) and bool(torch.stack(self._bad_flags).any())
        if trainer.strategy.any(bad):  # collective: all ranks end the evaluation
            self._terminate("validation")

    def _terminate(self, step: str) -> None:
        self.triggered = True
        raise StopTrainingError(f"Stopping training due to NaN loss in {step} step")


def _is_bad(output: Any) -> torch.Tensor | None:
    """``()`` bool on the loss's device; None where there is no loss."""
    loss = loss_of(output)
    return ~loss.detach().isfinite().all() if isinstance(loss, torch.Tensor) else None
