"""What `configure_optimizers` may return, and what of it is refused before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.optim.slots import LRSchedulerConfig, OptimizerSlot

#: What may stand in a dict; the first one must.
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor")
_SCHEDULER_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")


def parse_optimizers(
    returned: Any, owner: str, steps_by_hand: bool = False, steps_its_way: bool = False
) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Read the seven documented shapes of `configure_optimizers`.

    Args:
        returned: What it returned.
        owner: The module's class, for messages.
        steps_by_hand: The module steps its schedulers itself (manual optimization): none needs a `monitor`.
        steps_its_way: It overrides `lr_scheduler_step`: only `ReduceLROnPlateau` needs one.

    Returns:
        The optimizers, and the scheduler configurations (their `slot` is filled in later).

    Raises:
        MisconfigurationException: another shape, an unknown key, a plateau scheduler without `monitor`.
    """
    where = f"{owner}.configure_optimizers()"
    if returned is None or isinstance(returned, (Optimizer, Mapping)):
        returned = [] if returned is None else [returned]
    if not isinstance(returned, (list, tuple)):
        raise MisconfigurationException(f"{where} returned {type(returned).__name__}; return an optimizer, a list, a "
                                        f"pair of lists, a dict with 'optimizer', or None")  # fmt: skip
    match returned:
        case [[*optimizers], [*schedulers]]:
            pass
        case [[*optimizers], {**scheduler}]:
            schedulers = [scheduler]
        case _:
            entries = [part if isinstance(part, Mapping) else {"optimizer": part} for part in returned]
            optimizers = [_known(part, _OPTIMIZER_KEYS, where)["optimizer"] for part in entries]
            schedulers = [_scheduler_of(part) for part in entries if part.get("lr_scheduler") is not None]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise MisconfigurationException(f"{where}: {optimizer!r} is not a torch.optim.Optimizer")
    return optimizers, [parse_scheduler(given, where, steps_by_hand, steps_its_way) for given in schedulers]


def _scheduler_of(part: Mapping[str, Any]) -> Any:
    """A dict's scheduler; `monitor` may stand beside it, as Lightning allows."""
    scheduler = part["lr_scheduler"]
    return scheduler if isinstance(scheduler, Mapping) else {"scheduler": scheduler, "monitor": part.get("monitor")}


def _known(part: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """A dict that holds nothing but documented keys, and the first of them."""
    needed, unknown = keys[0], [key for key in part if key not in keys]
    if unknown or needed not in part:
        wrong = f"lacks {needed!r}" if needed not in part else f"has the unknown key {unknown[0]!r} beside {needed!r}"
        hint = nearest(unknown[0], keys) if unknown else ""
        raise MisconfigurationException(
            f"{where}: the dict with the keys {list(part)} {wrong}; known are {list(keys)}{hint}"
        )
    return part


def parse_scheduler(given: Any, where: str, steps_by_hand: bool, steps_its_way: bool) -> LRSchedulerConfig:
    """A scheduler, or a dict with `scheduler` and its settings, as a configuration. See `parse_optimizers`."""
    settings = given if isinstance(given, Mapping) else {"scheduler": given}
    config = LRSchedulerConfig(**_known(settings, _SCHEDULER_KEYS, where))
    if not hasattr(config.scheduler, "step"):
        raise MisconfigurationException(f"{where}: the scheduler {config.scheduler!r} has no step()")
    if config.interval not in ("step", "epoch"):
        raise MisconfigurationException(f"{where}: interval={config.interval!r} is not 'step' or 'epoch'")
    if config.frequency < 1:
        raise MisconfigurationException(f"{where}: frequency={config.frequency!r} is below 1")
    plateau = config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)
    metric = _metric_of_step(config.scheduler)
    takes_metric = plateau or metric is not None
    needs_none = steps_by_hand or (steps_its_way and not plateau)
    if takes_metric and config.monitor is None and not needs_none:
        raise MisconfigurationException(
            f"{where}: {type(config.scheduler).__name__} steps by a metric and needs `monitor`, for example "
            f"{{'scheduler': ..., 'monitor': 'valid/loss'}}"
        )
    if not takes_metric:
        config.monitor = None  # Lightning ignores it too; in a configuration file it is an error
    config.reduce_on_plateau = config.monitor is not None
    config.steps_both_ways = config.reduce_on_plateau and metric is not None and metric.default is not metric.empty
    return config


def step_takes_metric(scheduler: Any) -> bool:
    """True for `ReduceLROnPlateau` and for schedulers whose ``step`` has an argument for a metric.

    That is one which it demands, or one named ``metrics``.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> step_takes_metric(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    False
    """
    return _metric_of_step(scheduler) is not None


def _metric_of_step(scheduler: Any) -> inspect.Parameter | None:
    step = getattr(scheduler if isinstance(scheduler, type) else type(scheduler), "step", None)
    arguments = [] if step is None else list(inspect.signature(step).parameters.values())[1:]
    places = [argument for argument in arguments if argument.kind <= argument.POSITIONAL_OR_KEYWORD]
    return next((one for one in places if one.default is one.empty or one.name == "metrics"), None)


def attach_schedulers(configs: Iterable[LRSchedulerConfig], slots: Iterable[OptimizerSlot], owner: str) -> None:
    """Give each scheduler the slot whose optimizer it changes: by the object, whatever the order.

    One that does not say which optimizer it changes belongs to the only one.

    Raises:
        MisconfigurationException: a scheduler of an optimizer that was not returned.
    """
    slots = list(slots)
    by_optimizer = {id(slot.optimizer): slot for slot in slots}
    for config in configs:
        optimizer = getattr(config.scheduler, "optimizer", slots[0].optimizer if len(slots) == 1 else None)
        config.slot = by_optimizer.get(id(optimizer))
        if config.slot is None and optimizer is not None:
            raise MisconfigurationException(
                f"{owner}.configure_optimizers() returned a {type(config.scheduler).__name__} for a "
                f"{type(optimizer).__name__} that it did not return, and whose rates would change nothing. Return that "
                f"optimizer too, or make the scheduler for one of those returned"
            )
        config.own_groups = len(config.slot.optimizer.param_groups) if config.slot is not None else None


def check_parameters(slots: Iterable[OptimizerSlot], module: torch.nn.Module) -> None:
    """Refuse an optimizer whose parameters are none of the module's: it would train nothing, without a word.

    Raises:
        MisconfigurationException: naming the optimizer.
    """
    own = {id(parameter) for parameter in module.parameters()}
    for slot in slots:
        if slot.parameters and not any(id(parameter) in own for parameter in slot.parameters):
            raise MisconfigurationException(
                f"{type(module).__name__}.configure_optimizers(): none of the parameters of "
                f"{type(slot.optimizer).__name__} is one of the module's. Was it made for another model, for a copy, "
                f"or before the parameters were replaced? Make it in configure_optimizers, from self.parameters()"
            )
