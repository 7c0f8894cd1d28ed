"""What the ranks compare at the start of a call: what they were given must be the same, or they would wait in vain.

How they compare is the strategy's (`Strategy.require_same`); with one process nothing is done.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.model_summary import ModelSummary
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.loaders.requests import has_loaders
from espnet3_lite.trainer.settings import SETTINGS

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

_ADVICE = (
    "All ranks must run the same script with the same settings; what only rank 0 should do belongs below "
    "`if trainer.is_global_zero:`"
)
#: Objects, which are compared by what they are, and what each rank may have of its own: where it computes, what it
#: shows (a bar and a summary change nothing), and the folder, for which rank zero's counts.
_NOT_AS_THEY_ARE = {
    "accelerator", "devices", "strategy", "precision", "logger", "callbacks", "default_root_dir",
    "enable_progress_bar", "enable_model_summary",
}  # fmt: skip
_ONLY_SHOW = (ProgressBar, ModelSummary)


def compare_settings(trainer: Trainer) -> None:
    """Settings, callbacks with their arguments, module and loaders. Collective, once a call.

    Raises:
        MisconfigurationException: on all ranks, naming what differs and each rank's value.
    """
    if trainer.world_size == 1:
        return
    module = trainer.lightning_module
    facts = {
        "the call": f"Trainer.{trainer.state.fn}()",
        "the module": f"{type(module).__qualname__}, automatic_optimization={module.automatic_optimization}",
        "strategy": trainer.strategy.name,
        "precision": trainer.precision,
        "logger": _describe([type(logger).__name__ for logger in trainer.loggers]),
    }
    facts.update({f"strategy, {name}": _describe(value) for name, value in _arguments(trainer.strategy)})
    facts.update({name: _describe(getattr(trainer, name)) for name in SETTINGS if name not in _NOT_AS_THEY_ARE})
    stage = trainer.state.stage
    for prefix in ("train", "val") if trainer.state.fn == "fit" or stage is None else (stage.dataloader_prefix,):
        facts[f"{prefix} loaders"] = "given" if has_loaders(trainer, prefix) else "none"
    callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, _ONLY_SHOW)]
    kinds = [type(callback).__name__ for callback in callbacks]
    facts["callbacks"] = ", ".join(kinds) or "none"
    for index, callback in enumerate(callbacks):
        earlier = kinds[:index].count(kinds[index])
        name = f"{kinds[index]} {earlier + 1}" if earlier else kinds[index]
        facts.update({f"{name}.{argument}": _describe(value) for argument, value in _arguments(callback)})
    trainer.strategy.require_same(facts, _ADVICE)


def compare_optimizers(trainer: Trainer) -> None:
    """Optimizers and schedulers with their values. Collective, once a fit.

    Raises:
        MisconfigurationException: on all ranks, naming what differs and each rank's value.
    """
    if trainer.world_size == 1:
        return
    facts: dict[str, str] = {}
    for index, slot in enumerate(trainer.plan.slots.values()):
        name = f"optimizer {slot.name or index} ({type(slot.optimizer).__name__})"
        for number, group in enumerate(slot.optimizer.param_groups):
            values = {key: value for key, value in group.items() if key != "params"}
            values["parameters"] = len(group["params"])
            facts.update({f"{name}, group {number}, {key}": _describe(value) for key, value in values.items()})
        for key in ("window", "gradient_clip_val", "gradient_clip_algorithm"):
            facts[f"{name}, {key}"] = _describe(getattr(slot, key))
    for index, config in enumerate(trainer.lr_scheduler_configs):
        name = f"scheduler {index} ({type(config.scheduler).__name__})"
        values = {key: getattr(config, key) for key in ("interval", "frequency", "monitor", "strict")}
        values.update(config.state_dict())
        facts.update({f"{name}, {key}": _describe(value) for key, value in values.items()})
    trainer.strategy.require_same(facts, _ADVICE)


def _arguments(owner: object) -> Iterator[tuple[str, Any]]:
    """What a callback or strategy was made with, as far as it keeps it under the argument's name."""
    kinds = [kind for kind in type(owner).__mro__ if "__init__" in vars(kind) and kind is not object]
    for name in (name for kind in kinds for name in inspect.signature(kind).parameters):
        for attribute in filter(vars(owner).__contains__, (name, f"_{name}")):
            yield name, vars(owner)[attribute]


def _describe(value: Any) -> str:
    """A value as text that is the same on all ranks where the value is; an object by its class alone."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and os.path.isabs(value)):
        return "a path"  # rank zero's counts
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_describe(key)}: {_describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe, value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_describe, value))) + "}"
    if isinstance(value, torch.Tensor):
        return f"{value.tolist()}" if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"
    if type(value).__module__ == "datetime":
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
