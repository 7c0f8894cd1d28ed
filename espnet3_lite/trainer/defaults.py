"""What a trainer is made of: defaults, loggers, callbacks, torch's switches; and what its calls tell people.

What a call needs before it can run is `setup.py`'s.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.distributed.launch import under_torchrun
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers.base import Logger

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


# ---- at construction -----------------------------------------------------------------------------------------------


def apply_fast_dev_run(settings: dict[str, Any]) -> None:
    """``fast_dev_run=N``: N batches of everything, nothing written."""
    batches = int(settings["fast_dev_run"])
    if batches:
        for prefix in ("train", "val", "test", "predict"):
            settings[f"limit_{prefix}_batches"] = batches
        settings.update(
            max_epochs=1, max_steps=batches, num_sanity_val_steps=0, val_check_interval=1.0,
            check_val_every_n_epoch=1, logger=False, enable_checkpointing=False,
        )  # fmt: skip
        rank_zero_info("Running in `fast_dev_run` mode: %d batch(es) of each loader, no logs, no checkpoints", batches)


def apply_overfit_batches(settings: dict[str, Any]) -> None:
    """``overfit_batches``: the same few batches for training and validation."""
    if settings["overfit_batches"]:
        settings["limit_train_batches"] = settings["limit_val_batches"] = settings["overfit_batches"]


def epoch_limits(settings: dict[str, Any]) -> tuple[int, int]:
    """`max_epochs` and `min_epochs` where they were not given."""
    max_epochs, min_epochs = settings["max_epochs"], settings["min_epochs"]
    if max_epochs is None:
        limited_otherwise = settings["max_steps"] != -1 or settings["max_time"] is not None
        if not limited_otherwise:
            rank_zero_warn("`max_epochs` was not set. Setting it to 1000 epochs. To train without an epoch limit, set "
                           "`max_epochs=-1`.")  # fmt: skip
        max_epochs = -1 if limited_otherwise else 1000
    if min_epochs is None:
        min_epochs = 1 if settings["min_steps"] is not None else 0
    return max_epochs, min_epochs


def make_loggers(given: Any, default_root_dir: str) -> list[Logger]:
    """The loggers; a `CSVLogger` by default.

    Raises:
        MisconfigurationException: something that is none.
    """
    if given is False or given == []:
        return []
    if given is None or given is True:
        from espnet3_lite.loggers import CSVLogger

        return [CSVLogger(default_root_dir)]
    several = isinstance(given, (list, tuple))
    loggers = list(given) if several else [given]
    for index, logger in enumerate(loggers):
        if not isinstance(logger, Logger):
            hint = "; pass an instance: add the parentheses" if isinstance(logger, type) else ""
            raise MisconfigurationException(
                f"Trainer: logger{f'[{index}]' if several else ''} must be an instance of Logger, got {logger!r} "
                f"({type(logger).__name__}){hint}"
            )
    return loggers


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
    if settings["enable_progress_bar"] is not False and lacks(ProgressBar):
        from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar

        callbacks.append(TQDMProgressBar())
    if settings["enable_model_summary"] is not False:
        from espnet3_lite.callbacks.model_summary import ModelSummary

        callbacks += [ModelSummary()] if lacks(ModelSummary) else []
    if settings["enable_checkpointing"] is not False and lacks(Checkpoint):
        from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint

        callbacks.append(ModelCheckpoint())
    return callbacks


def _check_contradictions(settings: dict[str, Any], callbacks: list[Callback]) -> None:
    if settings["enable_checkpointing"] is False and any(isinstance(c, Checkpoint) for c in callbacks):
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
    if settings["enable_progress_bar"] is False and bars:
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


# ---- what a call tells ----------------------------------------------------------------------------------------------


def log_hyperparameters(trainer: Trainer) -> None:
    """Hand the module's and the data module's hyperparameters to the loggers."""
    values: dict[str, Any] = {}
    for owner in (trainer.datamodule, trainer.lightning_module):
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            values.update(owner.hparams_initial)
    for logger in trainer.loggers:
        if values:
            logger.log_hyperparams(values)
        logger.save()


def write_status(trainer: Trainer, exception: BaseException | None = None) -> None:
    """How the fit stands or ended, for people and schedulers: a small JSON file, where the trainer was given one.

    A full disk is warned about and no more: how the run ends is not this file's to say.
    """
    fitting = trainer.state.fn == "fit" and not trainer.fast_dev_run
    if trainer.status_file is None or not fitting or not trainer.is_global_zero:
        return
    signal = None
    if trainer.stopped_by_signal:
        signal = trainer.signals.received.name if trainer.signals.received is not None else "on another rank"
    status = {
        "call": trainer.state.fn.value,
        "status": trainer.state.status.value,
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "signal": signal,
        "error": f"{type(exception).__name__}: {exception}" if exception is not None else None,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        trainer.status_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(trainer.status_file, json.dumps(status, indent=2) + "\n")
    except OSError as error:
        rank_zero_warn(f"{trainer.status_file}: could not be written: {error}")


def print_results(results: list[dict[str, float]], word: str) -> None:
    """The results of `validate` or `test`, a line a value."""
    for index, result in enumerate(results):
        title = f"{word} metric" + (f" (loader {index})" if len(results) > 1 else "")
        width = max((len(name) for name in (*result, title)), default=0)
        print(f"{title:<{width}}  value")
        for name, value in sorted(result.items()):
            print(f"{name:<{width}}  {value:.6g}")
