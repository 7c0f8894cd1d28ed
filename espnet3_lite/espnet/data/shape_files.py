"""Reading shape files: lines ``utterance 312,80``, as collect_stats writes them.

What is made of them is decided in `samplers.py`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet3_lite.exceptions import MisconfigurationException

Shapes = dict[str, list[int]]


def read_two_columns(path: str | Path) -> dict[str, str]:
    """The lines ``key rest`` of a file, in its order; `rest` may be empty. Blank lines are passed over.

    Raises:
        MisconfigurationException: the file does not exist, has no line, or has a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MisconfigurationException(
            f"shape file {str(path)!r} does not exist; `espnet3-lite collect-stats CONFIG` writes the shape "
            "files into stats_dir (is stats_dir the same in both runs?)"
        )
    rows: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            key, _, rest = line.strip().replace("\t", " ").partition(" ")
            if key in rows:
                raise MisconfigurationException(f"{path}, line {number}: {key!r} is there twice")
            if key:
                rows[key] = rest.strip()
    if not rows:
        raise MisconfigurationException(f"shape file {str(path)!r} is empty: no utterance to make batches of")
    return rows


def read_shapes(path: str | Path) -> Shapes:
    """The shapes ``{utterance: [length, ...]}`` of one stream, in the file's order.

    Raises:
        MisconfigurationException: as `read_two_columns`, or a line has no numbers; the message names the
            line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix="_shape") as file:
    ...     _ = file.write("a 312,80\\nb 95,80\\n")
    ...     file.flush()
    ...     read_shapes(file.name)
    {'a': [312, 80], 'b': [95, 80]}
    """
    shapes: Shapes = {}
    for key, text in read_two_columns(path).items():
        try:
            shapes[key] = [int(number) for number in text.split(",")]
        except ValueError:
            raise MisconfigurationException(
                f"{path}, line {_line_of(path, key)}: the shape of utterance {key!r} is {text!r}; "
                "expected integers separated by commas, such as '312,80'"
            ) from None
    return shapes


def read_matching_shapes(paths: Sequence[str | Path]) -> list[Shapes]:
    """`read_shapes` of each file, after checking that all know the same utterances.

    Raises:
        MisconfigurationException: no file at all, an utterance that is not in all files, or what
            `read_shapes` raises.
    """
    if not paths:
        raise MisconfigurationException("shape_files is empty; name at least one shape file")
    streams = [read_shapes(path) for path in paths]
    for path, shapes in zip(paths, streams, strict=True):
        check_same_keys(paths[0], streams[0], path, shapes)
    return streams


def check_same_keys(first_path: str | Path, first: Iterable[str], other_path: str | Path, other: Iterable[str]) -> None:
    """Raise `MisconfigurationException` naming some utterances that only one of two files has."""
    only_first, only_other = set(first) - set(other), set(other) - set(first)
    if only_first or only_other:
        raise MisconfigurationException(
            f"{first_path} and {other_path} do not have the same utterances: "
            f"{len(only_first)} only in the first (such as {sorted(only_first)[:3]}), "
            f"{len(only_other)} only in the second (such as {sorted(only_other)[:3]}); collect both anew"
        )


def _line_of(path: str | Path, key: str) -> int:
    """The number of the line that begins with `key`; looked for only when an error is to be reported."""
    with Path(path).open(encoding="utf-8") as lines:
        return next(number for number, line in enumerate(lines, start=1) if line.split()[:1] == [key])
