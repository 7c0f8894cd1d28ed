"""Clipping, and whether a gradient is finite: what happens between backward and step."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.transfer import whole

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


#: Of a parameter group.
_PARAMS = operator.itemgetter("params")


def parameters_of(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """All that an optimizer trains now."""
    return list(chain.from_iterable(map(_PARAMS, optimizer.param_groups)))  # no loop: it is asked in each step


def clip_gradients(optimizer: Optimizer, value: float | None, algorithm: str | None = "norm") -> torch.Tensor | None:
    """Clip the gradients of an optimizer's parameters in place.

    Args:
        optimizer: Whose parameters.
        value: The largest total norm, or the largest absolute value; None or 0 does nothing.
        algorithm: ``norm`` or ``value``.

    Returns:
        The total norm before clipping, ``()``; None for ``value`` or where nothing is clipped.

    Raises:
        MisconfigurationException: another algorithm.
    """
    if algorithm not in (None, "norm", "value"):
        raise MisconfigurationException(f"gradient_clip_algorithm={algorithm!r} is not 'norm' or 'value'")
    if not value:
        return None
    parameters = _with_dense_gradients(parameters_of(optimizer))
    if algorithm == "value":
        if parameters:
            torch.nn.utils.clip_grad_value_(parameters, value)
        return None
    return whole(torch.nn.utils.clip_grad_norm_(parameters, value))  # collective where it is sharded: all clip together


def largest_gradient(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The largest absolute value of a gradient, ``()``: finite where all are, which a norm is not (it may overflow)."""
    gradients = [parameter.grad for parameter in _with_dense_gradients(parameters) if parameter.numel()]
    return whole(torch.nn.utils.get_total_norm(gradients, norm_type=math.inf))  # type: ignore[arg-type]  # none is None


def _with_dense_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The parameters that have a gradient. Where it is sparse (an embedding's), which torch's clipping refuses, a
    tensor stands for the parameter, and has the gradient's values as its own, after equal indices were added up."""
    found: list[torch.Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient = gradient.coalesce()
            values = gradient.values().detach()
            found.append(torch.empty_like(values))
            found[-1].grad = values
        elif gradient is not None:
            found.append(parameter)
    return found


def prepare_clipping(trainer: Trainer, optimizer: Optimizer, value: Any, algorithm: Any) -> tuple[Any, Any]:
    """What must come before a module clips for itself; and what it clips by, where it left that to the trainer.

    Raises:
        MisconfigurationException: its arguments and the trainer's settings differ.
    """
    if not trainer.plan.automatic_optimization:
        slot = trainer.plan.slot_of(optimizer)
        trainer.strategy.share_gradients([slot])  # collective: all ranks run the same training_step
        trainer.precision_plugin.unscale(slot, trainer.plan.slots.values())
        return value, algorithm
    agreed = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    for name, given in agreed.items():
        setting = getattr(trainer, name)
        if given is not None and setting is not None and given != setting:
            raise MisconfigurationException(
                f"Trainer({name}={setting!r}), but {type(trainer.lightning_module).__name__} calls clip_gradients("
                f"{name}={given!r}). Use only one of them"
            )
        agreed[name] = setting if given is None else given
    return agreed["gradient_clip_val"], agreed["gradient_clip_algorithm"]
