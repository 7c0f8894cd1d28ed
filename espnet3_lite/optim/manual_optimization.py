"""Manual optimization: `automatic_optimization = False`, and the module steps its optimizers itself.

What Lightning documents: ``self.optimizers()``, ``self.manual_backward(loss)``, ``optimizer.step()``, toggling.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from espnet3_lite.checks.signatures import demands

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer


class ManualOptimizer:
    """What ``self.optimizers()`` gives: the optimizer, whose `step` calls the hooks and counts.

    It has all attributes of the optimizer that it stands for, and is an instance of its class for ``isinstance``. It
    keeps nothing of its own: each call of ``self.optimizers()`` makes one. An overridden `optimizer_step` gets one too.

    Args:
        optimizer: The one that it stands for.
        trainer: Whose hooks and gradient scaler; None for a copy in another process.
        prepare: For `optimizer_step`: called between the closure and the step, each time; False where the gradient is
            not finite. The loop counts these steps.
    """

    def __init__(self, optimizer: Optimizer, trainer: Trainer | None, prepare: Callable[[], bool] | None = None):
        # `_optimizer` is what code written for Lightning asks for.
        self.__dict__.update(optimizer=optimizer, _optimizer=optimizer, _trainer=trainer, _prepare=prepare)

    @property  # type: ignore[misc]  # for isinstance; nobody sets it
    def __class__(self) -> type:
        return type(self.__dict__["optimizer"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["optimizer"], name, value)

    def __copy__(self) -> ManualOptimizer:
        return ManualOptimizer(self.optimizer, self._trainer)

    def __deepcopy__(self, memo: dict[int, Any]) -> ManualOptimizer:
        return ManualOptimizer(copy.deepcopy(self.optimizer, memo), memo.get(id(self._trainer)))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return ManualOptimizer, (self.optimizer, None)  # in another process: of no trainer

    @property
    def _slot(self) -> OptimizerSlot:
        if self._trainer is None:
            raise RuntimeError(
                f"this copy of {type(self.optimizer).__name__} belongs to no trainer; ask self.optimizers() in a fit"
            )
        return self._trainer.plan.slot_of(self.optimizer)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's own; what was accumulated is given up."""
        self.optimizer.zero_grad(set_to_none)
        self._slot.pending = 0

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Step the optimizer: ranks, hooks, gradient scaler and ``global_step`` included.

        With a scaler, or `check_grad_finite`, a step whose gradient is not finite is left out, and counts nowhere.

        Args:
            closure: Computes the loss and its gradients; the optimizer calls it as often as it likes.
            kwargs: For the optimizer's own `step`.

        Returns:
            What the closure returned.
        """
        if self._prepare is not None:
            return self._step_prepared(closure, self._prepare, kwargs)[0]
        slot, trainer = self._slot, self._trainer
        loop, strategy = trainer.fit_loop, trainer.strategy

        def agreed(closure: Callable[[], Any]) -> Any:
            result = closure()
            # Collective: a line search must go the same way on all ranks.
            return strategy.reduce(result) if isinstance(self.optimizer, torch.optim.LBFGS) else result

        def prepare() -> bool:
            strategy.share_gradients([slot])  # collective: all ranks run the same training_step
            slot.synchronized = False  # what comes next is this rank's own again
            finite = loop.prepare_step(slot)
            trainer.metrics.hook = "training_step"
            return finite

        result, stepped = self._step_prepared(closure and partial(agreed, closure), prepare, kwargs)
        slot.close_window(stepped)
        if stepped:
            loop.global_step += 1
            loop.work.stepped_by_hand, loop.gradient_failed = True, False
        return result

    def _step_prepared(
        self, closure: Callable[[], Any] | None, prepare: Callable[[], bool], arguments: dict[str, Any]
    ) -> tuple[Any, bool]:
        """Closure, `prepare`, then the step, unless `prepare` says that the gradient is not finite.

        The closure is called at once. The optimizer's first call of it gives the same loss, unless the optimizer has
        moved the weights before, as those do that look around before they step (SAM).

        Returns:
            What the closure, else the step, gave; and whether the step was made.
        """
        first = closure() if closure is not None else None
        if not prepare():
            return first, False
        if closure is None or self._trainer.precision_plugin.scaler is not None or not takes_closure(self.optimizer):
            returned = self.optimizer.step(**arguments)
            return returned if closure is None else first, True
        weights = self._slot.parameters
        known: list[tuple[int, int]] | None = _marks(weights)

        def again() -> Any:
            nonlocal known
            unchanged, known = known == _marks(weights), None
            if unchanged:
                return first
            result = closure()
            prepare()
            return result

        return self.optimizer.step(closure=again, **arguments), True

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """A context in which only this optimizer's parameters require gradients.

        Args:
            sync_grad: Lightning's argument, which plays no role: ranks share their gradients when the optimizer steps.
        """
        module = self._trainer.lightning_module
        module.toggle_optimizer(self.optimizer)
        try:
            yield
        finally:
            module.untoggle_optimizer()


def _marks(weights: list[torch.nn.Parameter]) -> list[tuple[int, int]]:
    """Differ when a parameter, or its gradient, was written or replaced."""
    return [(p._version, p.grad._version if p.grad is not None else -1) for p in weights]


def demands_closure(optimizer: Optimizer) -> bool:
    """Whether its `step` cannot do without: LBFGS, and whoever gives the argument no default."""
    return demands(type(optimizer).step, "closure")


def takes_closure(optimizer: Optimizer) -> bool:
    """Whether its `step` may be given a closure."""
    return "closure" in inspect.signature(type(optimizer).step).parameters


def manual_backward(trainer: Trainer, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """``loss.backward(...)``, or the module's own `backward`, with the scaler and the two hooks."""
    if trainer.precision_plugin.scaler is not None:
        loss = trainer.precision_plugin.scaler.scale(loss)
    if trainer.train_data.replaying:
        loss = loss * 0.0  # this rank has run out of data, others have not
    trainer.call("on_before_backward", loss)
    trainer.lightning_module.backward(loss, *args, **kwargs)
    for slot in trainer.plan.slots.values():
        slot.synchronized = False
        slot.pending += any(parameter.grad is not None for parameter in slot.parameters)
    trainer.call("on_after_backward")
    trainer.metrics.hook = "training_step"
