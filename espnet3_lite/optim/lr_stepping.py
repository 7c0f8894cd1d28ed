"""Schedulers: what `configure_optimizers` may say of them, and when each steps: with an update, an epoch, a metric."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from espnet3_lite.checks.signatures import arguments_of_step, metric_of_step
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest, refuse

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer

#: What may stand in a scheduler's dict; the first one must.
_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")
_DEMANDED = inspect.Parameter.empty  # the default of an argument that has none


@dataclass(eq=False, slots=True)
class LRSchedulerConfig:
    """A scheduler and when it steps; an entry of ``trainer.lr_scheduler_configs``."""

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    reduce_on_plateau: bool = False
    #: It steps without a metric after each update, and with one after validations (`WarmupReduceLROnPlateau`).
    steps_both_ways: bool = False
    #: The optimizer's slot, for one optimizer and for many; and how many parameter groups the scheduler knows.
    slot: OptimizerSlot | None = field(default=None, repr=False)
    own_groups: int | None = field(default=None, repr=False)
    #: How often the metric had been logged when this scheduler stepped last.
    seen_version: int = 0
    #: `interval: step`: it was due at the last update, and its metric had not been logged anew.
    waits: bool = False

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's own state without functions: torch 2.6 puts one of SWALR's in there; each makes its own.

        Of a scheduler that stands in it, such as that which takes over after a warm-up, it holds the state.
        """
        state = {name: value for name, value in self.scheduler.state_dict().items() if not callable(value)}
        return {name: v.state_dict() if hasattr(v, "load_state_dict") else v for name, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, into the same objects."""
        inner = {n: v for n, v in self.scheduler.state_dict().items() if n in state and hasattr(v, "load_state_dict")}
        self.scheduler.load_state_dict({name: value for name, value in state.items() if name not in inner})
        for name, scheduler in inner.items():
            scheduler.load_state_dict(state[name])


# ---- configuring -----------------------------------------------------------------------------------------------------


def known_keys(part: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
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
    config = LRSchedulerConfig(**known_keys(settings, _KEYS, where))
    kind, arguments = type(config.scheduler).__name__, arguments_of_step(config.scheduler)
    missing = [name for name in ("step", "state_dict", "load_state_dict") if not hasattr(config.scheduler, name)]
    plateau = config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)
    metric = metric_of_step(config.scheduler)
    comes_first, by_hand = metric in arguments[:1], steps_by_hand or steps_its_way
    if not plateau and metric is None:
        config.monitor = None  # Lightning ignores it too; in a configuration file it is an error
    config.reduce_on_plateau = monitored = config.monitor is not None
    config.steps_both_ways = monitored and comes_first and arguments[0].default is not _DEMANDED
    demands_more = any(argument.default is _DEMANDED for argument in arguments[monitored:])
    misplaced = monitored and metric is not None and not comes_first
    refuse(
        f"{where}: ",
        (missing, f"the scheduler {config.scheduler!r} has no {'(), '.join(missing)}(). The trainer calls step(), and "
         f"keeps in a checkpoint what state_dict() gives, for load_state_dict(): give {kind} a subclass that has them"),
        (config.interval not in ("step", "epoch"), f"interval={config.interval!r} is not 'step' or 'epoch'"),
        (config.frequency < 1, f"frequency={config.frequency!r} is below 1"),
        ((plateau or comes_first) and not (monitored or steps_by_hand or (steps_its_way and not plateau)),
         f"{kind} steps by a metric and needs `monitor`, for example {{'scheduler': ..., 'monitor': 'valid/loss'}}"),
        ((demands_more or misplaced) and not by_hand, f"{kind}.step({', '.join(map(str, arguments))}) cannot be called "
         f"as step({'metric' if monitored else ''}). Say how it steps in {where.partition('.')[0]}.lr_scheduler_step"
         f"(self, scheduler, metric), for example `scheduler.step(epoch=self.current_epoch + 1, metric=metric)`"),
    )  # fmt: skip
    return config


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


# ---- stepping --------------------------------------------------------------------------------------------------------


def step_after_update(trainer: Trainer, stepped: list[OptimizerSlot], batch_idx: int) -> None:
    """`interval: step` schedulers of the optimizers just updated; monitored ones wait until the batch has logged."""
    for config in trainer.plan.schedulers:
        if config.slot not in stepped:
            continue
        # Lightning counts `frequency` in batches of the epoch; a named optimizer counts its own updates.
        count = batch_idx + 1 if config.slot.name is None else config.slot.update_step
        due = config.interval == "step" and count % config.frequency == 0
        if config.steps_both_ways or (due and config.monitor is None):
            _step(trainer, config, None)
        else:
            config.waits = due


def step_waiting(trainer: Trainer) -> None:
    """Monitored `interval: step` schedulers that are due, if their metric was logged anew; else they wait on."""
    for config in trainer.plan.schedulers:
        if config.waits:
            config.waits = not step_monitored(trainer, config)


def step_with_epoch(trainer: Trainer, monitored: bool) -> None:
    """`interval: epoch` schedulers without a metric, with the epoch's last batch.

    Those with a metric (`monitored`) step after the epoch's validation, and before a checkpoint of it is written. A
    training metric that is logged for the epoch's mean decides by that mean, which comes with the epoch's end.
    """
    for config in trainer.plan.schedulers:
        by_epoch = config.interval == "epoch" or config.steps_both_ways
        due = by_epoch and (trainer.current_epoch + 1) % config.frequency == 0
        if due and monitored and config.monitor is not None:
            step_monitored(trainer, config, by_mean=True)
        elif due and not monitored and config.monitor is None:
            _step(trainer, config, None)


def step_monitored(trainer: Trainer, config: LRSchedulerConfig, by_mean: bool = False) -> bool:
    """Step by the metric if it was logged anew (on any rank) since the last step. False where it was not.

    Args:
        trainer: Whose metrics are looked at.
        config: The scheduler.
        by_mean: A step's value is none where the epoch's mean of it will follow.
    """
    metrics, strategy, monitor = trainer.metrics, trainer.strategy, config.monitor
    assert monitor is not None  # the callers' condition
    value = metrics.callback.get(monitor)
    version = metrics.versions.get(monitor, 0)
    # Collective: also a rank that has logged nothing itself steps, by the mean of the others.
    anew = version > config.seen_version and not (by_mean and metrics.mean_follows(monitor))
    value = strategy.agreed_metric(value if anew else None)
    if value is None:
        return False
    # Collective: the same on all ranks, so that rank zero's, which a checkpoint holds, is everybody's.
    config.seen_version = metrics.versions[monitor] = max(strategy.gather_objects(version))
    _step(trainer, config, value)
    return True


def require_monitored(trainer: Trainer) -> None:
    """At an epoch's end: a metric that was never logged although validation ran is an error.

    Raises:
        MisconfigurationException: naming the scheduler and the nearest metric.
    """
    available = trainer.metrics.callback
    for config in trainer.plan.schedulers:
        monitor, seen = config.monitor, config.seen_version > 0
        if monitor is None or trainer.strategy.any(monitor in available or seen):  # collective: all ranks
            continue
        name = "" if config.slot is None or config.slot.name is None else f"schedulers.{config.slot.name}: "
        message = (
            f"{name}{type(config.scheduler).__name__} conditioned on metric {monitor!r} which is not available. "
            f"Available metrics are: {sorted(available)}{nearest(monitor, available)}"
        )
        if config.strict:
            raise MisconfigurationException(message)
        rank_zero_warn(f"{message}. strict=False: the learning rate stays as it is.", RuntimeWarning)


def _step(trainer: Trainer, config: LRSchedulerConfig, metric: float | torch.Tensor | None) -> None:
    """Step a scheduler; parameter groups that joined the optimizer since follow the first one, in proportion.

    A scheduler knows the groups that were there when it was made, and most refuse others in the middle of a run.
    """
    groups, own = config.slot.optimizer.param_groups if config.slot is not None else [], config.own_groups
    if not own or len(groups) <= own:  # nearly always
        trainer.hook_calls.call_module("lr_scheduler_step", config.scheduler, metric)
        return
    joined, before = groups[own:], groups[0]["lr"]
    del groups[own:]
    try:
        trainer.hook_calls.call_module("lr_scheduler_step", config.scheduler, metric)
    finally:
        groups.extend(joined)
    for group in joined:
        if before:  # else it stands in the group since the first one's rate fell to zero
            group["share_of_first"] = group["lr"] / before
        group["lr"] = groups[0]["lr"] * group.get("share_of_first", 1.0)
