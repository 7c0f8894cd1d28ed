"""Whether an archive that `torch.save` wrote is whole: torch itself does not look at the checksums when it reads.

What is inside, and which files there are, is not known here. No checksum covers the archive's table of contents:
whether torch finds its way by it is tried out in `files.py`.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from espnet3_lite.checkpoint.hash_bombs import hash_bomb

#: The bit of a ZIP entry's external attributes that makes it a folder.
_FOLDER_FLAG = 0x10


class DamagedArchiveError(Exception):
    """What is wrong with an archive."""


@contextmanager
def _told_as_damage() -> Iterator[None]:
    try:
        yield
    # Which of these a damaged table of contents raises depends on the byte that was hit.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise DamagedArchiveError(f"damaged: {type(error).__name__}: {error}") from error


def archive_damage(file: BinaryIO) -> str | None:
    """Say what is wrong with an archive, or None. Reads all of it, in small pieces.

    Args:
        file: Open for reading.

    >>> import io
    >>> archive_damage(io.BytesIO(b"PK\\x03\\x04 and no more"))
    "truncated: the archive's table of contents at its end is missing"
    """
    try:
        archive = open_archive(file)
        check_pickles(pickles_of(archive))
        check_checksums(archive)
    except DamagedArchiveError as error:
        return str(error)
    return None


@_told_as_damage()
def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Read its table of contents, and check that to read what it lists takes no more than the file's size.

    Args:
        file: Open for reading, as long as the archive is in use.

    Raises:
        DamagedArchiveError: it is no archive of `torch.save`, truncated, or forged.
    """
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


@_told_as_damage()
def pickles_of(archive: zipfile.ZipFile) -> list[bytes]:
    """What torch would run.

    Raises:
        DamagedArchiveError: there is none, or it is damaged.
    """
    # torch does not tell upper from lower case, and of two entries with one name either could be the one it takes.
    pickles = [archive.read(entry) for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
    if not pickles:
        raise DamagedArchiveError("not a checkpoint: an archive without data.pkl")
    return pickles


def check_pickles(pickles: list[bytes]) -> None:
    """Check that torch can be let loose on them.

    Raises:
        DamagedArchiveError: one is forged.
    """
    for pickle in pickles:
        if bomb := hash_bomb(pickle):
            raise DamagedArchiveError(bomb)


@_told_as_damage()
def check_checksums(archive: zipfile.ZipFile) -> None:
    """Read all of an archive, in small pieces, without Python's lock for the most part.

    Raises:
        DamagedArchiveError: a checksum is wrong.
    """
    if bad := archive.testzip():
        raise DamagedArchiveError(f"damaged: the checksum (CRC) of {bad!r} is wrong")
