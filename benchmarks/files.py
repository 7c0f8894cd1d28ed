"""Checkpoints: loading, averaging, saving, and the bytes that one validation writes."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import BY_HAND, Options, Row, Samples, interleaved, now, now_here
from benchmarks.steps import QUIET, Module, make_batches
from espnet3_lite import Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.callbacks.averaging import average_checkpoints
from espnet3_lite.checkpoint.files import load_checkpoint, save_checkpoint
from espnet3_lite.checkpoint.savers import FileSaver

#: The size of a checkpoint at scale 1.
MEBIBYTES = 200


def _state(options: Options, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a MiB each."""
    generator = torch.Generator().manual_seed(seed)
    return {f"weight{number}": torch.randn(512, 512, generator=generator) for number in range(options.count(MEBIBYTES))}


def _files(options: Options, count: int) -> list[Path]:
    paths = [options.folder / f"averaged{number}.ckpt" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            save_checkpoint({"state_dict": _state(options, number)}, path)
    return paths


def save_by_hand(state: Any, path: str) -> None:
    """Save by hand so that a crash, or a power cut, leaves the old file or the new one."""
    with open(f"{path}.new", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _load(options: Options) -> Samples:
    (path,) = _files(options, 1)

    def by_torch() -> float:
        start = now()
        torch.load(path, weights_only=True)
        return now() - start

    def ours() -> float:
        start = now()
        load_checkpoint(path)
        return now() - start

    return interleaved({BY_HAND: by_torch, "espnet3_lite": ours}, options.repetitions)


def _average(options: Options) -> Samples:
    """The files that are read, and the one that is written, are the same, and the latter is on disk at the end.

    By hand five models are in memory, and summed in float32; here it is one, summed in float64, after checksums.
    """
    paths, output = _files(options, 5), options.folder / "average.pth"

    def by_hand() -> float:
        start = now()
        first, *others = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
        for other in others:
            for name, value in other.items():
                first[name] += value
        save_by_hand({name: value / len(paths) for name, value in first.items()}, str(output))
        return now() - start

    def ours() -> float:
        start = now()
        average_checkpoints(paths, output)
        return now() - start

    return interleaved({BY_HAND: by_hand, "espnet3_lite": ours}, options.repetitions)


def _save(options: Options) -> Samples:
    """How long training is blocked by a save in the background, as `Trainer(async_save=True)` makes it, against a copy.

    The file is then waited for, outside of what is measured.
    """
    state, saver, steps = _state(options), FileSaver(), itertools.count(1)
    saver.in_background = True

    def copy() -> float:
        start = now_here()
        _ = {name: value.clone() for name, value in state.items()}
        return now_here() - start

    def ours() -> float:
        start = now_here()
        saver.save({"epoch": 0, "global_step": next(steps), "state_dict": state}, options.folder / "saved.ckpt")
        blocked = now_here() - start
        saver.finish()
        return blocked

    return interleaved({BY_HAND: copy, "espnet3_lite": ours}, options.repetitions)


def _bytes(options: Options) -> Samples:
    """What one validation with two criteria writes, in files of weights; hard links are counted once."""

    def written() -> float:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            callbacks = [
                ModelCheckpoint(folder, f"{mode}-{{step}}", monitor="loss", mode=mode, save_weights_only=True)
                for mode in ("min", "max")
            ]
            trainer = Trainer(**{**QUIET, "enable_checkpointing": True}, callbacks=callbacks)
            trainer.fit(Module(), make_batches(4), make_batches(2))
            sizes = {entry.inode(): entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
            one = max(sizes.values())
            return sum(sizes.values()) / one

    return {BY_HAND: [1.0], "espnet3_lite": [written()]}


ROWS = (
    Row("load", "a checkpoint of 200 MiB with its checksums, against torch.load", 1.1, "ms", _load),
    Row("average", "averaging 5 of them, against load, add, save", 1.2, "ms", _average),
    Row("save", "training blocked by a save in the background, against copying the state", 1.3, "ms", _save),
    Row("bytes", "files' bytes of one validation with two criteria, in files of weights", 1.0, "files", _bytes),
)
