"""Print the table: ``python -m benchmarks [ROW ...] [--repetitions N] [--scale X] [--peers] [--recordings FOLDER]``."""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import data, files, ranks, runs, steps
from benchmarks.measuring import Options, head, known, lines_of, use_clock

ROWS = (*steps.ROWS, *ranks.ROWS, *files.ROWS, *data.ROWS, *runs.ROWS)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of the package within the block: the table alone is printed."""
    logger = logging.getLogger("espnet3_lite")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def main(arguments: list[str] | None = None) -> None:
    """Measure the rows that were asked for, and print each as soon as it is there."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all by default: {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="the work of a round, as a fraction of the usual one")
    parser.add_argument("--peers", action="store_true", help="Lightning and Accelerate too, where installed")
    parser.add_argument("--recordings", type=Path, help="a folder of wav files, for the row `padding`")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time alone")
    parsed = parser.parse_args(arguments)
    try:
        rows = known(ROWS, parsed.rows)
    except ValueError as error:
        parser.error(str(error))
    use_clock(parsed.clock)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="benchmarks.") as folder, quiet():
        options = Options(Path(folder), parsed.repetitions, parsed.scale, parsed.peers, parsed.recordings)
        print("\n".join(head(options)), flush=True)
        for row in rows:
            samples = row.measure(options)
            print("\n".join(lines_of(row, samples)) if samples else f"| {row.name} | not measured here |", flush=True)


if __name__ == "__main__":
    main()
