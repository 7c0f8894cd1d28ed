"""`GradientNorm`: the gradient's norm as a logged value; ``Trainer(log_grad_norm=True)`` adds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.loaders.transfer import whole
from espnet3_lite.optim.clipping import parameters_of

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class GradientNorm(Callback):
    """Logs ``grad_norm`` before each step: the total norm of the optimizer's gradients, before they are clipped.

    Over several ranks it is the norm of the mean gradient. Of several named optimizers each has its own,
    ``grad_norm/<name>``. The norm stays on the device; a step that is left out logs none.

    Example:
        >>> GradientNorm().name_of(None)
        'grad_norm'
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LiteModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The gradients are shared between the ranks and unscaled."""
        gradients = [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        if dense:
            norm = whole(torch.nn.utils.get_total_norm([gradient.detach() for gradient in dense]))
            name = trainer.plan.slot_of(optimizer).name
            self.log(self.name_of(name if isinstance(name, str) else None), norm, batch_size=1)

    @staticmethod
    def name_of(optimizer: str | None) -> str:
        """The logged name for an optimizer's name."""
        return "grad_norm" if optimizer is None else f"grad_norm/{optimizer}"
