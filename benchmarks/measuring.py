"""What a row of the table is, and how its sides are measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

#: The side that the others are divided by, which is the first one.
BY_HAND = "by hand"

Samples = dict[str, list[float]]

#: Which clock `now` reads. On a machine that others use, this process's own CPU time is steadier than the wall's.
_clocks = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = "wall"


def use_clock(name: str) -> None:
    """``wall`` or ``cpu``: of several processes rank 0's own time, without what it waits for the others."""
    global _clock
    _clock = name


def clock() -> str:
    """The name of the clock in use."""
    return _clock


def now() -> float:
    """Seconds by the clock in use."""
    return _clocks[_clock]()


def now_here() -> float:
    """Seconds by the clock in use, without what the process's other threads do meanwhile."""
    return time.thread_time() if _clock == "cpu" else now()


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        folder: Where rows may write; removed afterwards.
        repetitions: Rounds that count; one more warms up.
        scale: The work of a round, as a fraction of the usual one; tests take little.
        peers: Also measure Lightning and Accelerate, where they are installed.
        recordings: A folder of ``*.wav`` files, for the row of padding; None: the row is left out.
    """

    folder: Path
    repetitions: int = 7
    scale: float = 1.0
    peers: bool = False
    recordings: Path | None = None

    def count(self, usual: int) -> int:
        """So many steps, files or the like instead of the usual number."""
        return max(2, round(usual * self.scale))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What the command calls it.
        title: What is compared.
        aim: The ratio that is wanted, by medians; None: none.
        unit: What `measure` returns: ``us``, ``ms``, ``s`` (it returns seconds), ``MiB``, ``%`` or
            ``files`` (as they are).
        measure: Returns the samples of each side; nothing where it cannot be measured here.
    """

    name: str
    title: str
    aim: float | None
    unit: str
    measure: Callable[[Options], Samples]


def interleaved(sides: dict[str, Callable[[], float]], repetitions: int) -> Samples:
    """Run all sides in alternation; the first round warms up and does not count.

    >>> interleaved({"one": lambda: 1.0, "two": lambda: 2.0}, repetitions=2)
    {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    samples: Samples = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, run in sides.items():
            value = run()
            if repetition:
                samples[name].append(value)
    return samples


def require_equal(weights: dict[str, torch.Tensor]) -> None:
    """Refuse a comparison whose sides trained different things.

    Raises:
        RuntimeError: some weights differ from the first side's.
    """
    (first, expected), *others = weights.items()
    for name, weight in others:
        if not torch.equal(weight, expected):
            raise RuntimeError(f"{name} trained something else than {first}: {weight} instead of {expected}")


_FACTORS = {"us": 1e6, "ms": 1e3, "s": 1.0, "MiB": 1.0, "%": 1.0, "files": 1.0}


def lines_of(row: Row, samples: Samples) -> list[str]:
    """The row's lines in the table, one for each side.

    >>> row = Row("load", "loading", 1.1, "ms", lambda options: {})
    >>> for line in lines_of(row, {"by hand": [0.1, 0.2, 0.3], "espnet3_lite": [0.15, 0.25, 0.2]}):
    ...     print(line)
    | load | loading | by hand | 200.0 | 100.0 ms | | | |
    | | | espnet3_lite | 200.0 | 150.0 ms | 1.00 | 1.50 | 1.1 |
    """
    lines, factor = [], _FACTORS[row.unit]
    for name, values in samples.items():
        head = f"| {row.name} | {row.title} |" if not lines else "| | |"
        middle, least = statistics.median(values), min(values)
        figures = f" {name} | {middle * factor:.1f} | {least * factor:.1f} {row.unit} |"
        if len(lines) == 0:
            base_middle, base_least = middle, least
            lines.append(f"{head}{figures} | | |")
            continue
        ratios = [f"{a / b:.2f}" if b else "" for a, b in ((middle, base_middle), (least, base_least))]
        aim = f" {row.aim:g} |" if row.aim is not None and len(lines) == 1 else " |"
        lines.append(f"{head}{figures} {ratios[0]} | {ratios[1]} |{aim}")
    return lines


def head(options: Options) -> list[str]:
    """The machine and the versions, and the table's first lines."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread(s), load {load} at the start; "
        f"{_clock} time; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}; "
        f"{options.repetitions} rounds of {options.scale:g} times the usual work.",
        "",
        "| row | compared | side | median | least | ratio of medians | of minima | wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]


def known(rows: Iterable[Row], names: Iterable[str]) -> list[Row]:
    """The rows of these names, or all.

    Raises:
        ValueError: there is no row of a name.
    """
    by_name = {row.name: row for row in rows}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"no row is called {', '.join(missing)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(by_name.values())
