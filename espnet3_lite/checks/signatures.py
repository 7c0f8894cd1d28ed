"""What a function takes, as its signature tells: which arguments, and whether it can do without them.

Imports nothing of ours: every room may use it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def taking(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """A function of these arguments that hands on those which `function` takes, in whatever way it takes them.

    >>> taking(lambda batch: batch, ("batch", "batch_idx"))(1, 2)
    1
    >>> taking(lambda batch, **others: others, ("batch", "batch_idx"))(1, 2)
    {'batch_idx': 2}
    """
    plain = getattr(getattr(function, "__func__", None), "__code__", None)
    if plain is not None and plain.co_argcount > len(names):  # a method with as many: to read a signature takes long
        return function
    parameters = inspect.signature(function).parameters.values()
    kinds = [parameter.kind for parameter in parameters]
    by_place = kinds.count(inspect.Parameter.POSITIONAL_ONLY) + kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if inspect.Parameter.VAR_POSITIONAL in kinds or by_place >= len(names):
        return function
    anything = inspect.Parameter.VAR_KEYWORD in kinds
    keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    rest = [(place, name) for place, name in enumerate(names) if place >= by_place]
    by_name = [(place, name) for place, name in rest if anything or name in keywords]
    return lambda *values: function(*values[:by_place], **{name: values[place] for place, name in by_name})


def takes(function: Callable[..., Any], name: str, place: int) -> bool:
    """Whether a function takes an argument by its name, or at this place."""
    parameters = list(inspect.signature(function).parameters.values())
    open_end = any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters)
    return open_end or len(parameters) > place or any(parameter.name == name for parameter in parameters)


def demands(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name without a default."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def taken_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments, by name, that a function or class takes; all of them where it takes any.

    >>> taken_of(lambda width, depth=1: None, {"width": 8, "bias": False})
    {'width': 8}
    """
    parameters = inspect.signature(function).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if anything or name in parameters}


def arguments_of_step(scheduler: Any) -> list[inspect.Parameter]:
    """The arguments that a scheduler's ``step`` takes by place; none where it has no such method.

    Args:
        scheduler: The scheduler, or its class.
    """
    step = getattr(scheduler if isinstance(scheduler, type) else type(scheduler), "step", None)
    arguments = [] if step is None else list(inspect.signature(step).parameters.values())[1:]
    return [argument for argument in arguments if argument.kind <= argument.POSITIONAL_OR_KEYWORD]


def metric_of_step(scheduler: Any) -> inspect.Parameter | None:
    """The argument for a metric that a scheduler's ``step`` has: one named so, or one which it demands.

    Args:
        scheduler: The scheduler, or its class.

    >>> import torch
    >>> metric_of_step(torch.optim.lr_scheduler.ReduceLROnPlateau).name
    'metrics'
    >>> metric_of_step(torch.optim.lr_scheduler.StepLR) is None
    True
    """
    arguments = arguments_of_step(scheduler)
    named = [argument for argument in arguments if argument.name in ("metric", "metrics")]
    return next(iter(named or [one for one in arguments if one.default is one.empty and one.name != "epoch"]), None)
