"""Bytes on disk: checkpoints are written whole or not at all, and checked before they are trusted.

No policy: which checkpoint is written when, what it holds, which are kept and which ranks take part is decided by the
trainer and by `callbacks/`. What a file may hold is in `allowed_types`; sharded folders are read in `sharded`;
temporary names, links and removal are in `atomic_files`.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

import torch

from espnet3_lite.checkpoint import archives
from espnet3_lite.checkpoint.allowed_types import PlainPickling, harmless_globals, plain, settle
from espnet3_lite.checkpoint.atomic_files import link_or_copy, replacing
from espnet3_lite.exceptions import CheckpointError, CheckpointNotFoundError, refuse

logger = logging.getLogger(__name__)

AnyPath = TypeVar("AnyPath", str, Path)
#: Where `torch.load` puts tensors: its own argument of this name.
MapLocation: TypeAlias = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None

# --- Writing ------------------------------------------------------------------------------------------------


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that a reader, or a crash at any moment, finds the old file or the new one,
    whole.

    It is written beside its final name, flushed to disk and renamed. When it cannot be written, neither a
    part of it nor a temporary file stays behind, and what was there before is untouched. The file loads with
    ``torch.load(path, weights_only=True)``. What this process has just saved in the same folder with the same content
    is not written again: the new name is a second one (a hard link) of that file.

    Args:
        checkpoint: Tensors and plain values; NumPy numbers, paths and the like are converted, as
            `allowed_types.plain` says.
        path: The file; its folder is made when missing.

    Raises:
        TypeError: If it holds a value that could not be loaded again; the message names its place.
        CheckpointError: If it cannot be written; the message names the file and the reason.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, f"{folder}/last.ckpt")
    >>> load_checkpoint(f"{folder}/last.ckpt")
    {'epoch': 3, 'state_dict': {'weight': tensor([1., 1.])}}
    >>> os.listdir(folder)
    ['last.ckpt']
    """
    path = Path(os.path.expanduser(path))
    checkpoint = cast(dict[str, Any], plain(checkpoint))  # a dict comes back as one
    moment = checkpoint.get("epoch"), checkpoint.get("global_step"), tuple(checkpoint)
    twin, its_moment = _written.get(folder := os.path.dirname(path), (path, None))
    try:
        if twin != path and None not in moment and moment == its_moment and _holds(twin, checkpoint):
            link_or_copy(twin, path)
            return
        # An open file, not a name: then torch calls the archive's root "archive" whatever the process.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file, pickle_module=PlainPickling)
    except (OSError, RuntimeError) as error:
        # torch's writer hides a full disk behind an error of its own, whose context is the reason.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"{path}: the checkpoint could not be written: {reason}") from error
    _written[folder] = (path, moment)


#: What this process wrote last in each folder: the file, and the epoch, the step and the keys of its state.
_written: dict[str, tuple[Path, tuple[object, ...]]] = {}


class _Comparison:
    """Takes what torch would write, and compares it with what is in a file. The small values come first."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, data: bytes) -> int:
        """Of the next bytes."""
        if self._file.read(len(data)) != data:
            raise ValueError("something else is in the file")
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""


def _holds(path: Path, checkpoint: dict[str, Any]) -> bool:
    """Whether a file is just what would be written: several callbacks save one state, each under a name of its own."""
    if not path.is_file():
        return False  # it was removed meanwhile
    with open(path, "rb") as file:
        try:
            torch.save(checkpoint, cast(BinaryIO, _Comparison(file)), pickle_module=PlainPickling)
        except RuntimeError:  # torch's, of other content; whatever else it is about shows when the file is written
            return False
        return not file.read(1)


# --- Reading ------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | Path, map_location: MapLocation = "cpu", mmap: bool | None = None) -> dict[str, Any]:
    """Read a checkpoint, ours or Lightning's, after checking that it is whole. No code in it is ever run.

    Beside tensors and plain values, the harmless types in `allowed_types.allowed_names` are read, which
    ESPnet3's files under Lightning hold in their hyper-parameters: a `Namespace`, paths and dates come back
    as such, OmegaConf containers as dicts and lists with their ``${...}`` as text, other dict-likes as dicts,
    NumPy numbers as Python's, NumPy arrays as arrays. A sharded checkpoint (a folder) is put together on the
    CPU.

    Args:
        path: A file, or a sharded checkpoint's folder.
        map_location: As in `torch.load`. Default: the CPU.
        mmap: As in `torch.load`: map the tensors instead of reading them. Default: torch's own default.

    Raises:
        CheckpointError: If the file is missing, truncated, damaged, not a checkpoint, or holds other objects;
            the message says which.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        from espnet3_lite.checkpoint import sharded  # torch.distributed.checkpoint is slow to import

        return sharded.load_sharded(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"{path}: does not exist")
    if not path.is_file():
        raise CheckpointError(f"{path}: is neither a file nor a folder")
    try:
        # A thread looks at the checksums while this one reads: together they take little longer than reading alone.
        with open(path, "rb") as file, ThreadPoolExecutor(1) as executor, archives.verified(file, executor):
            return _unpickle(path, map_location, mmap)
    except (archives.DamagedArchiveError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def refuse_unsafe_files(call: str, weights_only: bool | None) -> None:
    """A checkpoint never runs code here, whoever made it.

    Raises:
        MisconfigurationException: `weights_only` is False.
    """
    always = "checkpoints are always read with weights_only=True, tensors, plain values and harmless types alone"
    refuse(f"{call}(weights_only=False): {always}", (weights_only is False, "; leave it out"))


def _unpickle(path: Path, map_location: MapLocation, mmap: bool | None) -> dict[str, Any]:
    try:
        with harmless_globals():
            checkpoint = settle(torch.load(path, map_location=map_location, mmap=mmap, weights_only=True))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: its values are nested too deeply for a checkpoint") from error
    # The archive's checksums were right: what is inside was not written by torch.save, or there is no room for it. What
    # torch raises then depends on the bytes: any error will do, and means the same.
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {type(error).__name__}: {error}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: not a checkpoint but a {type(checkpoint).__name__}; a dict is expected")
    return checkpoint


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Why a file was refused: by name, where its pickle can be listed."""
    try:
        with harmless_globals():
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it follows the same damaged pickle, and ends as variously; the first error is told
        names = []
    if not names:
        # torch's text advises loading with code allowed; the error that it stands for says what was wrong.
        reason = str(error.__context__ or "").removeprefix("WeightsUnpickler error: ").partition("\n")[0]
        return f"{path}: its pickle is not one that torch.save writes{': ' if reason else ''}{reason}"
    return (
        f"{path}: holds pickled objects of {', '.join(sorted(names))}, which are not read, since loading them "
        "can run code. Where it was written, save it anew without them (most often they are in "
        "`hyper_parameters`); what is read is listed by espnet3_lite.checkpoint.allowed_types.allowed_names()"
    )


def damage(path: str | Path, *share: int) -> str | None:
    """Say what is wrong with a checkpoint, a file or a sharded folder; None where torch can read it, and all is there.

    No checksum covers all that torch reads: only trying it tells.

    Args:
        path: The file or folder.
        share: Of a folder, which part of several processes this one looks at: its rank, and how many they are.
    """
    try:
        if os.path.isdir(path):
            from espnet3_lite.checkpoint import sharded  # torch.distributed.checkpoint is slow to import

            sharded.verify(path, *share)
        else:
            load_checkpoint(path, mmap=True)
    except CheckpointError as error:
        return str(error)
    return None


def newest_intact(paths: Iterable[AnyPath]) -> AnyPath | None:
    """Return the first checkpoint that is whole, or None; each one that is passed over is warned about.

    Args:
        paths: The candidates, the newest first.
    """
    for path in paths:
        if (found := damage(path)) is None:
            return path
        logger.warning("Checkpoint passed over. %s", found)
    return None


def check_state_dict(checkpoint: dict[str, Any], path: object) -> None:
    """Refuse a file that is no checkpoint of a trainer.

    Raises:
        CheckpointError: It has no ``state_dict``; it may be one itself.
    """
    if "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path}: not a trainer's checkpoint: no 'state_dict' among its keys {list(checkpoint)[:10]}. A plain "
            f"state dict is loaded by model.load_state_dict(torch.load({str(path)!r}, weights_only=True))"
        )


def consolidate(sharded_folder: str | Path, output_file: str | Path) -> None:
    """Turn a sharded checkpoint into a plain one, in one process and without a process group.

    Takes the whole checkpoint's size in memory.

    Raises:
        CheckpointError: If the folder is missing or no whole sharded checkpoint, or the file cannot be written.
    """
    save_checkpoint(load_checkpoint(sharded_folder), output_file)
