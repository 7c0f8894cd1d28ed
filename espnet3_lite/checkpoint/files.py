"""Bytes on disk: checkpoints are written whole or not at all, and checked before they are trusted.

No policy: which checkpoint is written when, what it holds, which are kept and which ranks take part is decided by the
trainer and by `callbacks/`. What a file may hold is in `allowed_types`; sharded folders are read in `sharded_reader`;
temporary names, links and removal are in `atomic_files`.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import torch

from espnet3_lite.checkpoint.allowed_types import harmless_globals, plain, settle
from espnet3_lite.checkpoint.atomic_files import beside, flush_folder, link_or_copy, remove_checkpoint, remove_leftovers
from espnet3_lite.checkpoint.pickle_keys import endless_keys
from espnet3_lite.checkpoint.zip_integrity import archive_damage
from espnet3_lite.exceptions import CheckpointError, CheckpointNotFoundError

__all__ = [
    "CheckpointError",
    "consolidate",
    "is_intact",
    "link_or_copy",
    "load_checkpoint",
    "newest_intact",
    "remove_checkpoint",
    "save_checkpoint",
]

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
    twin = _twin_of(checkpoint, path)
    if twin is not None:
        link_or_copy(twin, path)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with beside(path) as temporary:
            # An open file, not a name: then torch calls the archive's root "archive" whatever the process.
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer hides a full disk behind an error of its own, whose context is the reason.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"{path}: the checkpoint could not be written: {reason}") from error
    _written[path.parent] = (path, *_moment(checkpoint))


#: What this process wrote last in each folder: the file, and the epoch and step of its state.
_written: dict[Path, tuple[Path, object, object]] = {}


def _moment(checkpoint: dict[str, Any]) -> tuple[object, object]:
    return checkpoint.get("epoch"), checkpoint.get("global_step")


def _twin_of(checkpoint: dict[str, Any], path: Path) -> Path | None:
    """The file that holds just this already: several callbacks save one state, each under a name of its own."""
    twin, *moment = _written.get(path.parent, (path, None, None))
    if twin == path or None in moment or tuple(moment) != _moment(checkpoint):
        return None
    try:
        saved = read_file(twin, mmap=True)
    except CheckpointError:  # it was removed or replaced meanwhile
        return None
    # The small values first: where they differ, no tensor has to be looked at.
    return twin if _same(checkpoint, saved, tensors=False) and _same(checkpoint, saved, tensors=True) else None


def _same(one: Any, other: Any, tensors: bool) -> bool:
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.shape, one.dtype, one.layout) != (
            other.shape, other.dtype, other.layout,
        ):  # fmt: skip
            return False
        return not tensors or one.layout == torch.strided and torch.equal(one.detach().cpu(), other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tensors) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(*pair, tensors) for pair in zip(one, other, strict=True))
    return one == other


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
        return load_sharded(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"{path}: does not exist")
    damage = _file_damage(path)
    if damage:
        raise CheckpointError(damage)
    return read_file(path, map_location, mmap)


def read_file(path: Path, map_location: MapLocation = "cpu", mmap: bool | None = None) -> dict[str, Any]:
    """As `load_checkpoint`, of a file whose checksums were checked already."""
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


def _file_damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file as an archive, or None. Reads all of it, in small pieces."""
    if not path.exists():
        return f"{path}: does not exist"
    if not path.is_file():
        return f"{path}: is neither a file nor a folder"
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                return f"{path}: is empty; its writer was stopped before it began"
            file.seek(0)
            reason = archive_damage(file) or endless_keys(file)
    except OSError as error:
        reason = f"damaged: {type(error).__name__}: {error}"
    return f"{path}: {reason}" if reason else None


def _damage(path: str | Path) -> str | None:
    path = Path(path)
    if path.is_dir():
        from espnet3_lite.checkpoint import sharded_reader  # torch.distributed.checkpoint is slow to import

        return sharded_reader.damage(path)
    damage = _file_damage(path)
    if damage is None:
        try:
            read_file(path, mmap=True)  # no checksum covers all that torch reads: only trying it tells
        except CheckpointError as error:
            damage = str(error)
    return damage


def is_intact(path: str | Path) -> bool:
    """True if a checkpoint, a file or a sharded folder, is there, whole by its checksums, and torch can read it."""
    return _damage(path) is None


def newest_intact(paths: Iterable[AnyPath]) -> AnyPath | None:
    """Return the first checkpoint that is whole, or None; each one that is passed over is warned about.

    Args:
        paths: The candidates, the newest first.
    """
    for path in paths:
        damage = _damage(path)
        if damage is None:
            return path
        logger.warning("Checkpoint passed over. %s", damage)
    return None


def step_of(path: str | Path) -> int:
    """The optimizer steps that a checkpoint had seen; -1 where that cannot be read."""
    try:
        step = load_checkpoint(path, mmap=True).get("global_step")
    except CheckpointError:
        return -1
    return step if isinstance(step, int) else -1


def check_state_dict(checkpoint: dict[str, Any], path: object) -> None:
    """Refuse a file that is no checkpoint of a trainer, and say what it is.

    Raises:
        CheckpointError: It has no ``state_dict``.
    """
    if "state_dict" in checkpoint:
        return
    if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise CheckpointError(
            f"{path}: a plain state dict, not a trainer's checkpoint; load it by "
            f"model.load_state_dict(torch.load({str(path)!r}, weights_only=True))"
        )
    raise CheckpointError(f"{path}: not a trainer's checkpoint: no 'state_dict' among its keys {list(checkpoint)[:10]}")


# --- Sharded checkpoints ------------------------------------------------------------------------------------


def load_sharded(folder: Path, only: str | None = None) -> dict[str, Any]:
    """Put a sharded checkpoint together; `only` one of its top-level entries, where it has that."""
    from espnet3_lite.checkpoint import sharded_reader  # torch.distributed.checkpoint is slow to import

    damage = sharded_reader.damage(folder)
    if damage:
        raise CheckpointError(damage)
    metadata = sharded_reader.read_metadata(folder)
    names = list(metadata.state_dict_metadata)
    wanted = [
        name for name in names if sharded_reader.place_of(metadata, name)[0] in (only, sharded_reader.PLAIN_ENTRY)
    ]
    if only is None or not any(sharded_reader.place_of(metadata, name)[0] == only for name in names):
        wanted = names
    return sharded_reader.nested(sharded_reader.read_entries(folder, wanted, metadata), metadata)


def consolidate(sharded_folder: str | Path, output_file: str | Path) -> None:
    """Turn a sharded checkpoint into a plain one, in one process and without a process group.

    Takes the whole checkpoint's size in memory.

    Raises:
        CheckpointError: If the folder is not a whole sharded checkpoint, or the file cannot be written.
    """
    folder = Path(os.path.expanduser(sharded_folder))
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; only sharded checkpoints need consolidating")
    save_checkpoint(load_sharded(folder), output_file)
