"""Steps by closure: optimizers that evaluate the loss several times (LBFGS, SAM), and a module's own `optimizer_step`.

The loop has run forward and backward already; the closure's first call gives that loss, further calls run both again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.optim.manual_optimization import ManualOptimizer, demands_closure, takes_closure
from espnet3_lite.optim.slots import OptimizerSlot, route

if TYPE_CHECKING:
    from espnet3_lite.loops.fit import FitLoop


def may_use_closure(optimizer: Optimizer) -> bool:
    """Whether to step by closure: not for torch's own and their kin, which need none but for LBFGS.

    Of others nothing tells whether they evaluate the loss anew (SAM demands the closure by an assertion alone).
    """
    kin = [base for base in type(optimizer).__mro__ if base.__module__.startswith("torch.optim.")]
    return demands_closure(optimizer) or (kin == [Optimizer] and takes_closure(optimizer))


def step_with_closure(loop: FitLoop, slot: OptimizerSlot) -> bool:
    """Step an optimizer by a closure that gives the loss of the batch in work.

    Forward and backward ran already, for the vote. There is no loss where a skipped batch closes a window: LBFGS, which
    needs one, drops the window then.

    Returns:
        False where a gradient was not finite.

    Raises:
        MisconfigurationException: an own `optimizer_step` that never called the closure; an optimizer other than LBFGS
            that evaluates the last loss of a window of several batches once more; no loss in such an evaluation.
    """
    trainer, module, work = loop.trainer, loop.trainer.lightning_module, loop.work
    loss = work.losses[0][0] if work.losses else None
    calls, prepared, finite, kind = 0, False, True, type(slot.optimizer).__name__
    if work.verdict.skip and demands_closure(slot.optimizer):
        rank_zero_warn(
            f"epoch {loop.epoch}, batch {work.index}: {kind} takes no step for the window whose last batch is skipped"
        )
        return False

    def closure() -> torch.Tensor | None:
        nonlocal calls, loss
        calls += 1
        if calls > 1 and not work.verdict.skip:
            accumulate, by_weight = trainer.accumulate_grad_batches, trainer.plan.accumulates_by_weight
            if by_weight or (accumulate > 1 and not isinstance(slot.optimizer, torch.optim.LBFGS)):
                setting = "accumulate_by_weight" if by_weight else f"accumulate_grad_batches={accumulate}"
                raise MisconfigurationException(
                    f"{kind} evaluates the loss several times a step, and with {setting} only the window's last batch "
                    f"could be evaluated again. Leave it out: accumulate_grad_batches=1"
                )
            trainer.metrics.hook = "training_step"
            with torch.enable_grad():
                output = trainer.plan.training_step(work.batch, work.index)
                (loss, _), *_ = work.verdict.weigh(route(output, trainer.plan.slots, accumulate))
            if loss is None:
                raise MisconfigurationException(
                    f"{kind} evaluates the loss several times a step, and the training step returned None in a later "
                    f"evaluation of batch {work.index}; return a loss each time, or None the first time"
                )
            loop.backward(loss, slot)
        if loss is None or not may_use_closure(slot.optimizer):
            return loss
        return trainer.strategy.reduce(loss)  # collective: what the loss decides, all ranks decide alike

    def prepare() -> bool:
        nonlocal prepared, finite
        prepared, finite = True, loop.prepare_step(slot) and finite
        return finite

    optimizer = ManualOptimizer(slot.optimizer, trainer, prepare)  # has all that is an optimizer's
    trainer.hook_calls.call_module("optimizer_step", loop.epoch, work.index, optimizer, closure)
    if not calls:
        raise MisconfigurationException(
            f"{type(module).__name__}.optimizer_step has not called its closure. Pass it on: optimizer.step(closure="
            f"optimizer_closure); or call it where nothing is to be stepped: optimizer_closure()"
        )
    if not prepared:  # no step was wanted; the scaler must have looked
        trainer.precision_plugin.unscale(slot, trainer.plan.slots.values())
    return finite
