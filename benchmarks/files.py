"""Checkpoints: loading, averaging, saving, and the bytes that one validation writes. Also a script for two of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import BY_HAND, Options, Row, Samples, clock, interleaved, now, now_here, use_clock
from benchmarks.steps import QUIET, Module, make_batches
from espnet3_lite import Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.callbacks.checkpoints.averaging import average_checkpoints
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


#: What glibc does of its own accord once a process has freed pieces of many MiB: memory that is freed stays with it.
_KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def _in_a_process(options: Options, row: str, environment: dict[str, str] | None = None) -> Samples:
    """Measure in a process of its own, whose memory is new to it, as that of a run that begins.

    In a process that keeps what it has freed, as one does that has run other rows, `torch.load` takes a third of the
    time: it waits for no pages of memory. The checksums, at about 3 GB a second, take then more time than it does.
    """
    arguments = [row, options.folder, options.repetitions, options.scale, clock()]
    command = [sys.executable, "-m", "benchmarks.files", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(ended.stdout)


def main(row: str, folder: str, repetitions: str, scale: str, clock_name: str) -> None:
    """Print the samples of a row."""
    use_clock(clock_name)
    measure = {"load": _load, "average": _average}[row]
    print(json.dumps(measure(Options(Path(folder), int(repetitions), float(scale)))))


ROWS = (
    Row("load", "a checkpoint of 200 MiB with its checksums, against torch.load, as a run begins", 1.1, "ms",
        lambda options: _in_a_process(options, "load")),
    Row("load-again", "the same in a process that keeps the memory that it frees", 1.1, "ms",
        lambda options: _in_a_process(options, "load", _KEEPS_MEMORY)),
    Row("average", "averaging 5 of them, against load, add, save", 1.2, "ms",
        lambda options: _in_a_process(options, "average")),
    Row("save", "training blocked by a save in the background, against copying the state", 1.3, "ms", _save),
    Row("bytes", "files' bytes of one validation with two criteria, in files of weights", 1.0, "files", _bytes),
)  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
