"""Print the table: ``python -m benchmarks [ROW ...] [--repetitions N] [--scale X] [--peers] [--recordings FOLDER]``.

Standard output, and the file of ``--output``, get the table and nothing else: what rows and peers print, such as
progress bars, goes to standard error.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from benchmarks import data, files, ranks, runs, steps
from benchmarks.measuring import Options, head, known, lines_of, use_clock

ROWS = (*steps.ROWS, *ranks.ROWS, *files.ROWS, *data.ROWS, *runs.ROWS)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of the package within the block."""
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
    parser.add_argument("--output", type=Path, help="a file for the table, which is replaced")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's own time alone")
    parsed = parser.parse_args(arguments)
    try:
        rows = known(ROWS, parsed.rows)
    except ValueError as error:
        parser.error(str(error))
    use_clock(parsed.clock)
    torch.set_num_threads(1)
    printed: list[str] = []

    def tell(lines: list[str]) -> None:
        print("\n".join(lines), flush=True)
        printed.extend(lines)
        if parsed.output is not None:
            parsed.output.write_text("\n".join(printed) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="benchmarks.") as folder:
        options = Options(Path(folder), parsed.repetitions, parsed.scale, parsed.peers, parsed.recordings)
        tell(head(options))
        for row in rows:
            with quiet(), redirect_stdout(sys.stderr):  # Lightning draws its progress bars on standard output
                samples = row.measure(options)
            tell(lines_of(row, samples) if samples else [f"| {row.name} | not measured here |"])


if __name__ == "__main__":
    main()
