"""How a file or folder comes to have its name at once, or not at all: temporary names, links, removal.

What is in a file is not known here.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet3_lite.exceptions import CheckpointError


def _hidden(path: Path, purpose: str) -> Path:
    """The name beside `path` under which this process, by its number, writes or removes."""
    return path.with_name(f".{path.name}.{purpose}.{os.getpid()}.tmp")


_under_way: set[int] = set()


def writes_under_way() -> bool:
    """True while a thread of this process writes a file: to end the process now would lose it."""
    return bool(_under_way)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name in the same folder, which is made, to write to: at the end what is there takes the place of `path`.

    A reader, or a crash at any moment, finds the old file or the new one, whole. Where an exception ends it, the old
    one stays, and nothing is left behind.
    """
    folder = path.parent
    if not os.path.isdir(folder):  # it is, nearly always: to try, and be refused, takes five times as long
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = _hidden(path, "new")
    remove_checkpoint(temporary)
    _under_way.add(threading.get_ident())
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(folder)  # or a power cut takes the rename back
    finally:
        _under_way.discard(threading.get_ident())
        remove_checkpoint(temporary)


def _flush(path: Path) -> None:
    """Have what was written to a file, or renamed in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed in the midst of writing or removing this file left behind."""
    prefix = f".{path.name}."
    for entry in (one for one in os.scandir(path.parent) if one.name.startswith(prefix)):
        match = re.fullmatch(r"(?:new|old)\.(\d+)\.tmp", entry.name[len(prefix) :])
        if match and not _is_running(int(match.group(1))):
            remove_checkpoint(entry.path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small file, in UTF-8: a reader, or a crash, finds the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link_or_copy(source: str | Path, destination: str | Path) -> None:
    """Make `destination` name the same bytes as `source`, at once: it never names nothing or a part.

    A file gets a hard link, so that removing `source` leaves `destination` whole, or a copy where the file
    system has no hard links. A folder (a sharded checkpoint) gets a relative symbolic link.

    Raises:
        CheckpointError: If `source` does not exist, or `destination` cannot be written.
    """
    source, destination = Path(os.path.realpath(source)), Path(destination)
    try:
        if destination.exists() and not destination.is_symlink() and source.samefile(destination):
            return  # two hard links, where a rename would do nothing
        with replacing(destination) as temporary:
            if source.is_dir():
                os.symlink(os.path.relpath(source, os.path.realpath(destination.parent)), temporary, True)
            else:
                try:
                    os.link(source, temporary)
                # No hard links here, another device, too many links: a copy does, or says why not.
                except OSError:
                    shutil.copyfile(source, temporary)
            if destination.is_dir() and not destination.is_symlink():
                remove_checkpoint(destination)  # a rename cannot replace a folder
    except OSError as error:
        raise CheckpointError(f"{destination}: could not be linked to {source}: {error}") from error


def remove_checkpoint(path: str | Path) -> None:
    """Remove a checkpoint, be it a file, a link or a folder; one that is missing is fine.

    A folder is renamed first, so that a crash leaves nothing that looks like a checkpoint.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        doomed = _hidden(Path(path), "old")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    elif os.path.lexists(path):  # mostly it is missing, which `unlink` finds out in four times the time
        Path(path).unlink(missing_ok=True)
