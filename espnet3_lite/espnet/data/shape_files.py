"""Reading shape files: lines ``utterance 312,80``, as collect_stats writes them.

What is made of them is decided in `samplers.py`.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from espnet3_lite.exceptions import MisconfigurationException

#: So much text is split at a time: the lists of its words are larger than what is kept.
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Shapes:
    """One stream's shapes.

    Attributes:
        keys: The utterances.
        numbers: All their axes, one utterance after the other, ``(axes of all,)`` int64.
        starts: Where each utterance's axes begin in `numbers`, ``(utterances,)`` int64.
    """

    keys: list[str]
    numbers: np.ndarray
    starts: np.ndarray

    def lengths(self) -> np.ndarray:
        """The first axis of each utterance, ``(utterances,)`` int64."""
        return self.numbers[self.starts]

    def elements(self) -> np.ndarray:
        """The product of each utterance's axes, ``(utterances,)`` int64."""
        return np.multiply.reduceat(self.numbers, self.starts)

    def shape(self, index: int) -> list[int]:
        """One utterance's axes."""
        return self._axes()[index].tolist()

    def first_odd(self) -> int | None:
        """The first utterance whose axes beyond the first differ from those of utterance 0; None: all agree."""
        counts = np.diff(self.starts, append=len(self.numbers))
        same = counts == counts[0]
        for axis in range(1, counts[0]):
            same[same] = self.numbers[self.starts[same] + axis] == self.numbers[axis]
        return None if same.all() else int(np.argmin(same))

    def in_order(self, keys: list[str]) -> "Shapes":
        """The same shapes in the order of `keys`."""
        place = {key: index for index, key in enumerate(self.keys)}
        order = [place[key] for key in keys]
        axes = self._axes()
        counts = np.array([len(axes[index]) for index in order])
        return Shapes(keys, np.concatenate([axes[index] for index in order]), np.cumsum(counts) - counts)

    def _axes(self) -> list[np.ndarray]:
        return np.split(self.numbers, self.starts[1:])


def read_two_columns(path: str | Path) -> dict[str, str]:
    """The lines ``key rest`` of a file, in its order; `rest` may be empty. Blank lines are passed over.

    Raises:
        MisconfigurationException: the file does not exist, has no line, or has a key twice.
    """
    path = _existing(path)
    rows: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            key, rest = _two_columns(line)
            if key in rows:
                raise MisconfigurationException(f"{path}, line {number}: {key!r} is there twice")
            if key:
                rows[key] = rest
    if not rows:
        raise MisconfigurationException(f"shape file {str(path)!r} is empty: no utterance to make batches of")
    return rows


def read_shapes(path: str | Path, expected: Sequence[str] = ()) -> Shapes:
    """The shapes of one stream, in the file's order; in arrays, since a corpus has millions of utterances.

    Args:
        path: The shape file.
        expected: Another stream's utterances. Where this file has them in the same order, their strings are shared.

    Raises:
        MisconfigurationException: as `read_two_columns`, or a line has no numbers; the message names the
            line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix="_shape") as file:
    ...     _ = file.write("a 312,80\\nb 95,80\\n")
    ...     file.flush()
    ...     shapes = read_shapes(file.name)
    >>> shapes.keys, shapes.lengths(), shapes.elements()
    (['a', 'b'], array([312,  95]), array([24960,  7600]))
    """
    path = _existing(path)
    keys: list[str] = []
    numbers, counts = [], []
    with path.open(encoding="utf-8") as file:
        while block := file.readlines(_BLOCK_BYTES):
            names, texts = _columns(block)
            known = list(expected[len(keys) : len(keys) + len(names)])
            keys += known if known == names else names
            counts.append(np.array([text.count(",") + 1 for text in texts], dtype=np.int64))
            numbers.append(_numbers(path, names, texts, counts[-1].sum()))
    if len(set(keys)) < len(keys) or not keys:
        read_two_columns(path)  # says where the second one is, or that there is none
    ends = np.cumsum(np.concatenate(counts))
    return Shapes(keys, np.concatenate(numbers), ends - np.concatenate(counts))


def read_matching_shapes(paths: Sequence[str | Path]) -> list[Shapes]:
    """`read_shapes` of each file, all in the first one's order, after checking that all know the same utterances.

    Raises:
        MisconfigurationException: no file at all, an utterance that is not in all files, or what
            `read_shapes` raises.
    """
    if not paths:
        raise MisconfigurationException("shape_files is empty; name at least one shape file")
    streams = [read_shapes(paths[0])]
    for path in paths[1:]:
        shapes = read_shapes(path, expected=streams[0].keys)
        if shapes.keys != streams[0].keys:
            check_same_keys(paths[0], streams[0].keys, path, shapes.keys)
            shapes = shapes.in_order(streams[0].keys)
        streams.append(shapes)
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


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MisconfigurationException(
            f"shape file {str(path)!r} does not exist; `espnet3-lite collect-stats CONFIG` writes the shape "
            "files into stats_dir (is stats_dir the same in both runs?)"
        )
    return path


def _two_columns(line: str) -> tuple[str, str]:
    key, _, rest = line.strip().replace("\t", " ").partition(" ")
    return key, rest.strip()


def _columns(lines: list[str]) -> tuple[list[str], list[str]]:
    """The keys and the rest of lines; all at once where each is ``key rest`` with one space, as collect_stats writes.

    A list for each line would cost ten times as much.
    """
    text = "".join(lines)
    words = text.removesuffix("\n").replace("\n", " ").split(" ")
    if "\t" in text or "" in words or any(count != 1 for count in map(str.count, lines, repeat(" "))):
        pairs = [(key, rest) for key, rest in map(_two_columns, lines) if key]
        return [key for key, _ in pairs], [rest for _, rest in pairs]
    return words[::2], words[1::2]


def _numbers(path: Path, keys: list[str], texts: list[str], count: int) -> np.ndarray:
    """All numbers of these shapes, ``(count,)`` int64. What numpy's reader does not like, Python's `int` judges."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's word for text that is no number
        try:
            numbers = np.fromstring(",".join(texts), dtype=np.int64, sep=",")
            if len(numbers) == count:
                return numbers
        except (DeprecationWarning, ValueError):
            pass
    found: list[int] = []
    for key, text in zip(keys, texts, strict=True):
        try:
            found += [int(number) for number in text.split(",")]
        except ValueError:
            raise MisconfigurationException(
                f"{path}, line {_line_of(path, key)}: the shape of utterance {key!r} is {text!r}; "
                "expected integers separated by commas, such as '312,80'"
            ) from None
    return np.array(found, dtype=np.int64)


def _line_of(path: str | Path, key: str) -> int:
    """The number of the line that begins with `key`; looked for only when an error is to be reported."""
    with Path(path).open(encoding="utf-8") as lines:
        return next(number for number, line in enumerate(lines, start=1) if line.split()[:1] == [key])
