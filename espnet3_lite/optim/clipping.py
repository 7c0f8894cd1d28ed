"""Clipping, and whether a gradient is finite: what happens between backward and step, decided once an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from espnet3_lite.exceptions import MisconfigurationException


@dataclass(frozen=True)
class Clipping:
    """How one optimizer's gradients are clipped before each step.

    Args:
        value: The largest total norm, or the largest absolute value; None or 0: nothing is clipped.
        algorithm: ``norm`` (also None) or ``value``.
        by_module: The module's own `configure_gradient_clipping`; None where it has none.
        checked: Somebody wants to know the norm, whether or not anything is clipped.
    """

    value: float | None = None
    algorithm: str | None = "norm"
    by_module: Callable[[Optimizer, float | None, str | None], None] | None = None
    checked: bool = False

    @property
    def wanted(self) -> bool:
        """There is something to do."""
        return bool(self.value) or self.by_module is not None or self.checked

    def clip(self, optimizer: Optimizer) -> float:
        """Clip the gradients in place.

        Returns:
            Their total norm before; 0.0 where it is not known.
        """
        norm = None
        by_value = bool(self.value) and self.algorithm == "value"
        if by_value or (self.checked and (not self.value or self.by_module is not None)):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self.by_module is not None:
            self.by_module(optimizer, self.value, self.algorithm)
        else:
            clipped = clip_gradients(optimizer, self.value, self.algorithm)
            norm = clipped if clipped is not None else norm
        return 0.0 if norm is None else float(norm)  # a CPU-GPU sync point


def clip_gradients(optimizer: Optimizer, value: float | None, algorithm: str | None = "norm") -> torch.Tensor | None:
    """Clip the gradients of an optimizer's parameters in place.

    Args:
        optimizer: Whose parameters.
        value: The largest total norm, or the largest absolute value; None or 0 does nothing.
        algorithm: ``norm`` or ``value``.

    Returns:
        The total norm before clipping, ``()``; None for ``value`` or where nothing is clipped.
    """
    if not value:
        return None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if algorithm in (None, "norm"):
        return whole(torch.nn.utils.clip_grad_norm_(parameters, value))
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, value)
        return None
    raise MisconfigurationException(f"gradient_clip_algorithm={algorithm!r} is not 'norm' or 'value'")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together on all ranks (collective: all clip together); any other as it is."""
    return tensor if type(tensor) is torch.Tensor else tensor.full_tensor()
