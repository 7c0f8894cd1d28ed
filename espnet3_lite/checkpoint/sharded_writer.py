"""Sharded checkpoints: written by all ranks together, in the background on request, and read back shard by shard.

A folder is whole once its `.metadata` is there, which is written last. Reading such a folder in one process, and
checking it, is `sharded_reader.py`'s.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from espnet3_lite.checkpoint import sharded_reader
from espnet3_lite.checkpoint.allowed_types import plain
from espnet3_lite.checkpoint.atomic_files import remove_checkpoint
from espnet3_lite.checkpoint.savers import Saver
from espnet3_lite.loaders.transfer import map_tensors


class ShardedSaver(Saver):
    """Writes sharded checkpoints, one at a time. Making one is a collective."""

    def __init__(self) -> None:
        super().__init__()
        # Of its own, and in main memory: what a background thread exchanges must not mix with the training's.
        self.group = dist.new_group(backend="gloo")  # collective: all ranks begin the call together

    def save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write, or begin to. Collective.

        Args:
            checkpoint: Sharded tensors in ``state_dict``, ``optimizer_states``, and what else is keyed by the model's
                names; of all other rank zero's is written, with whole tensors.
            path: The folder; one that is there is replaced.
        """
        self.finish()
        state = sharded_reader.shardable(checkpoint)
        (rest,) = state[sharded_reader.PLAIN_ENTRY]
        rest = {key: map_tensors(plain(value, f"checkpoint[{key!r}]"), _whole) for key, value in rest.items()}
        state[sharded_reader.PLAIN_ENTRY] = (rest,)
        if dist.get_rank() == 0:
            remove_checkpoint(path)
        else:
            del state[sharded_reader.PLAIN_ENTRY]
        dist.barrier(group=self.group)  # collective: nobody writes into what is being removed
        writer = FileSystemWriter(path)
        if not self.in_background:
            state_dict_saver.save(state, storage_writer=writer, process_group=self.group)
            return
        state = map_tensors(state, lambda tensor: tensor.detach().clone())  # training goes on meanwhile
        under_way = state_dict_saver.async_save(state, storage_writer=writer, process_group=self.group)
        assert isinstance(under_way, Future)  # two futures come back only where a stager of its own is given
        self._under_way = under_way


class ShardedOptimizerState:
    """One optimizer's state in a folder: read when the optimizer is there to say who holds which part of it.

    Args:
        folder: The sharded checkpoint.
        metadata: Its metadata.
        index: Which of its optimizers.
    """

    def __init__(self, folder: str | Path, metadata: Metadata, index: int):
        self.folder, self.metadata, self.index = folder, metadata, index

    def read(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict, each rank's own parts of it. Collective."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        template: dict[str, Any] = {}
        for name, entry in self.metadata.state_dict_metadata.items():
            place = sharded_reader.place_of(self.metadata, name)
            if place[:2] != ("optimizer_states", self.index):
                continue
            template[name] = None
            if isinstance(entry, TensorStorageMetadata):
                numbered = place[2] == "state" and str(place[3]).isdigit()
                like = parameters[int(place[3])] if numbered else None
                template[name] = _empty(entry, like)
        _read_into(template, self.folder)
        return sharded_reader.nested(template, self.metadata)["optimizer_states"][0]


def read_checkpoint(folder: str | Path, module: torch.nn.Module) -> dict[str, Any]:
    """A sharded checkpoint, of whose weights each rank has its own parts. Collective.

    Args:
        folder: Whole, as `sharded_reader.damage` says.
        module: Its state dict says who holds which part.
    """
    metadata = sharded_reader.read_metadata(folder)
    own = module.state_dict()
    template: dict[str, torch.Tensor | None] = {}
    optimizers: set[int] = set()
    for name, entry in metadata.state_dict_metadata.items():
        top, key, *_ = (*sharded_reader.place_of(metadata, name), None)
        if top == "optimizer_states":
            optimizers.add(int(key))
        elif top != sharded_reader.PLAIN_ENTRY:
            template[name] = _empty(entry, own.get(str(key))) if isinstance(entry, TensorStorageMetadata) else None
    _read_into(template, folder)
    checkpoint = {**sharded_reader.nested(template, metadata), **sharded_reader.read_plain(folder)}
    if optimizers:
        checkpoint["optimizer_states"] = [ShardedOptimizerState(folder, metadata, i) for i in sorted(optimizers)]
    return checkpoint


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Collective, for a tensor of which each rank has a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _empty(entry: TensorStorageMetadata, like: torch.Tensor | None) -> torch.Tensor:
    """Room for a stored tensor: sharded as `like` is, where that is sharded and of its shape."""
    if isinstance(like, DTensor) and like.shape == entry.size:
        return torch.empty_like(like, dtype=entry.properties.dtype, requires_grad=False)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _read_into(template: dict[str, Any], folder: str | Path) -> None:
    state_dict_loader.load(
        template,
        storage_reader=sharded_reader.VerifiedReader(folder),
        planner=sharded_reader.PlainValuesPlanner(),
    )
