"""One small vector that all ranks add up: the form of the vote, and of what any other exchange begins with.

Since every exchange of ours begins with a vector of this one form, which says where each rank stands, ranks that have
parted (one saves a checkpoint while the others train) meet in it, learn so, and raise instead of waiting for ever.
Gradients alone travel without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
import torch.distributed as dist

from espnet3_lite.exceptions import MisconfigurationException


class Place(Enum):
    """Where a rank stands that begins a collective, in words for messages. Each rank puts its place into the ballot, so
    that ranks that stand at different places find out there, and do not wait for each other."""

    BATCH = "votes on a training batch"
    FLAG = "asks whether the epoch, the validation or the run ends"
    SAVE = "saves a checkpoint (trainer.save_checkpoint)"
    REDUCE = "reduces a value over the ranks (self.log(..., sync_dist=True), strategy.reduce)"
    GATHER = "gathers values from all ranks (metrics, loaders, self.all_gather)"
    BROADCAST = "takes over a value from one rank"
    BUFFERS = "takes over the buffers of rank 0, for a validation or a checkpoint"
    GRADIENTS = "gathers pending gradients for a checkpoint"
    BARRIER = "waits at a barrier, such as the call's end"


_PLACES = tuple(Place)
_FLAGS = 5


class Ballot:
    """The vector that the ranks add up: five flags, a count for each optimizer, each rank's weight and `Place`.

    It is written in main memory, pinned where the ranks are on GPUs, and copied to the device without a wait; its sum
    is read once. Both buffers are reused in every batch.

    Args:
        device: This rank's.
        rank: This process's number.
        world_size: How many there are.
        optimizers: How many have a count.
    """

    def __init__(self, device: torch.device, rank: int, world_size: int, optimizers: int):
        self.rank, self.world_size, self.optimizers = rank, world_size, optimizers
        size = _FLAGS + optimizers + 2 * world_size
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.float64, pin_memory=on_gpu)
        self._vector = torch.zeros_like(self._host, device=device) if on_gpu else self._host
        self._numbers = self._host.numpy()

    def cast(
        self,
        place: Place,
        flags: Sequence[float] = (),
        counts: Sequence[bool] = (),
        weight: float | torch.Tensor = 0.0,
        bad: torch.Tensor | None = None,
    ) -> list[float]:
        """Add up what the ranks say. Collective, and a CPU-GPU sync point.

        Args:
            place: Where this rank stands.
            flags: Up to five numbers.
            counts: One for each optimizer.
            weight: This rank's.
            bad: ``()``, on the device: taken for the first flag, without being read before.

        Returns:
            The sums, without the places.

        Raises:
            MisconfigurationException: on all ranks, where they stand at different places.
        """
        first, numbers = _FLAGS + self.optimizers, self._numbers
        numbers.fill(0.0)
        numbers[: len(flags)] = flags
        numbers[_FLAGS : _FLAGS + len(counts)] = counts
        on_device = isinstance(weight, torch.Tensor) and weight.device.type != "cpu"
        if not on_device:
            numbers[first + self.rank] = weight
        numbers[first + self.world_size + self.rank] = number = _PLACES.index(place)
        if self._vector is not self._host:
            self._vector.copy_(self._host, non_blocking=True)
        if on_device:
            self._vector[first + self.rank] = weight
        if bad is not None:
            self._vector[0] = bad
        dist.all_reduce(self._vector)  # collective: all ranks, wherever they stand
        found: list[float] = self._vector.tolist()
        places = found[-self.world_size :]
        if places.count(number) != self.world_size:
            raise MisconfigurationException(_different_places(places))
        return found[: -self.world_size]


def _different_places(places: Sequence[float]) -> str:
    each = "; ".join(f"rank {rank} {_PLACES[int(place)].value}" for rank, place in enumerate(places))
    return (
        f"the ranks have parted: {each}. All ranks must make the same calls in the same order; what only one of them "
        f"does, such as `if trainer.is_global_zero: trainer.save_checkpoint(...)`, the others would wait for in vain. "
        f"Call it on all ranks: rank 0 alone writes"
    )
