"""Whether an archive that `torch.save` wrote is whole: torch itself does not look at the checksums when it reads.

What is inside, and which files there are, is not known here. No checksum covers the archive's table of contents:
whether torch finds its way by it is tried out in `files.py`.
"""

import struct
import zipfile
import zlib
from typing import BinaryIO

#: The bit of a ZIP entry's external attributes that makes it a folder.
_FOLDER_FLAG = 0x10


def archive_damage(file: BinaryIO) -> str | None:
    """Say what is wrong with an archive, or None. Reads all of it, in small pieces.

    Args:
        file: Open for reading, at its beginning.

    >>> import io
    >>> archive_damage(io.BytesIO(b"PK\\x03\\x04 and no more"))
    "truncated: the archive's table of contents at its end is missing"
    """
    try:
        if file.read(4) != b"PK\x03\x04":
            return "not a checkpoint: it does not begin as an archive of torch.save does"
        if not zipfile.is_zipfile(file):
            return "truncated: the archive's table of contents at its end is missing"
        with zipfile.ZipFile(file) as archive:
            # Before anything is unpacked: a forged archive can name the same bytes many times, or pack zeros small.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "damaged, or not written by torch.save, which does not compress: an entry is compressed"
            if sum(entry.file_size for entry in archive.infolist()) > file.seek(0, 2):
                return "damaged: its table of contents lists more bytes than the file has"
            bad = archive.testzip()
            if bad:
                return f"damaged: the checksum (CRC) of {bad!r} is wrong"
            # A flag that no checksum covers: torch would take the entry for a folder and return memory as it found it.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER_FLAG]
            if folders:
                return f"damaged: {folders[0]!r} is marked as a folder"
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                return "not a checkpoint: an archive without data.pkl"
    # Which of these a damaged table of contents raises depends on the byte that was hit.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        return f"damaged: {type(error).__name__}: {error}"
    return None
