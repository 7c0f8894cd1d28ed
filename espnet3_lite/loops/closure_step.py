"""Steps by closure: optimizers that evaluate the loss several times (LBFGS), and a module's own `optimizer_step`.

The loop has run forward and backward already; the closure's first call gives that loss, further calls run both again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.optim.manual_optimization import PreparingOptimizer
from espnet3_lite.optim.slots import OptimizerSlot, route

if TYPE_CHECKING:
    from espnet3_lite.loops.fit import FitLoop


def step_with_closure(loop: FitLoop, slot: OptimizerSlot) -> bool:
    """Step an optimizer by a closure that gives the loss of the batch in work.

    Forward and backward ran already, for the vote. There is no loss where a skipped batch closes a window: LBFGS, which
    needs one, drops the window then.

    Returns:
        False where a gradient was not finite.
    """
    trainer, module, work = loop.trainer, loop.trainer.lightning_module, loop.work
    loss = work.losses[0][0] if work.losses else None
    calls, prepared, finite = 0, False, True
    if work.verdict.skip and isinstance(slot.optimizer, torch.optim.LBFGS):
        rank_zero_warn(f"epoch {loop.epoch}, batch {work.index}: LBFGS drops the window that a skipped batch closes")
        return False

    def closure() -> torch.Tensor | None:
        nonlocal calls, loss
        calls += 1
        if calls > 1 and not work.verdict.skip:
            accumulate = trainer.accumulate_grad_batches
            trainer.metrics.hook = "training_step"
            with trainer.precision_plugin.forward_context(), torch.enable_grad():
                output = trainer.plan.training_step(work.batch, work.index)
                (loss, _), *_ = work.verdict.weigh(route(output, trainer.plan.slots, accumulate))
            if work.index % accumulate == 0:
                trainer.call("on_before_zero_grad", slot.optimizer)
                module.optimizer_zero_grad(loop.epoch, work.index, slot.optimizer)
            loop.backward(loss, slot, retain_graph=False)
        return loss

    def prepare() -> None:
        nonlocal prepared, finite
        prepared, finite = True, loop.prepare_step(slot) and finite

    trainer.metrics.hook = "optimizer_step"
    module.optimizer_step(loop.epoch, work.index, PreparingOptimizer(slot.optimizer, trainer, prepare), closure)
    if trainer.precision_plugin.scaler is not None and not prepared:
        trainer.precision_plugin.scaler.unscale_(slot.optimizer)  # no step was wanted; the scaler must have looked
    return finite
