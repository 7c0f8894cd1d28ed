"""Whole runs: many epochs, resuming, memory over many steps, and what an import takes."""

from __future__ import annotations

import csv
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import zipfile
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.files import save_by_hand
from benchmarks.measuring import BY_HAND, Options, Row, Samples, interleaved, now
from benchmarks.steps import QUIET, Module, fit, make_batches, make_layer
from espnet3_lite import Callback, Trainer
from espnet3_lite.callbacks import AverageCheckpointsCallback, ModelCheckpoint
from espnet3_lite.loggers import CSVLogger

_IMPORTS = "from espnet3_lite import Callback, LiteModule, Trainer; import espnet3_lite.callbacks"


def _imports(options: Options) -> Samples:
    """Seconds of CPU time in a fresh process, after torch, NumPy, tqdm and PyYAML are there; from compiled files.

    Some import or other makes Python's garbage collector walk through all objects, once. That takes 70 ms, for the
    170,000 objects of torch and 5,000 of ours. So theirs are frozen before, and it walks through ours alone.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(options.folder / "compiled")

    def import_time() -> float:
        code = (
            "import gc, time, torch, numpy, tqdm, yaml; gc.collect(); gc.freeze(); start = time.process_time(); "
            f"{_IMPORTS}; print(time.process_time() - start)"
        )
        ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment)
        return float(ended.stdout)

    return interleaved({"espnet3_lite": import_time}, options.repetitions)


def _resume(options: Options) -> Samples:
    """Seconds from the call of `fit` to the first batch, of a run that goes on at 10% and at 90% of an epoch.

    It takes a few milliseconds: only of many does a twentieth show behind what else the machine does.
    """
    batches = make_batches(options.count(2000))
    sides = {}
    for name, share in (("at 10%", 0.1), ("at 90%", 0.9)):
        folder = options.folder / f"resume{share}"
        steps = max(1, int(share * len(batches)))
        saved = ModelCheckpoint(folder, every_n_train_steps=steps)
        settings = {**QUIET, "max_steps": steps, "enable_checkpointing": True}
        trainer = Trainer(**settings, callbacks=[saved])
        trainer.fit(Module(), batches)
        sides[name] = lambda path=saved.best_model_path: _seconds_to_first_batch(path, batches)
    return interleaved(sides, 10 * options.repetitions)


class _First(Callback):
    seconds = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seconds = self.seconds or now()


def _seconds_to_first_batch(path: str, batches: list[Any]) -> float:
    first, start = _First(), now()
    trainer = Trainer(**QUIET, callbacks=[first])
    trainer.fit(Module(), batches, ckpt_path=path)
    return first.seconds - start


def _memory(options: Options) -> Samples:
    """MiB that the process grows by over 20,000 steps after 2,000."""

    def growth() -> float:
        fit(Module(), make_batches(options.count(2000)))
        batches, peak = make_batches(200), _peak()
        fit(Module(), batches, max_epochs=options.count(100))
        return _peak() - peak

    return {"espnet3_lite": [growth()]}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _random_state() -> dict[str, Any]:
    """The generators' states, so that the file loads with ``weights_only``, and no number of 625 is saved by itself."""
    version, words, gauss = random.getstate()
    name, keys, *others = np.random.get_state()
    return {
        "python": [version, array("I", words).tobytes(), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *others],
        "torch": torch.get_rng_state(),
    }


def _epochs(options: Options) -> Samples:
    """A run of 30 epochs of 300 batches: training, validation, saves, a CSV file, and an average of the best three.

    Both sides write the same files with the same care. In each epoch: a row of the table, the state to go on from, and
    the weights where they are among the best three; each file is written beside its name, flushed to the disk and
    renamed, and the folder flushed. Both check each loss for NaN, have the mean over the finite ones by weight, switch
    the module's mode for validation, keep which files are best in the state, look at the checksums before they average,
    and sum in float64. Both states hold the random generators' states, and load with ``weights_only``. The trainer's
    also holds those from before the epoch's order was drawn, its counters by Lightning's names, and what its callbacks
    keep.
    """
    train, valid, epochs = make_batches(options.count(300)), make_batches(options.count(60)), options.count(30)

    def by_hand() -> float:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            start, layer = now(), make_layer()
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
            scores: dict[str, float] = {}
            with open(f"{folder}/metrics.csv", "w") as file:
                table = csv.DictWriter(file, ["epoch", "loss"])
                table.writeheader()
                for epoch in range(epochs):
                    for x, y in train:
                        loss = torch.nn.functional.mse_loss(layer(x), y)
                        if not math.isfinite(loss.item()):
                            continue
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    total, weight = 0.0, 0
                    layer.eval()
                    with torch.no_grad():
                        for x, y in valid:
                            value = torch.nn.functional.mse_loss(layer(x), y).item()
                            if math.isfinite(value):
                                total, weight = total + value * len(x), weight + len(x)
                    layer.train()
                    path = f"{folder}/{epoch}.ckpt"
                    scores[path] = mean = total / weight if weight else math.nan
                    table.writerow({"epoch": epoch, "loss": mean})
                    file.flush()
                    worst = max(scores, key=scores.__getitem__)
                    gone = [worst] if len(scores) > 3 else []
                    best = {path: score for path, score in scores.items() if path not in gone}
                    state = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                    state["random"] = _random_state()
                    if path in best:
                        save_by_hand(state["model"], path)
                    save_by_hand({**state, "best": best}, f"{folder}/last.ckpt")
                    for path in gone:
                        Path(path).unlink(missing_ok=True)  # the new one was not written where it is the worst
                    scores = best
            for path in scores:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise RuntimeError(f"{path} is damaged")
            states = [torch.load(path, weights_only=True) for path in scores]
            means = {key: sum(s[key].double() for s in states) / len(states) for key in states[0]}
            save_by_hand({key: mean.to(states[0][key].dtype) for key, mean in means.items()}, f"{folder}/average.pth")
            return now() - start

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            start = now()
            best = ModelCheckpoint(folder, "{epoch}", monitor="loss", save_top_k=3, save_weights_only=True)
            last = ModelCheckpoint(folder, "last-state", save_on_train_epoch_end=True)
            settings = {**QUIET, "max_epochs": epochs, "enable_checkpointing": True, "logger": CSVLogger(folder)}
            trainer = Trainer(**settings, callbacks=[best, last, AverageCheckpointsCallback(folder, [best])])
            trainer.fit(Module(), train, valid)
            return now() - start

    return interleaved({BY_HAND: by_hand, "espnet3_lite": ours}, options.repetitions)


ROWS = (
    Row("epochs", "30 epochs: training, validation, two saves, CSV, average", 1.05, "ms", _epochs),
    Row("resume", "resuming at 90% of an epoch, against 10%", 1.0, "ms", _resume),
    Row("memory", "growth over 20,000 steps", None, "MiB", _memory),
    Row("imports", "what a user imports to train, beyond torch (wanted: 100 ms)", None, "ms", _imports),
)
