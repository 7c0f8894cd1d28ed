"""Optimizers' and schedulers' values as they are configured, beside those that a resumed run goes on with.

A checkpoint holds both: what was configured, and what had become of it. Only where the configuration itself has changed
is there something to tell: a rate that a scheduler or a callback has changed is none of the user's doing.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The numbers of each parameter group; of a rate that a scheduler changes, the one that it began with."""
    return [_settings_of(group) for group in optimizer.param_groups]


def _settings_of(group: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in group.items() if isinstance(value, (int, float, tuple))}
    rate = settings.pop("initial_lr", settings.get("lr"))
    return settings if rate is None else {**settings, "lr": rate}


def compare(trainer: Trainer, before: list[list[dict[str, Any]]], override: bool) -> None:
    """After the optimizers were restored: warn of configured values that are not taken, or take them.

    Args:
        trainer: Its plan holds what is configured now.
        before: What was configured when the checkpoint was saved; empty in Lightning's files and older ones, where what
            the optimizers hold must do.
        override: Take what is configured now.
    """
    plan = trainer.plan
    for number, optimizer in enumerate(trainer.optimizers):
        known = before[number] if number < len(before) else settings_of(optimizer)
        for index, (group, was, now) in enumerate(
            zip(optimizer.param_groups, known, plan.configured[number], strict=False)
        ):
            if override:
                _take(group, now)
                continue
            steered = () if number < len(before) or "initial_lr" not in group else ("momentum", "betas")
            for name in [n for n in now if was.get(n, now[n]) != now[n] and n not in steered]:
                _warn(optimizer, name, was[name], now[name], f" in parameter group {index}" if index else "")
                plan.not_taken.add("optimizer")
        if not override:
            plan.configured[number] = [*known]
    if override:
        _follow_rates(trainer)
        rank_zero_info("The optimizers take their configured values, not the checkpoint's (override_optimizer)")


def _take(group: dict[str, Any], configured: dict[str, Any]) -> None:
    """Give a parameter group its configured values; of a rate that a scheduler has changed, as much of the new one."""
    values = dict(configured)
    if "initial_lr" in group and "lr" in values:
        before, group["initial_lr"] = group["initial_lr"], values.pop("lr")
        group["lr"] = group["lr"] * group["initial_lr"] / before if before else group["initial_lr"]
    group.update(values)


def _follow_rates(trainer: Trainer) -> None:
    """Schedulers keep the rates that they began with, and the last ones."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        groups = scheduler.optimizer.param_groups
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
        scheduler._last_lr = [group["lr"] for group in groups]


def _warn(owner: object, name: str, kept: Any, configured: Any, where: str = "") -> None:
    rank_zero_warn(
        f"{type(owner).__name__} goes on with the checkpoint's {name}={kept}{where}; for the configured "
        f"{name}={configured} begin a new run (--fresh)"
        + (", or fit(..., override_optimizer=True) (--override-optimizer)" if isinstance(owner, Optimizer) else "")
    )


def numbers_of(scheduler: Any) -> dict[str, int | float]:
    """What a scheduler's constructor was given, as far as its state tells: not what it counts."""
    given = inspect.signature(type(scheduler)).parameters.keys() - {"last_epoch"}
    return {name: v for name, v in scheduler.state_dict().items() if name in given and isinstance(v, (int, float))}


def warn_of_scheduler(trainer: Trainer, scheduler: Any, configured: dict[str, int | float]) -> None:
    """After a scheduler was restored: say which of its configured numbers it does not take."""
    restored = numbers_of(scheduler)
    for name, value in configured.items():
        if restored.get(name, value) != value:
            _warn(scheduler, name, restored[name], value)
            trainer.plan.not_taken.add("scheduler")
