"""Manual optimization: `automatic_optimization = False`, and the module steps its optimizers itself.

What Lightning documents: ``self.optimizers()``, ``self.manual_backward(loss)``, ``optimizer.step()``, toggling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class ManualOptimizer:
    """What ``self.optimizers()`` gives: the optimizer, whose `step` calls the hooks and counts.

    It has all attributes of the optimizer that it stands for, and is an instance of its class for ``isinstance``.
    """

    def __init__(self, optimizer: Optimizer, trainer: Trainer):
        self.__dict__.update({"optimizer": optimizer, "_trainer": trainer})

    @property
    def __class__(self) -> type:
        return type(self.__dict__["optimizer"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["optimizer"], name, value)

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """Step the optimizer: ranks, hooks, gradient scaler and ``global_step`` included.

        Args:
            closure: Computes the loss and its gradients; called before the step.
            kwargs: For the optimizer's own `step`.

        Returns:
            What the closure returned.
        """
        trainer = self._trainer
        slot = trainer.plan.slot_of(self.optimizer)

        def prepare() -> None:
            trainer.strategy.share_gradients([slot])  # collective: all ranks run the same training_step
            slot.synchronized = False  # what comes next is this rank's own again
            if trainer.precision_plugin.scaler is not None:
                trainer.precision_plugin.scaler.unscale_(self.optimizer)
            trainer.call("on_before_optimizer_step", self.optimizer)
            trainer.metrics.hook = "training_step"

        result = _step(self.optimizer, trainer.precision_plugin.scaler, closure, prepare, kwargs)
        if trainer.precision_plugin.scaler is not None:
            trainer.precision_plugin.scaler.update()
        slot.update_step += 1
        trainer.fit_loop.global_step += 1
        return result

    def toggle_model(self, sync_grad: bool = True) -> Toggled:
        """A context in which only this optimizer's parameters require gradients."""
        return Toggled(self._trainer.lightning_module, self.optimizer)


class PreparingOptimizer(ManualOptimizer):
    """What an overridden `optimizer_step` gets: its `step` calls `on_before_optimizer_step` and clips, then steps.

    Args:
        optimizer: The one that it stands for.
        trainer: For its gradient scaler.
        prepare: Called between the closure and the step, each time.
    """

    def __init__(self, optimizer: Optimizer, trainer: Trainer, prepare: Callable[[], None]):
        super().__init__(optimizer, trainer)
        self.__dict__["_prepare"] = prepare

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """As the optimizer's own; the loop counts."""
        return _step(self.optimizer, self._trainer.precision_plugin.scaler, closure, self._prepare, kwargs)


def _step(optimizer: Optimizer, scaler: Any, closure: Any, prepare: Callable[[], None], arguments: dict) -> Any:
    """Closure, `prepare`, step. The optimizer calls the first two itself, as often as it likes, but for a scaler."""

    def prepared() -> Any:
        result = closure() if closure is not None else None
        prepare()
        return result

    if scaler is None:
        return optimizer.step(closure=prepared, **arguments)
    result = prepared()
    scaler.step(optimizer, **arguments)
    return result


class Toggled:
    """The context that `ManualOptimizer.toggle_model` gives."""

    def __init__(self, module: Any, optimizer: Optimizer):
        self.module, self.optimizer = module, optimizer

    def __enter__(self) -> None:
        toggle(self.module, self.optimizer)

    def __exit__(self, *_: Any) -> None:
        untoggle(self.module)


def toggle(module: Any, optimizer: Optimizer) -> None:
    """Let only this optimizer's parameters require gradients; what they all required is remembered in the module."""
    untoggle(module)
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for owner in module.trainer.optimizers:
        for group in owner.param_groups:
            for parameter in group["params"]:
                if id(parameter) in module._toggled:
                    continue  # two optimizers share it
                module._toggled[id(parameter)] = (parameter, parameter.requires_grad)
                parameter.requires_grad = parameter.requires_grad and id(parameter) in mine


def untoggle(module: Any) -> None:
    """Put back what `toggle` remembered."""
    for parameter, required in module._toggled.values():
        parameter.requires_grad = required
    module._toggled.clear()


def manual_backward(trainer: Trainer, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """``loss.backward(...)`` with the scaler and the two hooks."""
    if trainer.precision_plugin.scaler is not None:
        loss = trainer.precision_plugin.scaler.scale(loss)
    if trainer.train_data.replaying:
        loss = loss * 0.0  # this rank has run out of data, others have not
    trainer.call("on_before_backward", loss)
    loss.backward(*args, **kwargs)
    for slot in trainer.plan.slots.values():
        slot.synchronized = False
    trainer.call("on_after_backward")
    trainer.metrics.hook = "training_step"
