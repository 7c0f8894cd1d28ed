"""Whether torch can be let loose on an archive that `torch.save` wrote, or on a pickle: whole, and not forged.

torch itself does not look at the checksums when it reads. None covers the archive's table of contents: whether torch
finds its way by it is tried out in `files.py`. What a pickle may hold is in `allowed_types.py`; here it is followed
instruction by instruction, to see whether it would keep its reader busy with hashing. A tuple keeps no hash. One that
holds the same tuple twice, which holds the same tuple twice, and so on, takes a few bytes for each level, and twice the
time for each level where it is a key of a dict; one that is nested very deeply ends the process.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import BinaryIO, Union

#: The bit of a ZIP entry's external attributes that makes it a folder.
_FOLDER_FLAG = 0x10

#: How many values may be hashed, or handed to functions, beside one for each byte of the pickle. An honest one needs
#: fewer than it has bytes: a tensor takes about 15 values, and more than 100 bytes.
MOST_VALUES = 100_000
#: How deep they may be nested. Hashing takes the processor's stack, without a check.
MOST_LEVELS = 1000

#: A value as far as it matters here, which is the values in it: a tuple, a list for all that can grow, or None.
Value = Union[list["Value"], tuple["Value", ...], None]  # noqa: UP007 - a name in quotes takes no `|`

#: Instructions that put values into the one below them, and which of these values are hashed then.
_PUTS = {
    "APPEND": slice(0), "APPENDS": slice(0), "BUILD": slice(0), "ADDITEMS": slice(None), "SETITEM": slice(0, None, 2),
    "SETITEMS": slice(0, None, 2),
}  # fmt: skip
_DROPS = ("POP", "POP_MARK")


class DamagedArchiveError(Exception):
    """What is wrong with an archive or a pickle."""


@contextmanager
def verified(file: BinaryIO, executor: Executor | None = None) -> Iterator[None]:
    """While entered, an archive may be read; a thread looks at its checksums meanwhile, and has the last word.

    Args:
        file: Open for reading.
        executor: Of a thread: it reads all of the archive in small pieces, without Python's lock for the most part.
            None: this thread does so at the end, as with an archive of less than a MiB in any case. That is over sooner
            than Python lets one thread take over from another (5 ms).

    Raises:
        DamagedArchiveError: it is no archive of `torch.save`, truncated, damaged or forged.
    """
    with _told_as_damage():
        archive = _open_archive(file)
        # Before the thread has it: one reads it at a time. torch does not tell upper from lower case, and of two
        # entries with one name either could be the one it takes.
        pickles = [archive.read(entry) for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
        if not pickles:
            raise DamagedArchiveError("not a checkpoint: an archive without data.pkl")
    bad_entry = executor.submit(archive.testzip).result if executor and file.seek(0, 2) > 2**20 else archive.testzip
    try:
        for program in pickles:
            refuse_hash_bombs(program)
        yield
    finally:
        with _told_as_damage():
            if bad := bad_entry():  # first: it tells why torch could not read
                raise DamagedArchiveError(f"damaged: the checksum (CRC) of {bad!r} is wrong")


@contextmanager
def _told_as_damage() -> Iterator[None]:
    try:
        yield
    # Which of these a damaged table of contents raises depends on the byte that was hit.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise DamagedArchiveError(f"damaged: {type(error).__name__}: {error}") from error


def _open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Read its table of contents, and check that to read what it lists takes no more than the file's size."""
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise DamagedArchiveError("not a checkpoint: it does not begin as an archive of torch.save does")
    if not zipfile.is_zipfile(file):
        raise DamagedArchiveError("truncated: the archive's table of contents at its end is missing")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    # Before anything is unpacked: a forged archive can name the same bytes many times, or pack zeros small.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedArchiveError("damaged, or not written by torch.save, which does not compress what it stores")
    if sum(entry.file_size for entry in entries) > file.seek(0, 2):
        raise DamagedArchiveError("damaged: its table of contents lists more bytes than the file has")
    # A flag that no checksum covers: torch would take the entry for a folder and return memory as it found it.
    if folders := [entry.filename for entry in entries if entry.external_attr & _FOLDER_FLAG]:
        raise DamagedArchiveError(f"damaged: {folders[0]!r} is marked as a folder")
    return archive


def refuse_hash_bombs(program: bytes, walked: bool = False) -> None:
    """Refuse a pickle that would take for ever to read.

    Args:
        program: The pickle, of any protocol.
        walked: Whoever reads it walks through all its values, as often as they are in it.

    Raises:
        DamagedArchiveError: the values that it hashes are too many, or nested too deeply.
    """
    # Not a pickle, or one that takes what is not there: its reader, who follows it as far, says what is wrong.
    with suppress(ValueError, IndexError, KeyError):
        _follow(program, walked)


def _follow(program: bytes, walked: bool) -> None:
    """Be the machine that a pickle is a program for, without the values: know only which value holds which."""
    stack: list[Value] = []
    marks: list[int] = []  # how high the stack was at each open mark
    memo: dict[int, Value] = {}
    left = MOST_VALUES + len(program)
    for instruction, number, _ in pickletools.genops(program):
        name, takes = instruction.name, instruction.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if number is None else int(number)] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(number or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif not takes:
            if instruction.stack_after:
                stack.append([] if name.startswith("EMPTY") else None)
        else:
            below = marks.pop() if pickletools.markobject in takes else len(stack) - len(takes) + (name in _PUTS)
            taken = stack[below:]
            del stack[below:]
            if name in _PUTS:
                left = _hash(taken[_PUTS[name]], left)
                if isinstance(holder := stack[-1], list):  # its reader finds out if it can hold nothing
                    holder.extend(taken)
            elif name.startswith("TUPLE"):
                stack.append(tuple(taken))
            elif name == "STOP":
                _hash(taken if walked else (), 10 * left)  # to look at a value costs less than to hash it
            elif name not in _DROPS:
                # A function may hash all that it is given; what it returns may hold all of that.
                left = _hash(taken, left)
                stack.append(taken)


def _hash(values: Iterable[Value], left: int) -> int:
    """Count these values and all in them, as often as they are in them; returns how many may still come."""
    level = [value for value in values if value]
    for _ in range(MOST_LEVELS):
        left -= sum(map(len, level))
        if left < 0:
            break
        level = [inside for value in level for inside in value if inside]
        if not level:
            return left
    raise DamagedArchiveError("forged: its values are so nested that to read them would take for ever")
