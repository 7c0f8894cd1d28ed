"""`read_run`: a run's folder as numbers: curves from ``metrics.csv``, checkpoints, how it ended. It draws nothing."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException

_PART = re.compile(r"(train|valid|val|test)[/_](.+)")
_RATE = re.compile(r"lr-|optim\d+_lr\d+")

#: One line in a picture: ``(epoch or step, value)`` each.
Curve = list[tuple[float, float]]


@dataclass
class Picture:
    """Curves that belong into one picture, by label; `axis` is ``epoch`` (counted from 1) or ``step``."""

    axis: str
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass
class Run:
    """One run's folder.

    Attributes:
        folder: It.
        rows: All rows of its newest ``metrics.csv``, as numbers by name.
        status: ``status.json``, or empty.
        skipped: The lines of ``train.log`` about batches that were left out.
        configuration: The text of ``config.yaml``, or empty.
    """

    folder: Path
    rows: list[dict[str, float]]
    status: dict[str, Any]
    skipped: list[str]
    configuration: str

    def pictures(self) -> dict[str, Picture]:
        """The pictures by name, in the order in which people look: losses, metrics, rates, gradient norm, seconds."""
        found: dict[str, Picture] = {}
        several_epochs = len({row["epoch"] for row in self.rows if "epoch" in row}) > 1
        names = sorted({name for row in self.rows for name in row} - {"epoch", "step"})
        for name in names:
            if name.removesuffix("_step") + "_epoch" in names or f"{name}_epoch" in names:
                continue  # its mean over the epoch tells more
            title, label = _place(name)
            if label.startswith("lr-") and any(other.startswith("optim0_lr") for other in names):
                continue  # the same rates, by their other name
            rows = [row for row in self.rows if name in row and math.isfinite(row[name])]
            axis = "epoch" if several_epochs and all("epoch" in row for row in rows) else "step"
            values: dict[float, list[float]] = defaultdict(list)
            for row in rows:
                values[row["epoch"] + 1 if axis == "epoch" else row["step"]].append(row[name])
            if values:
                title = title if found.get(title, Picture(axis)).axis == axis else f"{title}_by_{axis}"
                curve = [(x, sum(several) / len(several)) for x, several in sorted(values.items())]
                found.setdefault(title, Picture(axis)).curves[label] = curve
        last = {"learning_rate": 1, "gradient_norm": 2, "seconds": 3}
        return dict(sorted(found.items(), key=lambda item: (last.get(item[0], 0), "loss" not in item[0], item[0])))

    def checkpoints(self) -> list[tuple[str, str, str]]:
        """Each checkpoint and average: its name, its size, and what it is."""
        scores = _best_scores(self.folder)
        table = []
        for path in sorted([*self.folder.glob("*.ckpt"), *self.folder.glob("*.pth")]):
            kind = scores.get(path.name, "a full state" if re.match(r"last|step", path.name) else "")
            kind = "an average of the best" if ".ave_" in path.name else kind
            size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]))
            table.append((path.name, f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB", kind))
        return table

    def seconds(self) -> dict[str, float]:
        """Means of the times over all epochs, by name."""
        names = sorted({name for row in self.rows for name in row if name.endswith("_time")})
        columns = {name: [row[name] for row in self.rows if name in row] for name in names}
        return {name: sum(values) / len(values) for name, values in columns.items()}


def read_run(folder: str | Path) -> Run:
    """Read what a run left in its folder.

    Args:
        folder: The run's, or one that holds no run but this one.

    Raises:
        MisconfigurationException: there is no such folder, no ``metrics.csv`` below it, or it holds several runs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MisconfigurationException(f"{folder}: there is no such folder; name a run's exp_dir")
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        runs[_run_of(path, folder)].append(path)
    if not runs:
        raise MisconfigurationException(
            f"{folder}: there is no metrics.csv below it; CSVLogger writes one. Name a run's exp_dir"
        )
    if folder not in runs and len(runs) > 1:
        names = ", ".join(sorted(map(str, runs)))
        raise MisconfigurationException(f"{folder}: holds {len(runs)} runs: {names}; name one")
    folder = folder if folder in runs else next(iter(runs))
    logs = runs[folder]
    status, log, config = (folder / name for name in ("status.json", "train.log", "config.yaml"))
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Run(
        folder=folder,
        rows=read_rows(logs[-1]),
        status=json.loads(status.read_text(encoding="utf-8")) if status.exists() else {},
        skipped=[line for line in lines if "skipped" in line and "batch" in line],
        configuration=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def _run_of(log: Path, folder: Path) -> Path:
    """The folder of the run that a ``metrics.csv`` below `folder` belongs to.

    It is the nearest one above the log that holds a ``status.json``; a plain trainer writes none: then it is the one
    that its logger was given, or `folder` where that lies within it.
    """
    above = list(log.relative_to(folder).parents)
    owner = next((part for part in above if (folder / part / "status.json").exists()), None)
    if owner is None:  # .../lightning_logs/version_0/metrics.csv, or .../version_0/metrics.csv
        levels = 2 if log.parent.parent.name == "lightning_logs" else 1
        owner = above[min(levels, len(above) - 1)]
    return folder / owner


def read_rows(log: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``, each with the values that it has."""
    with log.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _place(name: str) -> tuple[str, str]:
    """The picture that a logged value belongs to, and its label there.

    >>> _place("train/loss_epoch"), _place("val_acc"), _place("lr-Adam"), _place("iter_time")
    (('loss', 'train'), ('acc', 'valid'), ('learning_rate', 'lr-Adam'), ('seconds', 'iter_time'))
    """
    plain = name.removesuffix("_epoch").removesuffix("_step")
    if _RATE.match(plain):
        return "learning_rate", plain
    if plain.endswith("_time"):
        return "seconds", plain
    if "grad_norm" in plain:
        return "gradient_norm", plain
    part = _PART.fullmatch(plain)
    if part is None:
        return plain, plain
    return part[2], {"val": "valid"}.get(part[1], part[1])


def _best_scores(folder: Path) -> dict[str, str]:
    """What the newest full state says of the best checkpoints, by file name."""
    last = folder / "last.ckpt"
    if not last.exists():
        return {}
    try:
        callbacks = load_checkpoint(last, mmap=True).get("callbacks", {})
    except CheckpointError:
        return {}  # the table still names the file
    found: dict[str, str] = {}
    for state in callbacks.values():
        if isinstance(state, Mapping) and state.get("monitor"):
            for path, score in (state.get("best_k_models") or {}).items():
                text = f"{state['monitor']} {float(score):.4g}"
                name = Path(path).name
                found[name] = f"{found[name]}, {text}" if name in found else text
    return found
