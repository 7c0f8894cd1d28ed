"""pytorch-accelerated's names for our events, and what is handed to a method of such a name.

Every `Callback` may use them beside ours; `TrainerCallback` documents them. No callback is in here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.loaders.transfer import loss_of

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


def _run(method: Callable) -> Callable:
    """An event of the whole run, or of an epoch: ``method(trainer)``."""
    return lambda trainer, pl_module: method(trainer)


def _train_step_start(method: Callable) -> Callable:
    return lambda trainer, pl_module, batch, batch_idx: method(trainer)


def _train_step_end(method: Callable) -> Callable:
    def listener(trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        output = {"loss": torch.tensor(math.nan)} if outputs is None else as_dict(outputs)  # None: it was skipped
        method(trainer, batch=batch, batch_output=output)

    return listener


def _evaluation(method: Callable) -> Callable:
    """Of any evaluation but a sanity check, which is none of the run."""

    def listener(trainer: Trainer, pl_module: LiteModule) -> None:
        if not trainer.sanity_checking:
            method(trainer)

    return listener


def _evaluation_run(method: Callable) -> Callable:
    """Of a `validate` or `test` of its own."""

    def listener(trainer: Trainer, pl_module: LiteModule) -> None:
        if trainer.state.fn != "fit":
            method(trainer)

    return listener


def _eval_step_start(method: Callable) -> Callable:
    def listener(trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not trainer.sanity_checking:
            method(trainer)

    return listener


def _eval_step_end(method: Callable) -> Callable:
    def listener(
        trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            method(trainer, batch=batch, batch_output=as_dict(outputs))

    return listener


def as_dict(outputs: Any) -> Any:
    """What a step returned, as a dict: a mapping itself; ``loss`` where there is one, and of other things
    ``model_outputs``.

    >>> as_dict(None), as_dict({"loss": 1}), as_dict(["a"])
    ({}, {'loss': 1}, {'model_outputs': ['a']})
    """
    if outputs is None or isinstance(outputs, Mapping):
        return outputs or {}
    loss = loss_of(outputs)
    found = {} if loss is None else {"loss": loss}
    return found if loss is outputs else {**found, "model_outputs": outputs}


_OF_ANY_EVALUATION = {
    "start": (("on_evaluation_run_start", _evaluation_run),),
    "epoch_start": (("on_eval_epoch_start", _evaluation),),
    "batch_start": (("on_eval_step_start", _eval_step_start),),
    "batch_end": (("on_eval_step_end", _eval_step_end),),
    "end": (("on_eval_epoch_end", _evaluation), ("on_evaluation_run_end", _evaluation_run)),
}
#: Our event to the names it also has, with what turns a method of such a name into a listener of ours.
ALIASES: dict[str, tuple[tuple[str, Callable], ...]] = {
    "on_fit_start": (("on_training_run_start", _run),),
    "on_train_batch_start": (("on_train_step_start", _train_step_start),),
    "on_train_batch_end": (("on_train_step_end", _train_step_end),),
    "on_train_epoch_end:monitoring": (("on_training_run_epoch_end", _run),),
    "on_fit_end": (("on_training_run_end", _run),),
    **{
        f"on_{evaluation}_{event}": names
        for evaluation in ("validation", "test")
        for event, names in _OF_ANY_EVALUATION.items()
    },
}
#: All of them, and the one that the trainer calls by this name itself.
NAMES = frozenset(name for names in ALIASES.values() for name, _ in names) | {"on_init_end"}
