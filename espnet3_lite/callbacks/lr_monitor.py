"""`LearningRateMonitor`: learning rates as logged values. When they change is `lr_stepping.py`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class LearningRateMonitor(Callback):
    """Logs the learning rate of each optimizer, and puts it into ``trainer.callback_metrics``.

    Names are Lightning's: ``lr-Adam``, and ``lr-Adam-1`` for the second optimizer of a class; with several parameter
    groups ``lr-Adam/pg1``, ``lr-Adam/pg2``, or the groups' own ``name``. A scheduler's ``name`` replaces ``lr-Adam``.
    An optimizer that a configuration names is ``lr-<name>``. Optimizers without a scheduler are logged too.
    With ``fast_dev_run``, which logs nothing, the callback only fills ``trainer.callback_metrics``.

    Args:
        logging_interval: ``step`` or ``epoch``: log all then. Default: each at its scheduler's ``interval``, one
            without a scheduler at both. Steps are those that ``log_every_n_steps`` chooses.
        log_momentum: Log ``<name>-momentum`` too: ``momentum``, or the first of ``betas``; 0 where there is neither.
        log_weight_decay: Log ``<name>-weight_decay`` too.

    Raises:
        MisconfigurationException: an unknown `logging_interval`; at the start, no logger, or two groups of one name.

    Example:
        >>> monitor = LearningRateMonitor(logging_interval="step", log_momentum=True)
        >>> monitor.lrs, monitor.last_momentum_values
        ({}, {})
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ):
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): logging_interval should be `step` or "
                f"`epoch` or `None`."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        #: All values so far by name; and the last momentum and weight decay, by their own names.
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Find the names."""
        if not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "Cannot use `LearningRateMonitor` callback with `Trainer` that has no logger; remove it, or give the "
                "Trainer a logger"
            )
        named = list(_named_optimizers(trainer))
        lacks = [not {"momentum", "betas"} & set(optimizer.defaults) for _, optimizer, _ in named]
        if self.log_momentum and any(lacks):
            rank_zero_warn(
                "You have set log_momentum=True, but some optimizers do not have momentum. This will log a value 0 for "
                "the momentum.",
                RuntimeWarning,
            )
        names = [name for names, _, _ in named for name in names]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {f"{name}-momentum": None for name in names}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in names}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Log what belongs to epochs."""
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """Log what belongs to steps."""
        if self.logging_interval != "epoch" and trainer.should_log_step:
            self._log(trainer, "step")

    def _log(self, trainer: Trainer, interval: str) -> None:
        values: dict[str, float] = {}
        for names, optimizer, own_interval in _named_optimizers(trainer):
            if self.logging_interval is not None or own_interval in (None, interval):
                for name, group in zip(names, optimizer.param_groups, strict=True):
                    values.update(self._read(name, group))
        if values:
            tensors = {name: torch.tensor(value, device=trainer.device) for name, value in values.items()}
            trainer.callback_metrics.update(tensors)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.logging_step)

    def _read(self, name: str, group: dict[str, Any]) -> dict[str, float]:
        """One parameter group's values, kept and returned."""
        values = {name: float(group["lr"])}
        if name not in self.lrs:
            # A group was added (by finetuning, say), and the first one's name has got a suffix.
            self.lrs[name] = self.lrs.pop(name.removesuffix("/pg1"), []) if name.endswith("/pg1") else []
        self.lrs[name].append(values[name])
        if self.log_momentum:
            key = f"{name}-momentum"
            values[key] = float(group["betas"][0] if "betas" in group else group.get("momentum", 0))
            self.last_momentum_values[key] = values[key]
        if self.log_weight_decay:
            key = f"{name}-weight_decay"
            values[key] = float(group["weight_decay"])
            self.last_weight_decay_values[key] = values[key]
        return values


def _named_optimizers(trainer: Trainer) -> Iterator[tuple[list[str], Optimizer, str | None]]:
    """Each optimizer with its groups' names and its scheduler's interval: with schedulers first, then without."""
    seen_classes: Counter[type] = Counter()
    seen: list[Optimizer] = []
    own_names = {id(slot.optimizer): slot.name for slot in trainer.plan.slots.values()}
    configs = trainer.lr_scheduler_configs
    scheduled = [(config.slot.optimizer, config.name, config.interval) for config in configs if config.slot is not None]
    for optimizer, name, interval in [*scheduled, *((optimizer, None, None) for optimizer in trainer.optimizers)]:
        if interval is None and any(optimizer is other for other in seen):
            continue
        seen.append(optimizer)
        if own_names.get(id(optimizer)) is not None:
            name = name or f"lr-{own_names[id(optimizer)]}"
        else:
            if name is None:
                seen_classes[type(optimizer)] += 1
                name = f"lr-{type(optimizer).__name__}"
            count = seen_classes[type(optimizer)]  # Lightning's: of those without a name, put after a given name too
            name += f"-{count - 1}" if count > 1 else ""
        yield _group_names(name, optimizer.param_groups), optimizer, interval


def _group_names(name: str, groups: list[dict[str, Any]]) -> list[str]:
    """``name`` for one group without a name; else ``name/<its name>`` or ``name/pg<number>``.

    Raises:
        MisconfigurationException: two groups of one name.
    """
    if len(groups) == 1:
        own = groups[0].get("name")
        return [f"{name}/{own}" if own else name]
    names = [group.get("name", f"pg{number}") for number, group in enumerate(groups, start=1)]
    duplicates = {own for own in names if names.count(own) > 1}
    if duplicates:
        raise MisconfigurationException(
            f"A single `Optimizer` cannot have multiple parameter groups with identical `name` values. {name} has "
            f"duplicated parameter group names {duplicates}"
        )
    return [f"{name}/{own}" for own in names]
