"""`GradientAccumulationScheduler`: another accumulation window from some epoch on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Sets ``trainer.accumulate_grad_batches`` by the epoch.

    Args:
        scheduling: Epoch, from 0, to the number of batches that make one step from then on. Before the first epoch that
            is named, each batch makes a step.

    Raises:
        TypeError: `scheduling` is empty, or no mapping.
        MisconfigurationException: an epoch or a number that is not allowed; at the start, several named optimizers.
        RuntimeError: at the start, manual optimization.
        ValueError: at the start, ``Trainer(accumulate_grad_batches=...)`` is set as well.

    Example:
        >>> scheduler = GradientAccumulationScheduler({4: 2})
        >>> [scheduler.get_accumulate_grad_batches(epoch) for epoch in (0, 3, 4, 9)]
        [1, 1, 2, 2]
    """

    def __init__(self, scheduling: Mapping[int, int]):
        if not scheduling or not isinstance(scheduling, Mapping):
            raise TypeError(f"GradientAccumulationScheduler: `scheduling` is {scheduling!r}; give {{epoch: batches}}, "
                            f"such as {{4: 2}}")  # fmt: skip
        if not all(_is_whole(epoch, 0) for epoch in scheduling):
            raise MisconfigurationException(
                f"Epoch should be an int greater than or equal to 0. Got {list(scheduling)}."
            )
        if not all(_is_whole(count, 1) for count in scheduling.values()):
            raise MisconfigurationException(
                f"Accumulation factor should be an int greater than 0. Got {list(scheduling.values())}."
            )
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)

    def going_to_accumulate_grad_batches(self) -> bool:
        """Is there an epoch with a window of more than one batch?"""
        return any(count > 1 for count in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """How many batches make a step in `epoch`."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Check that nothing else sets the window; set it here too, since a run may resume within an epoch."""
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "Automatic gradient accumulation and the `GradientAccumulationScheduler` is not supported for manual "
                "optimization. Please remove the callback or switch to automatic optimization."
            )
        if None not in trainer.plan.slots:
            raise MisconfigurationException(
                f"GradientAccumulationScheduler is for one optimizer; for {list(trainer.plan.slots)} set "
                f"`accum_grad_steps` of each in `optimizers`"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"You have set `accumulate_grad_batches` and are using the `GradientAccumulationScheduler` callback. "
                f"Either remove `accumulate_grad_batches` from the Trainer or remove the callback. (It is "
                f"{trainer.accumulate_grad_batches}; a second GradientAccumulationScheduler sets it, too: use one.)"
            )
        overridden = any(trainer.is_overridden(name, pl_module) for name in ("optimizer_step", "optimizer_zero_grad"))
        if overridden and self.going_to_accumulate_grad_batches():
            rank_zero_warn(
                "When using `GradientAccumulationScheduler` and overriding `optimizer_step` or `optimizer_zero_grad`, "
                "the hooks will not be called on every batch (rather, they are called on every optimization step)."
            )
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Set the epoch's window."""
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Leave the trainer as it was, for its next call."""
        trainer.accumulate_grad_batches = 1


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
