"""Objects with a state that no checkpoint holds: a run that is resumed would begin with them anew, and say nothing.

torch_ema's `ExponentialMovingAverage`, a warm-up of pytorch_warmup, a scheduler or an optimizer that nobody returned
from `configure_optimizers`: as a plain attribute of a module or a callback they are in no state dict.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.metrics.metric_objects import is_metric_object

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: By which methods the owner of such an object may save it.
_SAVING = ("on_save_checkpoint", "state_dict", "get_extra_state")
#: What each trainer has told.
_TOLD: weakref.WeakKeyDictionary[Trainer, set[str]] = weakref.WeakKeyDictionary()


def warn_of_unsaved_states(trainer: Trainer) -> None:
    """Say once of each such object of the module's, the data module's and the user's callbacks where it would be saved.

    Nothing is said where anybody has a method of their own that saves: it may save any of them.
    """
    owners = [trainer.lightning_module, *([trainer.datamodule] if trainer.datamodule else []), *trainer.callbacks]
    own = [owner for owner in owners if not _is_ours(type(owner))]
    if not trainer.checkpoint_callbacks or any(_saves(type(owner), name) for owner in own for name in _SAVING):
        return
    saved = _ids_within([*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)])
    told = _TOLD.setdefault(trainer, set())
    for owner in own:
        for name, value in vars(owner).items():
            place = f"{type(owner).__name__}.{name}"
            if place not in told and id(value) not in saved and _has_state(value):
                told.add(place)
                rank_zero_warn(
                    f"{place} ({type(value).__name__}) has a state, and no checkpoint holds it: in a resumed run it "
                    f"begins anew. Save it in on_save_checkpoint (checkpoint[{name!r}] = self.{name}.state_dict()) and "
                    f"load it in on_load_checkpoint; return optimizers and schedulers from configure_optimizers"
                )


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "espnet3_lite"


def _saves(kind: type, name: str) -> bool:
    """Whether a class has a method that neither torch nor this package gave it."""
    home = next((base for base in kind.__mro__ if name in vars(base)), None)
    return home is not None and not _is_ours(home) and not home.__module__.startswith("torch.")


def _has_state(value: Any) -> bool:
    """Whether an object keeps a state that is its own affair: data keep their place, and metric objects are saved."""
    kind = type(value)
    return (
        callable(getattr(kind, "state_dict", None))
        and callable(getattr(kind, "load_state_dict", None))
        and not hasattr(kind, "__iter__")
        and not isinstance(value, (torch.nn.Module, torch.utils.data.Dataset, torch.utils.data.Sampler))
        and not is_metric_object(value)
        and not any(map(_is_ours, kind.__mro__))
    )


def _ids_within(values: Iterable[Any]) -> set[int]:
    """Objects and those that stand in them, such as the optimizer that another one wraps."""
    found: set[int] = set()

    def parts(value: Any) -> Iterator[Any]:
        if isinstance(value, (list, tuple)):
            yield from value
        elif id(value) not in found and hasattr(type(value), "state_dict") and not isinstance(value, torch.nn.Module):
            found.add(id(value))
            yield from vars(value).values() if hasattr(value, "__dict__") else ()

    waiting = list(values)
    while waiting:
        waiting.extend(parts(waiting.pop()))
    return found
