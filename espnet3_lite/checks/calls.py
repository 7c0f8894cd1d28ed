"""What a call needs of the module, and which settings a fit can follow while it runs: looked at before a batch is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.trainer.states import TrainerFn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def check_steps(trainer: Trainer) -> None:
    """The methods that a call needs are there, and nothing is wanted that goes without manual optimization.

    Raises:
        MisconfigurationException: one is not, or something is.
    """
    model, fn = trainer.lightning_module, str(trainer.state.fn)
    name, by_hand = type(model).__name__, not model.automatic_optimization
    by_call = {"validate": ["validation_step"], "test": ["test_step"], "predict": []}
    for method in by_call.get(fn, ["training_step"] if by_hand else ["training_step", "configure_optimizers"]):
        if not trainer.is_overridden(method, model):
            raise MisconfigurationException(f"No `{method}()` method defined on {name}, which Trainer.{fn}() needs")
    for setting in _OF_ONE_OPTIMIZER if fn == TrainerFn.FITTING else ():
        check_change(trainer, setting, getattr(trainer, setting))


#: What the loop does for one optimizer, by the setting: the values that ask for nothing, and how a module does it.
_OF_ONE_OPTIMIZER: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "gradient_clip_val": ((None, 0), "clipping", "call `self.clip_gradients(optimizer, ...)`"),
    "accumulate_grad_batches": ((1,), "accumulation", "accumulate"),
}


def check_change(trainer: Trainer, setting: str, value: Any) -> None:
    """A fit can follow a setting that is set, and loses nothing by it.

    Raises:
        MisconfigurationException: nothing would read it, or gradients that wait for their window's end would be lost.
    """
    harmless, what, instead = _OF_ONE_OPTIMIZER.get(setting, ((value,), "", ""))
    module, plain, before = trainer.lightning_module, trainer.plan.slots.get(None), trainer.accumulate_grad_batches
    if value not in harmless and not module.automatic_optimization:
        raise MisconfigurationException(
            f"Automatic gradient {what} is not supported for manual optimization. Remove `Trainer({setting}={value})` "
            f"and {instead} in {type(module).__name__}.training_step"
        )
    if setting == "accumulate_grad_batches" and value != before and plain is not None:
        if plain.open and plain.trained and trainer.fit_loop.within_epoch:
            raise MisconfigurationException(
                f"trainer.{setting} = {value} within a window: the gradients of {plain.pending} of {before} batches "
                f"wait for their step. Set it between two steps, or in on_train_epoch_start"
            )
