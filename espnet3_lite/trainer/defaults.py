"""What a trainer is built of, from its settings: the loggers and callbacks that are added, and torch's switches.

What the settings themselves are is in `settings.py`, what a call needs before it can run in `setup.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.distributed.launch import under_torchrun
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers.base import Logger, is_logger
from espnet3_lite.trainer.settings import LOGGER_NAMES

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def make_loggers(given: Any, default_root_dir: str) -> list[Logger]:
    """The loggers; a `CSVLogger` by default.

    Args:
        given: True or False, a logger, its name, or a list of these.
        default_root_dir: Where those that are named write.

    Raises:
        MisconfigurationException: something that is none.
    """
    if given is False:
        return []
    several = isinstance(given, (list, tuple))
    loggers = [_named_logger(one, default_root_dir) for one in (given if several else [given])]
    for index, logger in enumerate(loggers):
        if not is_logger(logger):
            hint = "; pass an instance: add the parentheses" if isinstance(logger, type) else ""
            raise MisconfigurationException(
                f"Trainer: logger{f'[{index}]' if several else ''} must be a logger, an object with `log_metrics` and "
                f"`log_hyperparams`, or one of {', '.join(LOGGER_NAMES)}; got {logger!r} "
                f"({type(logger).__name__}){hint}"
            )
    return loggers


def _named_logger(given: Any, folder: str) -> Any:
    """A logger for ``True`` and for a name; anything else as it is."""
    from espnet3_lite import loggers

    makers: dict[Any, Callable[[], Any]] = {
        True: lambda: loggers.CSVLogger(folder),
        "csv": lambda: loggers.CSVLogger(folder),
        "tensorboard": lambda: loggers.TensorBoardLogger(folder),
        "wandb": lambda: loggers.WandbLogger(save_dir=folder),
        "mlflow": lambda: loggers.MLFlowLogger(save_dir=os.path.join(folder, "mlruns")),
    }
    return makers[given]() if given is True or (isinstance(given, str) and given in makers) else given


def make_callbacks(trainer: Trainer, settings: dict[str, Any]) -> list[Callback]:
    """The user's callbacks, and the default ones that they do not replace.

    Raises:
        MisconfigurationException: callbacks that contradict the settings.
    """
    given = settings["callbacks"]
    callbacks = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    _check_contradictions(settings, callbacks)

    def lacks(kind: type[Callback]) -> bool:
        return not any(isinstance(callback, kind) for callback in callbacks)

    if trainer.max_time is not None:
        from espnet3_lite.callbacks.timer import Timer

        callbacks += [Timer(trainer.max_time)] if lacks(Timer) else []
    if settings["fast_dev_run"]:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    if settings["enable_progress_bar"] and lacks(ProgressBar):
        from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar

        callbacks.append(TQDMProgressBar())
    if settings["enable_model_summary"]:
        from espnet3_lite.callbacks.model_summary import ModelSummary

        callbacks += [ModelSummary()] if lacks(ModelSummary) else []
    if settings["log_grad_norm"]:
        from espnet3_lite.callbacks.gradient_norm import GradientNorm

        callbacks += [GradientNorm()] if lacks(GradientNorm) else []
    if settings["profiler"] is not None:
        from espnet3_lite.callbacks.profiler import Profiler

        callbacks.insert(0, Profiler(settings["profiler"], trainer.default_root_dir))
    if settings["enable_checkpointing"] and lacks(Checkpoint):
        from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint

        callbacks.append(ModelCheckpoint())
    return callbacks


def _check_contradictions(settings: dict[str, Any], callbacks: list[Callback]) -> None:
    if not settings["enable_checkpointing"] and any(isinstance(c, Checkpoint) for c in callbacks):
        if not settings["fast_dev_run"]:
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


def set_backends(settings: dict[str, Any]) -> None:
    """Torch's global switches."""
    if settings["deterministic"] is not None:
        torch.use_deterministic_algorithms(
            bool(settings["deterministic"]), warn_only=settings["deterministic"] == "warn"
        )
        if settings["deterministic"]:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition for it
    if settings["benchmark"] is not None:
        torch.backends.cudnn.benchmark = settings["benchmark"]
    devices = settings["devices"]
    wanted = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    if wanted > 1 and not under_torchrun():
        rank_zero_warn(
            f"devices={devices}, but this is one process. To train on {wanted}, start it with `torchrun "
            f"--nproc-per-node {wanted} -m espnet3_lite train ...`"
        )
