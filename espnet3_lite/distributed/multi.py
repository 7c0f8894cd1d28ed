"""What DDP and FSDP2 have in common: what the ranks exchange, and how they fail together.

Every method that talks to other ranks says so; all ranks must call it, in the same order. Joining the process group,
and what the ranks share besides collectives, is in `group.py`.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor

from espnet3_lite.distributed.gradients import broadcast_tensors, gradient_buckets
from espnet3_lite.distributed.group import OtherRankError, RankStore, is_lost_connection, is_timeout, join_process_group
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.distributed.sigterm_watch import SigtermWatch
from espnet3_lite.distributed.single import Strategy
from espnet3_lite.distributed.vote import NOTHING, Ballot, Place, Says, Verdict, vote_together
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.slots import OptimizerSlot, Steps
    from espnet3_lite.trainer.trainer import Trainer

_MOST_DIFFERENCES = 5


class SeveralProcesses(Strategy):
    """Joins the process group that torchrun's environment describes, and leaves it when the process ends.

    Args:
        timeout: How long a collective waits for the other ranks; None: as ``Trainer(dist_timeout=...)`` says.
    """

    deals_out = True
    trainer: Trainer
    store: RankStore
    _ballot: Ballot

    def __init__(self, timeout: timedelta | None = None):
        super().__init__()
        self._timeout = timeout
        self._watch: SigtermWatch | None = None
        self._statistics: list[torch.Tensor] = []  # SyncBatchNorm's buffers
        #: Gives the buffers that the forward pass in work may change in vain; what they held before it.
        self._buffers: Callable[[], Iterable[torch.Tensor]] = tuple
        self._buffers_before: list[torch.Tensor] = []

    def connect(self, device: torch.device, timeout: timedelta | None = None) -> None:
        """Join the process group. Collective, once a process."""
        super().connect(device)
        self._timeout = self._timeout or timeout
        self.store = join_process_group(device, self._timeout)
        self.global_rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._ballot = Ballot(device, self.global_rank, self.world_size)

    @property
    def failed(self) -> bool:
        """An exception ended the call: this rank exchanges nothing any more."""
        return self.store.failed

    def begin_call(self, trainer: Trainer) -> None:
        """A call begins: from now on SIGTERM is heard in collectives too."""
        super().begin_call(trainer)
        self.trainer = trainer
        self.store.begin_call()
        self._watch = SigtermWatch(
            trainer.signal_grace,
            self.store.failure,
            lambda text: self.store.report_failure(f"rank {self.global_rank} was {text}"),
        )

    def setup(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """The module on this process's device, with rank zero's parameters and buffers. Collective."""
        self.convert_batchnorm(trainer, module)
        super().setup(trainer, module)
        self.take_over_from_rank_zero(module)

    def wrap(self, trainer: Trainer, module: LiteModule) -> Callable[[Any, int], Any]:
        """As ever. A rank without data runs the training step too, and puts the buffers back."""
        step = super().wrap(trainer, module)

        def training_step(batch: Any, batch_idx: int) -> Any:
            replaying = trainer.train_data.replaying
            self._buffers = module.buffers if replaying else lambda: self._statistics
            self._buffers_before = [buffer.clone() for buffer in self._buffers()]
            # Without a batch too this runs: in it the other ranks wait for this one.
            output = None if batch is None else step(batch, batch_idx)
            if replaying:
                self.put_back_buffers()
            return output

        return training_step

    def convert_batchnorm(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """``Trainer(sync_batchnorm=True)``: batch norm takes its statistics from all ranks' batches."""
        if trainer.sync_batchnorm and self.root_device.type == "cpu":
            rank_zero_warn("sync_batchnorm=True does nothing on CPUs, where torch has no SyncBatchNorm")
        elif trainer.sync_batchnorm:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # torch's
        synchronized = (part for part in module.modules() if isinstance(part, torch.nn.SyncBatchNorm))
        self._statistics = [buffer for part in synchronized for buffer in part.buffers()]

    def take_over_from_rank_zero(self, module: torch.nn.Module, parameters: bool = True) -> None:
        """Rank zero's `parameters` and buffers, or its buffers alone, on all ranks. Collective.

        Raises:
            MisconfigurationException: on all ranks, where they have built different models, or a buffer has grown on
                one of them.
        """
        named = {**dict(module.named_parameters() if parameters else ()), **dict(module.named_buffers())}
        named = {name: tensor for name, tensor in named.items() if not isinstance(tensor, DTensor)}
        facts = {
            f"the model's {name}": f"{tuple(tensor.shape)} {tensor.dtype}{' trained' if tensor.requires_grad else ''}"
            for name, tensor in named.items()
        }
        self.require_same(
            facts,
            "Build the same model on all ranks, from the configuration alone; a buffer must not grow with one rank's "
            "data",
            Place.BUFFERS,
        )
        broadcast_tensors(named.values())

    # ---- the step --------------------------------------------------------------------------------------------------

    def vote(self, trainer: Trainer, steps: Steps, is_last: bool) -> Verdict:
        """The one exchange of each training batch, besides the gradients. Collective."""
        self.saver.poll()
        verdict = vote_together(self, trainer, steps, is_last)
        if verdict.skip:
            self.free_gathered()  # no backward pass follows
        return verdict

    def cast(self, place: Place, says: Says = NOTHING, bad: torch.Tensor | None = None) -> list[list[float]]:
        """See `Ballot.cast`. Collective."""
        if self.failed:
            return [[*map(float, says)]]
        try:
            return self._ballot.cast(place, says, bad)
        except RuntimeError as error:
            if is_timeout(error):
                why = self._waited_too_long()
            elif is_lost_connection(error):
                why = "another rank has ended. All ranks must make the same calls, also where rank 0 alone writes"
            else:
                raise
            raise OtherRankError(f"rank {self.global_rank} {place.value}, and {why}") from error

    def _waited_too_long(self) -> str:
        given = self._timeout or "torch.distributed default"
        return f"has waited for the other ranks for longer than Trainer(dist_timeout=...) allows ({given})"

    def put_back_buffers(self) -> bool:
        """Undo what the forward pass did to SyncBatchNorm's statistics, on a rank without data to all buffers.

        Returns:
            False where the module has no SyncBatchNorm.
        """
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), self._buffers_before, strict=True):  # the step may make new ones
                buffer.copy_(before)
        return bool(self._statistics)

    def empty_steps(self, trainer: Trainer, steps: Steps, returned: list[OptimizerSlot]) -> Steps:
        """What a rank without data contributes to a step: losses of zero for the optimizers that the others train.

        Args:
            trainer: Whose loop asks.
            steps: The (loss, optimizer) pairs of the batch that this rank replays.
            returned: The optimizers that the other ranks train in this step.

        Returns:
            Here: the same backward pass as on the other ranks, of losses that weigh nothing.
        """
        return [(loss if loss is None else loss * 0.0, slot) for loss, slot in steps]

    def share_gradients(self, closing: Collection[OptimizerSlot]) -> None:
        """Average what is about to be stepped and is still each rank's own. Collective.

        In the configuration's order: the models may have listed the optimizers differently.
        """
        for slot in self.trainer.plan.slots.values():
            if slot in closing and not slot.synchronized:
                self.average_gradients(slot)
                slot.synchronized = True

    def average_gradients(self, slot: OptimizerSlot) -> None:
        """Replace the gradients of an optimizer's parameters by their mean over the ranks. Collective."""
        for receive in [bucket.send() for bucket in gradient_buckets(slot.parameters)]:
            receive()

    def gather_gradients(self, own: dict[str, torch.Tensor], shared: bool) -> list[dict[str, torch.Tensor]]:
        """Pending gradients for a checkpoint: each rank's, on rank zero; one where they are `shared`. Collective."""
        if shared or self.failed:
            return super().gather_gradients(own, shared)
        self.cast(Place.GRADIENTS)
        parts: list[Any] | None = [None] * self.world_size if self.global_rank == 0 else None
        dist.gather_object({name: gradient.cpu() for name, gradient in own.items()}, parts)
        return parts or []

    def begin_saving(self) -> None:
        """A checkpoint is to be saved. Collective.

        Raises:
            MisconfigurationException: on all ranks, where some of them do something else.
        """
        if not self.failed:
            self.store.begin_save()
            self.cast(Place.SAVE)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Rank zero writes, and the others wait for it, however long it takes. Collective."""
        if self.global_rank == 0:
            super().save_checkpoint(checkpoint, path)
        self.barrier("the writing of a checkpoint by rank 0")

    # ---- values ----------------------------------------------------------------------------------------------------

    def reduce(
        self, tensor: torch.Tensor, group: dist.ProcessGroup | None = None, reduce_op: str = "mean"
    ) -> torch.Tensor:
        """``mean`` (or ``avg``), ``sum``, ``min`` or ``max`` over the ranks. Collective."""
        if self.failed:
            return tensor
        operation = {"min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}.get(reduce_op, dist.ReduceOp.SUM)
        value = torch.as_tensor(tensor).detach().clone().to(self.root_device)
        self.cast(Place.REDUCE)
        dist.all_reduce(value, op=operation, group=group)
        return value / dist.get_world_size(group) if reduce_op in ("mean", "avg") else value

    def all_gather(
        self, tensor: torch.Tensor, group: dist.ProcessGroup | None = None, sync_grads: bool = False
    ) -> torch.Tensor:
        """Each rank's tensor, of one shape on all ranks, stacked: ``(ranks, ...)``. Collective."""
        if self.failed:
            return tensor
        self.cast(Place.GATHER)
        tensor = (tensor if sync_grads else tensor.detach()).to(self.root_device)
        # Collective, as its backward pass is.
        return torch.stack(all_gather(tensor, group))  # type: ignore[no-untyped-call]  # torch's

    def gather_objects(self, value: Any, place: Place = Place.GATHER) -> list[Any]:
        """Each rank's value, in the order of ranks. Plain values only: they are pickled. Collective."""
        if self.failed:
            return [value]
        self.cast(place)
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """One rank's value, rank zero's by default. Collective."""
        if self.failed:
            return obj
        self.cast(Place.BROADCAST)
        holder = [obj]
        dist.broadcast_object_list(holder, src=src)
        return holder[0]

    def any(self, flag: bool) -> bool:
        """True where it is true on any rank. Collective."""
        return any(Says(*row).stop for row in self.cast(Place.FLAG, Says(stop=flag)))

    def agreed_metric(self, value: Any) -> Any:
        """The mean over the ranks that have a value, on all ranks; None where no rank has one. Collective.

        A value that is the same on all ranks comes out as it is.
        """
        mine = None if value is None else (float(value), getattr(value, "dtype", None))
        found = [part for part in self.gather_objects(mine) if part is not None]
        numbers = [number for number, _ in found]
        if not numbers or (value is not None and len(set(numbers)) == 1):
            return value
        mean = numbers[0] if len(set(numbers)) == 1 else sum(numbers) / len(numbers)
        dtype = found[0][1]  # the same on all ranks, so that they compare the same bits
        return mean if dtype is None else torch.tensor(mean, dtype=dtype, device=getattr(value, "device", None))

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks, however long one of them works before. Collective.

        Args:
            name: Where, for the message of a rank that waits in vain.
        """
        if not self.failed:
            self.store.meet(name, parted=lambda: self.cast(Place.BARRIER))

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """Give all ranks rank zero's buffers. Collective."""
        if not self.failed:
            self.take_over_from_rank_zero(module, parameters=False)

    # ---- what must be the same on all ranks ------------------------------------------------------------------------

    def require_same(self, facts: Mapping[str, str], advice: str, place: Place = Place.GATHER) -> None:
        """Raise one message on all ranks where their facts differ. Collective.

        Args:
            facts: By name, as text.
            advice: What would do; the end of the message.
            place: What the ranks are about to do.

        Raises:
            MisconfigurationException: naming each difference.
        """
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        if len(set(self.gather_objects(digest, place))) == 1:
            return
        everyone = self.gather_objects(dict(facts))  # collective: all ranks have seen that they differ
        names = dict.fromkeys(name for found in everyone for name in found)
        differ = [name for name in names if len({found.get(name) for found in everyone}) > 1]
        told = [
            f"{name}: "
            + ", ".join(f"{found.get(name, 'nothing')} on rank {rank}" for rank, found in enumerate(everyone))
            for name in differ[:_MOST_DIFFERENCES]
        ]
        more = f"\n  and {len(differ) - len(told)} more" if len(differ) > len(told) else ""
        raise MisconfigurationException("the ranks differ:\n  " + "\n  ".join(told) + f"{more}\n{advice}")

    # ---- the end ---------------------------------------------------------------------------------------------------

    def fail(self, exception: BaseException) -> BaseException:
        """An exception ends the call on this rank: tell the others why, and from now on exchange nothing.

        The others find out as soon as they wait for this rank: its process ends, and with it its connections. Where
        that is what happened here, the exception that is returned tells which rank failed first, with its traceback.
        """
        if self.failed:
            return exception
        own = "".join(traceback.format_exception(exception))
        first = self.store.report_failure(f"rank {self.global_rank} ended by an exception:\n{own}")
        cause = exception.__cause__ if isinstance(exception, OtherRankError) else exception
        if cause is not None and is_timeout(cause):
            where = str(exception) if cause is not exception else f"rank {self.global_rank} {self._waited_too_long()}"
            others = self.store.waiting_elsewhere(where)
            exception = OtherRankError(f"{where}\n{others}").with_traceback(exception.__traceback__)
        elif cause is not None and is_lost_connection(cause) and not first.startswith(f"rank {self.global_rank} "):
            exception = OtherRankError(f"{first}\nRank {self.global_rank} ends with it.").with_traceback(
                exception.__traceback__
            )
        if isinstance(exception, Exception):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(exception)  # for torchrun's own report
        return exception

    def teardown(self) -> None:
        """The call is over, and with it the watch for SIGTERM."""
        if self._watch is not None:
            self._watch.stop()
        super().teardown()
