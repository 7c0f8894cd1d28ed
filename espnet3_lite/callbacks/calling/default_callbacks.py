"""Which callbacks a trainer has: the user's, the default ones that its settings ask for, and those of a call's module.

ESPnet3's own defaults are in `espnet/default_callbacks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.gradient_norm import GradientNorm
from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint
from espnet3_lite.callbacks.model_summary import ModelSummary
from espnet3_lite.callbacks.profiler import Profiler
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.callbacks.timer import Timer
from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar
from espnet3_lite.distributed.rank import rank_zero_info
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def make_callbacks(settings: Mapping[str, Any], folder: str) -> list[Callback]:
    """The user's callbacks, and the default ones that they do not replace.

    Args:
        settings: Each argument of `Trainer` by its name, with the value that holds.
        folder: Where those write that are told nothing else.

    Raises:
        MisconfigurationException: callbacks that contradict the settings.
    """
    given = settings["callbacks"]
    callbacks = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    _check_contradictions(settings, callbacks)
    if settings["fast_dev_run"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    defaults = (  # is one wanted, what stands for one, and what is added where there is none
        (settings["max_time"] is not None, Timer, lambda: Timer(settings["max_time"])),
        (settings["enable_progress_bar"], ProgressBar, TQDMProgressBar),
        (settings["enable_model_summary"], ModelSummary, ModelSummary),
        (settings["log_grad_norm"], GradientNorm, GradientNorm),
        (settings["enable_checkpointing"], Checkpoint, ModelCheckpoint),
    )
    if settings["profiler"] is not None:
        callbacks.insert(0, Profiler(settings["profiler"], folder))
    for wanted, kind, make in defaults:
        if wanted and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    return callbacks


def add_model_callbacks(trainer: Trainer) -> None:
    """At the start of a call: those that the module's `configure_callbacks` gives.

    One of a type replaces the trainer's of that type.
    """
    wanted = trainer.lightning_module.configure_callbacks()
    wanted = list(wanted) if isinstance(wanted, Sequence) else [wanted]
    types = set(map(type, wanted))
    if replaced := [type(callback).__name__ for callback in trainer.callbacks if type(callback) in types]:
        rank_zero_info("callbacks of the model replace the trainer's: %s", ", ".join(replaced))
    if wanted:
        trainer.callbacks = [callback for callback in trainer.callbacks if type(callback) not in types] + wanted


def _check_contradictions(settings: Mapping[str, Any], callbacks: list[Callback]) -> None:
    if not settings["enable_checkpointing"] and not settings["fast_dev_run"]:
        if any(isinstance(callback, Checkpoint) for callback in callbacks):
            raise MisconfigurationException(
                "Trainer was configured with `enable_checkpointing=False` but found a checkpoint callback in callbacks "
                "list; remove one of them"
            )
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"You added multiple progress bar callbacks to the Trainer, but currently only one progress bar is "
            f"supported: {[type(bar).__name__ for bar in bars]}"
        )
    if not settings["enable_progress_bar"] and bars:
        raise MisconfigurationException(
            f"Trainer was configured with `enable_progress_bar=False` but found `{type(bars[0]).__name__}` in "
            f"callbacks list; remove one of them"
        )
