"""One run at a time in a folder: a lock of the operating system's, which ends with the process that holds it.

It is a record lock (`fcntl.lockf`): a process that is killed holds nothing any more, and the workers that it forked
never did. Network file systems pass it on to other machines, where they know locks at all.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from espnet3_lite.distributed.rank import is_global_zero, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # Windows has none

#: The file that is locked: it says who holds it, and is gone after the run.
LOCK_FILE = ".lock"

_held: set[Path] = set()


@contextmanager
def locked(exp_dir: Path) -> Iterator[None]:
    """While entered, no other process enters for the same folder. Rank zero does it for all.

    Where the file system has no locks, or takes no file, a warning says so.

    Args:
        exp_dir: The folder; it is there.

    Raises:
        MisconfigurationException: another run is at work there; the message names its machine and process.
    """
    path = exp_dir.resolve() / LOCK_FILE
    file = _acquired(path) if is_global_zero() else None
    if file is None:
        yield
        return
    _held.add(path)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a disk that became read-only: what ended the run is what must be seen
            rank_zero_warn(f"{path}: could not be removed: {error}. It locks nothing any more")
        file.close()
        _held.discard(path)


def _acquired(path: Path) -> TextIO | None:
    """The open file with its lock; None, with a warning, where there are none."""
    if path in _held:  # this process: a second lock would be given, and its end would end the first
        raise _at_work(path.parent, f"process {os.getpid()}, this one")
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"{path.parent}: takes no lock ({error}): make sure that no other run uses this folder")
            return None
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no fcntl")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _at_work(path.parent, holder) from None
            rank_zero_warn(f"{path.parent}: cannot be locked ({error}): make sure that no other run uses this folder")
            return None
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()  # its last holder removed it in this moment


def _at_work(exp_dir: Path, holder: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"exp_dir: another run is at work in {exp_dir}: {holder}. Wait for it or end it, or give this one a folder of "
        f"its own, such as exp_dir={exp_dir}-2"
    )
