"""When learning rates change: each scheduler after its optimizer's update, or with the epoch, or by its metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.optim.slots import LRSchedulerConfig, OptimizerSlot

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def step_after_update(trainer: Trainer, stepped: list[OptimizerSlot], batch_idx: int) -> None:
    """`interval: step` schedulers of the optimizers just updated; monitored ones wait until the batch has logged."""
    for config in trainer.lr_scheduler_configs:
        if config.slot not in stepped:
            continue
        # Lightning counts `frequency` in batches of the epoch; a named optimizer counts its own updates.
        count = batch_idx + 1 if config.slot.name is None else config.slot.update_step
        due = config.interval == "step" and count % config.frequency == 0
        config.waits = due and config.monitor is not None and not config.steps_both_ways
        if config.steps_both_ways or (due and not config.waits):
            _step(trainer, config, None)


def step_waiting(trainer: Trainer) -> None:
    """Monitored `interval: step` schedulers that are due, if their metric was logged anew; else they wait on."""
    for config in trainer.lr_scheduler_configs:
        if config.waits:
            config.waits = not step_monitored(trainer, config)


def step_with_epoch(trainer: Trainer, monitored: bool) -> None:
    """`interval: epoch` schedulers without a metric, with the epoch's last batch.

    Those with a metric (`monitored`) step after the epoch's validation, and before a checkpoint of it is written.
    """
    for config in trainer.lr_scheduler_configs:
        by_epoch = config.interval == "epoch" or config.steps_both_ways
        due = by_epoch and (trainer.current_epoch + 1) % config.frequency == 0
        if due and monitored and config.monitor is not None:
            step_monitored(trainer, config)
        elif due and not monitored and config.monitor is None:
            _step(trainer, config, None)


def step_monitored(trainer: Trainer, config: LRSchedulerConfig) -> bool:
    """Step by the metric if it was logged anew (on any rank) since the last step. False where it was not."""
    metrics, strategy, monitor = trainer.metrics, trainer.strategy, config.monitor
    assert monitor is not None  # the callers' condition
    value = metrics.callback.get(monitor)
    version = metrics.versions.get(monitor, 0)
    # Collective: also a rank that has logged nothing itself steps, by the mean of the others.
    value = strategy.agreed_metric(monitor, value if version > config.seen_version else None)
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
    for config in trainer.lr_scheduler_configs:
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
    groups = config.slot.optimizer.param_groups if config.slot is not None else []
    own = config.own_groups or len(groups)
    joined, before = groups[own:], groups[0]["lr"] if groups else 0.0
    del groups[own:]
    try:
        if "lr_scheduler_step" in trainer.hook_calls.of_module:
            trainer.metrics.hook = "lr_scheduler_step"
            trainer.lightning_module.lr_scheduler_step(config.scheduler, metric)
        elif metric is None:
            config.scheduler.step()
        else:
            config.scheduler.step(metric)
    finally:
        groups.extend(joined)
    for group in joined:
        if before:  # else it stands in the group since the first one's rate fell to zero
            group["share_of_first"] = group["lr"] / before
        group["lr"] = groups[0]["lr"] * group.get("share_of_first", 1.0)
