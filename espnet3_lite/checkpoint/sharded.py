"""Sharded checkpoints: folders of `torch.distributed.checkpoint`, read whole by one process, or by each rank its parts.

A folder is whole once its `.metadata` is there, which is written last, and names the data files, one or more a rank.
torch's own reader unpickles both without restraint; here they pass through lists of allowed names first. Imported where
a folder is met, since torch's package is slow to import. They are written in `distributed/fsdp.py`.
"""

import io
import itertools
import math
import operator
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict  # undoes `save`; it has no public name
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.tensor import DTensor

from espnet3_lite.checkpoint import archives
from espnet3_lite.checkpoint.allowed_types import harmless_globals, settle
from espnet3_lite.exceptions import CheckpointError

METADATA_FILE = ".metadata"

#: Where in the nested checkpoint an entry belongs, such as ``("state_dict", "encoder.weight")``.
Place: TypeAlias = tuple[str | int, ...]
#: The entry that holds, as a tuple of one dict, all of a checkpoint that is not sharded.
PLAIN_ENTRY = "plain"

_METADATA_TYPES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch": ("Size", "device", "layout"),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    """Builds the dataclasses of `.metadata` and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        home = "pathlib" if module == "pathlib._local" else module  # where Python 3.13 has it
        is_dtype = home == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _METADATA_TYPES.get(home, ()):
            return super().find_class(home, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a checkpoint's metadata")


def read_metadata(folder: str | os.PathLike[str]) -> Metadata:
    """Read what a sharded checkpoint holds and where, without running code.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything but metadata.
    """
    path = Path(folder) / METADATA_FILE
    try:
        content = path.read_bytes()
        archives.refuse_hash_bombs(content, walked=True)
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        _check_metadata(metadata)
    except FileNotFoundError as error:
        files = ", ".join(sorted(path.name for path in Path(folder).glob("*.ckpt"))[-3:])
        hint = f"; give one of its files, {files}" if files else ", or its save did not finish"
        raise CheckpointError(f"{folder}: no {METADATA_FILE}; not a sharded checkpoint{hint}") from error
    # What a damaged pickle raises depends on the byte that was hit.
    except Exception as error:
        raise CheckpointError(f"{path}: damaged metadata: {type(error).__name__}: {error}") from error
    return metadata


def _check_metadata(metadata: object) -> None:
    """Types, places and sizes: nobody who reads them further has to doubt them. Each entry's `Place` is filled in.

    Raises:
        ValueError, TypeError or AttributeError: something is not as torch writes it.
    """
    if not isinstance(metadata, Metadata):
        raise TypeError(f"not a sharded checkpoint's metadata but a {type(metadata).__name__}")
    for info in metadata.storage_data.values():
        name = info.relative_path
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"the data file {name!r} is not one of this folder")
        if not all(type(number) is int and number >= 0 for number in (info.offset, info.length)):
            raise ValueError(f"an item of {name} at byte {info.offset!r}, {info.length!r} long")
    places: dict[str, Place] = {}
    for name, entry in metadata.state_dict_metadata.items():
        places[name] = place = tuple((metadata.planner_data or {}).get(name, (name,)))
        positions = range(len(metadata.state_dict_metadata))  # a forged one could make an endless list
        if not place or not all(isinstance(part, str) or part in positions for part in place):
            raise TypeError(f"the entry {name!r}, whose place is {place!r}")
        if isinstance(entry, BytesStorageMetadata):
            continue
        stored = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if stored != math.prod(entry.size) or not isinstance(entry.properties.dtype, torch.dtype):
            raise ValueError(f"the entry {name!r} has size {tuple(entry.size)}, of which {stored} values are stored")
    metadata.planner_data = places


def verify(folder: str | Path, rank: int = 0, world_size: int = 1) -> Metadata:
    """Look whether all of a sharded checkpoint is there, and every checksum is right. Returns what it holds and where.

    Each stored item is an archive of `torch.save`, which carries checksums (CRC) of its content; torch does not look at
    them when it reads. Takes memory for the largest item.

    Args:
        folder: The sharded checkpoint.
        rank: Of several processes that look through it together, this one reads each `world_size`-th item.
        world_size: How many processes these are.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    metadata = read_metadata(folder)
    items = sorted({(info.relative_path, info.offset, info.length) for info in metadata.storage_data.values()})
    for name, of_file in itertools.groupby(items, key=operator.itemgetter(0)):
        places = [(offset, length) for _, offset, length in of_file]
        path, end = Path(folder) / name, max(map(sum, places))
        if not path.is_file():
            raise CheckpointError(f"{folder}: the data file {name} is missing")
        if path.stat().st_size < end:
            raise CheckpointError(f"{folder}: the data file {name} is truncated: {path.stat().st_size} of {end} bytes")
        if sum(length for _, length in places) > end:
            raise CheckpointError(f"{folder}: damaged metadata: items of the data file {name} overlap")
    for name, offset, length in items[rank::world_size]:
        with open(Path(folder) / name, "rb") as file:
            file.seek(offset)
            item = io.BytesIO(file.read(length))
        try:
            with archives.verified(item):
                pass
        except archives.DamagedArchiveError as error:
            raise CheckpointError(f"{folder}: the data file {name}, at byte {offset}: {error}") from error
    return metadata


class _VerifiedReader(FileSystemReader):
    """torch's reader of sharded checkpoints, with `.metadata` read without running code."""

    def read_metadata(self, *_: object, **__: object) -> Metadata:
        return read_metadata(self.path)


class _PlainValuesPlanner(DefaultLoadPlanner):
    """torch's planner, which lets only tensors and plain values through. Of entries that are not nested."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        with harmless_globals():
            read = settle(torch.load(value, map_location="cpu", weights_only=True))
        self.state_dict[read_item.dest_index.fqn] = read


def load_sharded(folder: Path, only: str | None = None) -> dict[str, Any]:
    """Put a sharded checkpoint together on the CPU, in this process alone.

    Args:
        folder: The sharded checkpoint.
        only: One of its top-level entries: what is not sharded and this are enough, where it has this.

    Raises:
        CheckpointError: It is damaged.
    """
    tops = {place[0] for place in verify(folder).planner_data.values()}
    return _read(folder, lambda top, *_: only not in tops or top in (only, PLAIN_ENTRY), lambda *_: None, alone=True)


def load_parts(folder: Path, module: torch.nn.Module) -> dict[str, Any]:
    """A sharded checkpoint, of whose weights each rank has its own parts. Collective.

    Args:
        folder: Whole, as `verify` says.
        module: Its state dict says who holds which part.

    Returns:
        The checkpoint. Of an optimizer it holds a function that reads its state, each rank's own parts of it, from the
        folder once its parameters are there to say who holds which: collective too.
    """
    own = module.state_dict()
    checkpoint = _read(folder, lambda top, *_: top != "optimizer_states", lambda _, key="", *__: own.get(str(key)))
    places = read_metadata(folder).planner_data.values()
    if numbers := sorted({place[1] for place in places if place[0] == "optimizer_states"}):
        checkpoint["optimizer_states"] = [partial(_load_optimizer_parts, folder, number) for number in numbers]
    return checkpoint


def _load_optimizer_parts(folder: Path, number: int, parameters: list[torch.Tensor]) -> dict[str, Any]:
    def owner(_: str, __: int, kind: str, key: str | int = "", *___: str | int) -> torch.Tensor | None:
        return parameters[int(key)] if kind == "state" and str(key).isdigit() else None

    checkpoint = _read(folder, lambda *place: place[:2] == ("optimizer_states", number), owner)
    return checkpoint["optimizer_states"][number]


def _read(
    folder: Path, wanted: Callable[..., bool], owner: Callable[..., torch.Tensor | None], alone: bool = False
) -> dict[str, Any]:
    """The entries whose places are `wanted`, nested. Collective, but for one process `alone`.

    A tensor is sharded as its `owner` by its place is, where that is sharded and of its shape; else it is whole.
    """
    metadata, values = read_metadata(folder), dict[str, Any]()
    try:
        for name, entry in metadata.state_dict_metadata.items():
            place = metadata.planner_data[name]
            if wanted(*place):
                values[name] = None if isinstance(entry, BytesStorageMetadata) else _room_for(entry, owner(*place))
        reader = _VerifiedReader(folder)
        planner = _PlainValuesPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        # By its inner name, for `load` of torch 2.6 has no word for reading alone in one of several processes.
        state_dict_loader._load_state_dict(values, reader, planner=planner, no_dist=alone)
    # A missing or short file shows as any of a dozen errors; torch's own is a BaseException.
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{folder}: its shards cannot be read: {type(error).__name__}: {error}") from error
    return _nested(values, metadata.planner_data)


def _room_for(entry: TensorStorageMetadata, owner: torch.Tensor | None) -> torch.Tensor:
    dtype = entry.properties.dtype
    if isinstance(owner, DTensor) and owner.shape == entry.size:
        return torch.empty_like(owner, dtype=dtype, requires_grad=False)
    return torch.empty(entry.size, dtype=dtype)


def _nested(values: dict[str, Any], places: dict[str, Place]) -> dict[str, Any]:
    """Give values the nesting that they were saved with, and `PLAIN_ENTRY`'s content its place at the top.

    torch stores the path to each value: list positions as int, dict keys as text, and nothing for an empty
    dict. An optimizer's state, keyed by parameter number, is repaired here; what else has such keys belongs
    in `PLAIN_ENTRY`. Of a list that is read in part the rest is None.

    Raises:
        CheckpointError: The places contradict one another.
    """
    try:
        checkpoint = unflatten_state_dict(values, places)
        (rest,) = checkpoint.pop(PLAIN_ENTRY, ({},))
        for state in filter(None, checkpoint.get("optimizer_states", [])):
            numbered = state.setdefault("state", {})
            state["state"] = {int(key) if str(key).isdigit() else key: item for key, item in numbered.items()}
        return {**checkpoint, **rest}
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged metadata: its entries do not make a checkpoint: {error}") from error


def shardable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint as it should be given to `torch.distributed.checkpoint.save`.

    Model and optimizers stay, to be sharded, and what else is keyed by the model's names, such as a second set
    of weights; all other goes as one value under `PLAIN_ENTRY`, since torch would otherwise turn its integer
    keys into text and lose its empty dicts. Reading undoes it.
    """
    names = checkpoint.get("state_dict", {}).keys()
    weights = {key for key, value in checkpoint.items() if isinstance(value, dict) and value and value.keys() <= names}
    sharded: dict[str, Any] = {key: checkpoint[key] for key in checkpoint if key in weights | {"optimizer_states"}}
    plain = {key: value for key, value in checkpoint.items() if key not in sharded}
    return {**sharded, PLAIN_ENTRY: (plain,)}  # a tuple is the one container that torch does not take apart
