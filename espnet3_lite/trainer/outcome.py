"""What a call tells people and schedulers: hyperparameters to the loggers, ``status.json``, printed results."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.screen import told as told
from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.distributed.rank import rank_zero_warn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def log_hyperparameters(trainer: Trainer) -> None:
    """Hand the module's and the data module's hyperparameters to the loggers."""
    values: dict[str, Any] = {}
    for owner in (trainer.datamodule, trainer.lightning_module):
        if owner is not None and trainer.state.fn == "fit":
            owner._warn_of_hparams_left_out()
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            values.update(owner.hparams_initial)
    if values:
        trainer.tell_loggers("log_hyperparams", values)
    trainer.tell_loggers("save")


def write_status(trainer: Trainer, exception: BaseException | None = None) -> None:
    """How the fit stands or ended, for people and schedulers: a small JSON file, where the trainer was given one.

    A full disk is warned about and no more: how the run ends is not this file's to say.
    """
    fitting = trainer.state.fn == "fit" and not trainer.fast_dev_run
    if trainer.status_file is None or not fitting or not trainer.is_global_zero:
        return
    signal = None
    if trainer.stopped_by_signal:
        received = trainer.stopping.signals.received
        signal = received.name if received is not None else "on another rank"
    status = {
        "call": str(trainer.state.fn),
        "status": trainer.state.status.value,
        "epoch": trainer.current_epoch,  # as in file names, from 0
        "epochs_done": trainer.current_epoch,
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
