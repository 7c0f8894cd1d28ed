"""What the ranks agree on once a batch, before backward, and the small table that all of them add up for it.

Since every exchange of ours begins with a table of this one form, which says where each rank stands, ranks that have
parted (one saves a checkpoint while the others train) meet in it, learn so, and raise instead of waiting for ever.
Gradients alone travel without it. One process needs no collective: `Strategy.vote`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.distributed.multi import SeveralProcesses
    from espnet3_lite.optim.slots import Steps
    from espnet3_lite.trainer.trainer import Trainer


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
    """What one rank says in an exchange: its row of the `Ballot`.

    Attributes:
        bad: A loss is not finite.
        last: No batch follows.
        signal: A signal arrived.
        stop: Somebody wants to stop.
        apart: A hook looks at gradients after each optimizer's backward pass (`on_after_backward`).
        active: There is data.
        optimizers: The bits of those that the model returned a loss for, the first one's lowest.
        place: The number of its `Place`, which `Ballot.cast` fills in.
        weight: In the mean over the ranks, a number or ``()``.
    """

    bad: float = False
    last: float = False
    signal: float = False
    stop: float = False
    apart: float = False
    active: float = False
    optimizers: float = 0
    place: float = 0
    weight: float | torch.Tensor = 0.0


NOTHING = Says()
#: What nearly every row of a vote begins with, up to `active`: nothing but that there is data.
_AS_EVER = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


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

    def cast(self, place: Place, says: Says = NOTHING, bad: torch.Tensor | None = None) -> list[list[float]]:
        """Exchange what the ranks say. Collective, and a CPU-GPU sync point.

        Args:
            place: Where this rank stands.
            says: What it says.
            bad: ``()``, on the device: taken for ``says.bad``, without being read before.

        Returns:
            What each rank says, the numbers of `Says`.

        Raises:
            MisconfigurationException: on all ranks, where they stand at different places.
        """
        weight, number = says.weight, float(_PLACES.index(place))
        on_device = isinstance(weight, torch.Tensor) and not weight.is_cpu
        self._numbers.fill(0.0)
        self._numbers[self.rank] = (*says[:-2], number, 0.0 if on_device else float(weight))
        if self._table is not self._host:
            self._table.copy_(self._host, non_blocking=True)
        if on_device:
            self._table[self.rank, -1] = weight
        if bad is not None:
            self._table[self.rank, 0] = bad
        dist.all_reduce(self._table)  # collective: all ranks, wherever they stand
        everyone: list[list[float]] = self._table.tolist()
        places = [row[-2] for row in everyone]
        if places.count(number) != len(places):
            raise MisconfigurationException(_different_places(places))
        return everyone


def _different_places(places: Sequence[float]) -> str:
    each = "; ".join(f"rank {rank} {_PLACES[int(place)].value}" for rank, place in enumerate(places))
    return (
        f"the ranks do different things: {each}. All ranks must make the same calls in the same order. A call that "
        f"only one of them makes, such as `if trainer.is_global_zero: trainer.save_checkpoint(...)`, would wait for "
        f"the others for ever. Call it on all ranks: rank 0 alone writes"
    )


class Verdict(NamedTuple):
    """The vote's outcome, equal on all ranks.

    Attributes:
        skip: Leave this batch out, and `reason` why.
        last: This is the epoch's last batch; None where each rank knows by itself.
        signal: A signal arrived somewhere.
        stop: Somebody wants to stop.
        apart: A hook on some rank looks at gradients after each optimizer's backward pass.
        scale: What this rank's losses are multiplied by; 1 for one process.
        instead: What a rank without data contributes; None on the others.
        total: The sum of the ranks' weights; None for one process.
    """

    skip: bool = False
    reason: str = ""
    last: bool | None = None
    signal: bool = False
    stop: bool = False
    apart: bool = False
    scale: float = 1.0
    instead: Steps | None = None
    total: float | None = None

    def weigh(self, steps: Steps) -> Steps:
        """The losses with this rank's share in the mean over all ranks."""
        if self.instead is not None:
            return self.instead
        if self.scale == 1.0:
            return steps
        return [(loss if loss is None else loss * self.scale, slot) for loss, slot in steps]


#: The verdict of nearly every batch.
GO_ON = Verdict()


def batch_weight(trainer: Trainer) -> Any:
    """What the module says that its batch weighs: a number or a tensor ``()``; None where it says nothing.

    Anything else of the name ``batch_weight`` is a plain module's own affair.
    """
    weight = trainer.lightning_module.__dict__.get("batch_weight")  # `getattr` takes long to find that there is none
    if weight is None or isinstance(weight, (int, float)) or (isinstance(weight, torch.Tensor) and weight.dim() == 0):
        return weight
    return None


def weight_of_step(trainer: Trainer) -> float:
    """What the batch in work weighs on all ranks together; 1 for each where the module says nothing."""
    total, weight = trainer.fit_loop.work.verdict.total, batch_weight(trainer)
    return total if total is not None else 1.0 if weight is None else float(weight)


#: Of the pairs of `Steps`.
LOSS = operator.itemgetter(0)


def all_sound(losses: Iterable[torch.Tensor | None], weight: Any = None, read: bool = True) -> bool | torch.Tensor:
    """Whether every loss is finite, and the batch's weight can stand in a mean: finite, and at least 0.

    Args:
        losses: Each ``()``, or ``(1,)`` as ESPnet2 gives it; all on one device. None is no loss.
        weight: A number or a tensor ``()``; None where the module gives none.
        read: Read the device once, which is the step's one CPU-GPU sync point.

    Returns:
        A bool. Without `read`, and where something is not on the CPU, a bool tensor ``()`` there, which is yet to be
        read.
    """
    elsewhere = []
    for loss in losses:
        if loss is not None and not loss.is_cpu:
            elsewhere.append(loss)
        elif loss is not None and not math.isfinite(loss.item()):
            return False
    known = len(elsewhere)
    if weight is not None:
        if isinstance(weight, torch.Tensor) and not weight.is_cpu:
            elsewhere.append(weight)
        elif not 0.0 <= float(weight) < math.inf:
            return False
    if not elsewhere:
        return True
    if read and known == len(elsewhere) == 1:
        return math.isfinite(elsewhere[0].item())
    # One read of several numbers costs less than to compare them there. MPS has no float64.
    dtype = torch.float64 if any(number.dtype == torch.float64 for number in elsewhere) else torch.float32
    stacked = torch.stack([n.detach().reshape(()).to(elsewhere[0].device, dtype) for n in elsewhere])
    if not read:
        return stacked.isfinite().all() & (stacked[known:] >= 0).all()
    found = stacked.tolist()
    return all(map(math.isfinite, found)) and all(given >= 0 for given in found[known:])


def vote_together(strategy: SeveralProcesses, trainer: Trainer, steps: Steps, is_last: bool) -> Verdict:
    """Several processes' verdict: one all-reduce of one small vector, which is read once.

    The flags count the ranks on which a loss is not finite, no batch follows, a signal arrived, a stop is wanted, and
    there is data; the counts, for each optimizer, the ranks with data whose model returned a loss for it. A rank's
    weight is the module's `batch_weight`, or 1 where it has none; 0 for a rank without data.

    Raises:
        MisconfigurationException: on all ranks, where models returned losses for different optimizers, or where a rank
            does something else than to train a batch.
    """
    data, slots, stopping = trainer.train_data.in_use, trainer.plan.slots, trainer.stopping
    active = not data.replaying
    losses = {slot.name: loss for loss, slot in steps if loss is not None and active}
    weight = batch_weight(trainer) if active else 0.0
    sound = trainer.detect_anomaly or all_sound(losses.values(), read=False)
    says = Says(
        bad=sound is False,
        last=is_last or data.ended,
        signal=stopping.signals.received is not None,
        stop=stopping.wanted,
        apart=trainer.callback_handler.gradients_wanted or "on_after_backward" in trainer.hook_calls.of_module,
        active=active,
        optimizers=sum(1 << index for index, name in enumerate(slots) if name in losses),
        weight=1.0 if weight is None else weight,
    )
    everyone = strategy.cast(Place.BATCH, says, None if isinstance(sound, bool) else ~sound)
    first = everyone[0]
    alike = first[:6] == _AS_EVER and 0.0 < first[-1] < math.inf and everyone.count(first) == len(everyone)
    if alike and not (stopping.agreed or trainer.plan.accumulates_by_weight):
        return GO_ON
    bad, last, signal, stop, apart, with_data, optimizers, _, weights = zip(*everyone, strict=True)
    trained = {int(bits) for bits, has_data in zip(optimizers, with_data, strict=True) if has_data} or {0}
    if len(trained) > 1:
        strategy.require_same(  # collective: all ranks have seen that they differ
            {"the model's losses in this batch": ", ".join(name or "the optimizer" for name in losses) or "none"},
            "All ranks must train the same optimizers in a batch: choose them by `global_step` or by a counter that "
            "does not depend on the data",
        )
    total, reason = sum(weights), ""
    if any(bad):
        # Collective: all ranks skip this batch, and tell one another why.
        reasons = strategy.gather_objects(describe_bad_losses(trainer, steps if active else ()))
        reason = "; ".join(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)
    elif not math.isfinite(total) or min(weights) < 0:
        reason = f"the ranks' weights are {list(weights)}"
    elif not all(with_data) and strategy.put_back_buffers():
        without = f"{with_data.count(0.0)} of {strategy.world_size} ranks"
        reason = f"{without} have no data left; SyncBatchNorm would count repetitions"
    returned = [slot for index, slot in enumerate(slots.values()) if max(trained) >> index & 1]
    return Verdict(
        skip=bool(reason),
        reason=reason,
        last=True if all(last) else None,
        signal=any(signal),
        stop=any(stop),
        apart=any(apart),
        scale=weights[strategy.global_rank] * strategy.world_size / total if total else 0.0,
        instead=None if active else strategy.empty_steps(trainer, steps, returned),
        total=total,
    )


def describe_bad_losses(trainer: Trainer, steps: Steps) -> str:
    """Which losses are not finite, on which utterances, and which buffers the forward pass spoilt; else nothing."""
    bad = [
        f"{'loss' if slot.name is None else f'loss of {slot.name!r}'} is {float(loss.detach())}"
        for loss, slot in steps
        if loss is not None and not all_sound([loss])
    ]
    if not bad:
        return ""
    utterances = ""
    match trainer.metrics.batch:
        case [[*uids], dict()]:  # ESPnet's (uids, {key: tensor})
            utterances = f" (utterances {', '.join(map(str, uids))})"
    buffers = trainer.lightning_module.named_buffers()
    spoilt = [name for name, buffer in buffers if buffer.is_floating_point() and not bool(buffer.isfinite().all())]
    note = f"; these buffers became non-finite: {', '.join(spoilt)}" if spoilt else ""
    return " and ".join(bad) + utterances + note
