"""Steps by closure: optimizers that evaluate the loss several times (LBFGS), and a module's own `optimizer_step`.

The loop has run forward and backward already; the closure's first call gives that loss, further calls run both again.
"""

from __future__ import annotations

from typing import Any

import torch

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.distributed.vote import Verdict
from espnet3_lite.loops.manual_optimization import PreparingOptimizer
from espnet3_lite.optim.slots import OptimizerSlot, route


def step_with_closure(loop: Any, slot: OptimizerSlot, loss: Any, verdict: Verdict, batch: Any, batch_idx: int) -> bool:
    """An optimizer that evaluates the loss several times (LBFGS), or a module's own `optimizer_step`.

    Forward and backward ran already, for the vote: the closure's first call gives their loss. That is None where a
    skipped batch closes a window: LBFGS, which needs a loss, drops the window then.

    Returns:
        False where a gradient was not finite.
    """
    trainer, module = loop.trainer, loop.trainer.lightning_module
    accumulate = trainer.accumulate_grad_batches
    calls, prepared, finite = 0, False, True
    if verdict.skip and isinstance(slot.optimizer, torch.optim.LBFGS):
        rank_zero_warn(f"epoch {loop.epoch}, batch {batch_idx}: LBFGS drops the window that a skipped batch closes")
        return False

    def closure() -> torch.Tensor | None:
        nonlocal calls, loss
        calls += 1
        if calls > 1 and not verdict.skip:
            trainer.metrics.hook = "training_step"
            with trainer.precision_plugin.forward_context(), torch.enable_grad():
                steps = route(trainer.training_step(batch, batch_idx), trainer.slots, accumulate)
                (loss, _), *_ = verdict.weigh(steps)
            if batch_idx % accumulate == 0:
                trainer.call("on_before_zero_grad", slot.optimizer)
                module.optimizer_zero_grad(loop.epoch, batch_idx, slot.optimizer)
            loop.backward(loss, slot, retain_graph=False)
        return loss

    def prepare() -> None:
        nonlocal prepared, finite
        prepared, finite = True, loop.prepare_step(slot) and finite

    trainer.metrics.hook = "optimizer_step"
    module.optimizer_step(loop.epoch, batch_idx, PreparingOptimizer(slot.optimizer, trainer, prepare), closure)
    if trainer.precision_plugin.scaler is not None and not prepared:
        trainer.precision_plugin.scaler.unscale_(
            slot.optimizer
        )  # no step was wanted; the scaler must have looked anyway
    return finite
