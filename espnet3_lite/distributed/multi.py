"""What DDP and FSDP2 have in common: the process group, what the ranks exchange, and how they fail together.

Every method that talks to other ranks says so; all ranks must call it, in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from espnet3_lite.distributed.gradients import average_gradients, broadcast_tensors
from espnet3_lite.distributed.rank import times_restarted
from espnet3_lite.distributed.single import Strategy
from espnet3_lite.distributed.vote import Verdict, vote_together
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


_FAILURE = "failure"


class SeveralProcesses(Strategy):
    """Joins the process group that torchrun's environment describes, and leaves it when the process ends.

    Args:
        device: This process's own: the CPU, or the GPU of its local rank.
    """

    deals_out = True

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.store = join_process_group(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.trainer: Trainer = None
        #: An exception ended the call: this rank exchanges nothing any more.
        self.failed = False

    def setup(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """The module on this process's device, with rank zero's parameters and buffers. Collective."""
        super().setup(trainer, module)
        self.trainer, self.failed = trainer, False
        check_same_tensors(self, {**dict(module.named_parameters()), **dict(module.named_buffers())})
        broadcast_tensors([*module.parameters(), *module.buffers()])

    # ---- the step --------------------------------------------------------------------------------------------------

    def vote(self, trainer: Trainer, steps: Sequence, is_last: bool) -> Verdict:
        """The one exchange of each training batch, besides the gradients. Collective."""
        return vote_together(self, trainer, steps, is_last)

    def sum_in_place(self, vector: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in the same tensor. Collective."""
        dist.all_reduce(vector)
        return vector

    def empty_steps(self, trainer: Trainer, steps: Sequence, returned: list) -> list:
        """What a rank without data contributes to a step: a loss of zero for each optimizer that the others train."""
        raise NotImplementedError

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their means over the ranks. Collective."""
        average_gradients(parameters)

    def share_gradients(self, closing: Iterable) -> None:
        """Average what is about to be stepped and is still each rank's own. Collective.

        In the configuration's order: the models may have listed the optimizers differently.
        """
        closing = list(closing)
        for slot in self.trainer.slots.values():
            if slot in closing and not slot.synchronized:
                self.average_gradients(slot.parameters)
                slot.synchronized = True

    def gather_gradients(self, own: dict[str, torch.Tensor], shared: bool) -> list[dict[str, torch.Tensor]]:
        """Pending gradients for a checkpoint: each rank's, on rank zero; one where they are `shared`. Collective."""
        if shared or self.failed:
            return super().gather_gradients(own, shared)
        parts = [{}] * self.world_size if self.rank == 0 else None
        dist.gather_object({name: gradient.cpu() for name, gradient in own.items()}, parts)
        return parts or []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any) -> None:
        """Rank zero writes; the others go on, and meet it at the next vote."""
        if self.rank == 0:
            super().save_checkpoint(checkpoint, path)

    # ---- values ----------------------------------------------------------------------------------------------------

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        """``mean``, ``sum``, ``min`` or ``max`` over the ranks. Collective."""
        operation = {"min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}.get(how, dist.ReduceOp.SUM)
        value = value.detach().clone().to(self.device)
        dist.all_reduce(value, op=operation)
        return value / self.world_size if how == "mean" else value

    def gather_objects(self, value: Any) -> list[Any]:
        """Each rank's value, in the order of ranks. Plain values only: they are pickled. Collective."""
        if self.failed:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """One rank's value, rank zero's by default. Collective."""
        if self.failed:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=source)
        return holder[0]

    def any(self, flag: bool) -> bool:
        """True where it is true on any rank. Collective."""
        if self.failed:
            return flag
        return self.sum_in_place(torch.tensor(float(flag), device=self.device)).item() > 0

    def agreed_metric(self, name: str, value: Any) -> Any:
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

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if not self.failed:
            dist.barrier()

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """Give all ranks rank zero's buffers. Collective.

        Raises:
            MisconfigurationException: on all ranks, where a buffer has grown on one of them.
        """
        if not self.failed:
            check_same_tensors(self, dict(module.named_buffers()))
            broadcast_tensors(module.buffers())

    # ---- failures --------------------------------------------------------------------------------------------------

    def fail(self, exception: BaseException) -> BaseException:
        """An exception ends the call on this rank: tell the others why, and from now on exchange nothing.

        The others find out as soon as they wait for this rank: its process ends, and with it its connections. Where
        that is what happened here, the exception that is returned tells which rank failed first, with its traceback.
        """
        if self.failed:
            return exception
        self.failed = True
        own = "".join(traceback.format_exception(exception))
        first = self.store.compare_set(_FAILURE, "", f"rank {self.rank} ended by an exception:\n{own}").decode()
        if is_lost_connection(exception) and not first.startswith(f"rank {self.rank} "):
            exception = OtherRankError(f"{first}\nRank {self.rank} ends with it.").with_traceback(
                exception.__traceback__
            )
        if isinstance(exception, Exception):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(exception)  # for torchrun's own report
        return exception


@contextlib.contextmanager
def buffers_put_back(module: torch.nn.Module | None) -> Iterator[None]:
    """What a forward pass does to the buffers of `module` is undone; None: nothing is."""
    before = [buffer.clone() for buffer in module.buffers()] if module is not None else []
    yield
    with torch.no_grad():
        for buffer, value in zip(module.buffers() if before else (), before, strict=True):
            buffer.copy_(value)


class OtherRankError(RuntimeError):
    """Another rank failed, and this one cannot go on without it; the message holds that rank's traceback."""


def is_lost_connection(exception: BaseException) -> bool:
    """True for what a collective raises when another rank has gone."""
    known = (dist.DistBackendError, dist.DistNetworkError)
    return isinstance(exception, known) or isinstance(exception, RuntimeError) and "gloo" in str(exception)


def join_process_group(device: torch.device) -> dist.Store:
    """Join, and return the store through which the ranks found one another. Collective, once a process.

    Without torchrun it is a group of one process.
    """
    global _store
    if _store is not None:
        return _store
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" in os.environ:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    else:
        store = dist.HashStore()
    # torchrun keeps its store when it starts the ranks anew: what the dead ones left there must not be found.
    _store = dist.PrefixStore(f"espnet3_lite/{times_restarted()}-{world_size}", store)
    if not dist.is_initialized():
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            # Objects and checkpoints are exchanged from main memory; gradients and the vote from the device.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("group", _store),
            rank=rank,
            world_size=world_size,
            device_id=device if on_gpu else None,
        )
        atexit.register(_leave_process_group)
    return _store


_store: dist.Store | None = None
#: How long a thread of gloo is given at the end; it needs microseconds, on a busy machine milliseconds.
_LAST_WORK_SECONDS = 0.1


def _leave_process_group() -> None:
    """At the process's end.

    A thread of gloo that lets go of its last work takes Python's lock for it, and aborts the process ("terminate called
    without an active exception", seen with torch 2.13) where Python has begun to finish. So Python waits a moment,
    without its lock.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    time.sleep(_LAST_WORK_SECONDS)


def check_same_tensors(strategy: SeveralProcesses, named: dict[str, torch.Tensor]) -> None:
    """All ranks have built the same model. Collective.

    Args:
        strategy: For the other ranks.
        named: The module's parameters and buffers, or some of them.

    Raises:
        MisconfigurationException: on all ranks, naming the first parameter or buffer that differs.
    """
    mine = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in named.items()]
    first, *others = strategy.gather_objects(mine)
    for rank, theirs in enumerate(others, start=1):
        if theirs != first:
            pairs = itertools.zip_longest(first, theirs, fillvalue="nothing")
            here, there = next((a, b) for a, b in pairs if a != b)
            raise MisconfigurationException(
                f"the ranks' models differ: rank 0 has {here} where rank {rank} has {there}. Build the same model on "
                f"all ranks, from the configuration alone; a buffer must not grow with one rank's data"
            )
