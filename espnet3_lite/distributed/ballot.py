"""One small table that all ranks add up: the form of the vote, and of what any other exchange begins with.

Since every exchange of ours begins with a table of this one form, which says where each rank stands, ranks that have
parted (one saves a checkpoint while the others train) meet in it, learn so, and raise instead of waiting for ever.
Gradients alone travel without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

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


class Says(NamedTuple):
    """What one rank says in an exchange: its row of the `Ballot`, whose numbers come back as floats.

    Attributes:
        bad: A loss is not finite.
        last: No batch follows.
        signal: A signal arrived.
        stop: Somebody wants to stop.
        active: There is data.
        optimizers: The bits of those that the model returned a loss for, the first one's lowest.
        place: The number of its `Place`, which `Ballot.cast` fills in.
        weight: In the mean over the ranks, a number or ``()``.
    """

    bad: float = False
    last: float = False
    signal: float = False
    stop: float = False
    active: float = False
    optimizers: float = 0
    place: float = 0
    weight: float | torch.Tensor = 0.0


NOTHING = Says()


class Ballot:
    """What the ranks add up: a table ``(ranks, numbers of Says)``, in which each rank fills in its own row.

    It is written in main memory, pinned where the ranks are on GPUs, and copied to the device without a wait; its sum
    is read once. Both buffers are reused in every batch.

    Args:
        device: This rank's.
        rank: This process's number.
        world_size: How many there are.
    """

    def __init__(self, device: torch.device, rank: int, world_size: int):
        self.rank, on_gpu = rank, device.type == "cuda"
        self._host = torch.zeros(world_size, len(NOTHING), dtype=torch.float64, pin_memory=on_gpu)
        self._table = torch.zeros_like(self._host, device=device) if on_gpu else self._host
        self._numbers = self._host.numpy()

    def cast(self, place: Place, says: Says = NOTHING, bad: torch.Tensor | None = None) -> list[Says]:
        """Exchange what the ranks say. Collective, and a CPU-GPU sync point.

        Args:
            place: Where this rank stands.
            says: What it says.
            bad: ``()``, on the device: taken for ``says.bad``, without being read before.

        Returns:
            What each rank says.

        Raises:
            MisconfigurationException: on all ranks, where they stand at different places.
        """
        weight, number = says.weight, float(_PLACES.index(place))
        on_device = isinstance(weight, torch.Tensor) and weight.device.type != "cpu"
        self._numbers.fill(0.0)
        self._numbers[self.rank] = (*says[:-2], number, 0.0 if on_device else float(weight))
        if self._table is not self._host:
            self._table.copy_(self._host, non_blocking=True)
        if on_device:
            self._table[self.rank, -1] = weight
        if bad is not None:
            self._table[self.rank, 0] = bad
        dist.all_reduce(self._table)  # collective: all ranks, wherever they stand
        everyone = [Says(*row) for row in self._table.tolist()]
        places = [said.place for said in everyone]
        if places.count(number) != len(places):
            raise MisconfigurationException(_different_places(places))
        return everyone


def _different_places(places: Sequence[float]) -> str:
    each = "; ".join(f"rank {rank} {_PLACES[int(place)].value}" for rank, place in enumerate(places))
    return (
        f"the ranks have parted: {each}. All ranks must make the same calls in the same order; what only one of them "
        f"does, such as `if trainer.is_global_zero: trainer.save_checkpoint(...)`, the others would wait for in vain. "
        f"Call it on all ranks: rank 0 alone writes"
    )
