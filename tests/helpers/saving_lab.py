"""Runs a case of saving or stopping, given as plain values, and notes what became of it as plain values.

The classes are arguments, so that one and the same case runs with Lightning, which gave
``golden/lightning_saving.json``, and with espnet3_lite, which must do the same. Nothing here imports either.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader


def run_case(library: SimpleNamespace, case: dict[str, Any], folder: str | Path) -> list[dict[str, Any]]:
    """Fit once, or once for each of the case's `phases` (each a set of changes to the case), in one folder."""
    return [_run_phase(library, {**case, **changes}, Path(folder)) for changes in case.get("phases", [{}])]


def _run_phase(library: SimpleNamespace, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    checkpoints = [library.ModelCheckpoint(dirpath=folder, **arguments) for arguments in case.get("checkpoints", [])]
    stopping = [library.EarlyStopping(**arguments) for arguments in case.get("stopping", [])]
    watch = _watch(library.Callback, folder)
    settings = {"max_epochs": 3, **({} if checkpoints else {"enable_checkpointing": False}), **case.get("trainer", {})}
    trainer = library.Trainer(
        callbacks=[watch, *stopping, *checkpoints], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip
    module = _module(library.Module, case)
    val = DataLoader(torch.ones(2, 1)) if case.get("val") else None
    ckpt_path = folder / case["ckpt_path"] if case.get("ckpt_path") else None
    error = None
    try:
        trainer.fit(module, DataLoader(torch.ones(case.get("batches", 4), 1)), val, ckpt_path=ckpt_path)
    except Exception as exception:  # whatever the library makes of the case is what is noted
        own = (RuntimeError, ValueError)  # of a class that is Python's own error as well, the name of that one
        error = next((kind.__name__ for kind in own if isinstance(exception, kind)), type(exception).__name__)
    return {
        "error": error,
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "saves": watch.saves,
        "timeline": watch.timeline,
        "files": {name: _position(folder / name) for name in _files(folder)},
        "checkpoints": [_checkpoint_state(callback, folder) for callback in checkpoints],
        "stopping": [_stopping_state(callback) for callback in stopping],
    }


def _module(base: type, case: dict[str, Any]) -> Any:
    class Module(base):
        """Logs the case's series, one value a validation, batch or epoch."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.validations = case.get("validations_before", 0)
            self.batches = 0

        def training_step(self, batch, batch_idx):
            self.batches += 1
            if self.batches == case.get("raise_at"):
                raise ValueError("boom")
            if "train" in case:
                self.log("train_loss", case["train"][(self.batches - 1) % len(case["train"])])
            if "train_epoch" in case:
                value = case["train_epoch"][self.trainer.current_epoch]
                self.log("train_epoch", value, on_step=False, on_epoch=True)
            return self.layer(batch).sum()

        def validation_step(self, batch, batch_idx):
            if self.trainer.sanity_checking or self.validations < case.get("log_val_from", 0):
                return
            series = case["val"]
            self.log("val_loss", series[self.validations % len(series)])
            self.log("val/acc", series[::-1][self.validations % len(series)])

        def on_validation_epoch_end(self):
            self.validations += not self.trainer.sanity_checking

        def on_train_epoch_end(self):
            if "late" in case:
                self.log("late", case["late"][self.trainer.current_epoch])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def _watch(base: type, folder: Path) -> Any:
    class Watch(base):
        """Notes each save, and the files that are there as epochs begin and training ends."""

        def __init__(self):
            self.saves, self.timeline = [], []

        def on_train_epoch_start(self, trainer, pl_module):
            self.timeline.append(_files(folder))

        def on_train_end(self, trainer, pl_module):
            self.timeline.append(_files(folder))

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            self.saves.append([checkpoint["epoch"], checkpoint["global_step"]])

    return Watch()


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.ckpt"))


def _position(path: Path) -> list[Any]:
    """Epoch, step, and whether it is a whole state."""
    checkpoint = torch.load(path, weights_only=False)
    return [checkpoint["epoch"], checkpoint["global_step"], "optimizer_states" in checkpoint]


def _checkpoint_state(callback: Any, folder: Path) -> dict[str, Any]:
    def name(path: str) -> str:
        return os.path.relpath(path, os.path.realpath(folder)) if path else ""

    return {
        "key": callback.state_key,
        "best_k_models": {name(path): plain(score) for path, score in callback.best_k_models.items()},
        "best_model_path": name(callback.best_model_path),
        "best_model_score": plain(callback.best_model_score),
        "kth_best_model_path": name(callback.kth_best_model_path),
        "kth_value": plain(callback.kth_value),
        "last_model_path": name(callback.last_model_path),
        "current_score": plain(callback.current_score),
        "state": sorted(callback.state_dict()),
    }


def _stopping_state(callback: Any) -> dict[str, Any]:
    return {
        "key": callback.state_key,
        "reason": callback.stopping_reason.name,
        **{name: plain(value) for name, value in callback.state_dict().items()},
    }


def plain(value: Any) -> Any:
    """A number that survives JSON and compares equal to itself."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value
