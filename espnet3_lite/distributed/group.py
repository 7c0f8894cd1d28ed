"""The process group that torchrun's environment describes: joining it, leaving it, and talking beside it.

Besides collectives the ranks share torchrun's key-value store. What goes through the store has no timeout, and Python
runs signal handlers meanwhile: so the ranks meet there when one of them may work for long (`RankStore.meet`), and
there a rank that fails says why (`RankStore.report_failure`).
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]  # not listed in its types
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from espnet3_lite.distributed.rank import times_restarted


class OtherRankError(RuntimeError):
    """Another rank failed, and this one cannot go on without it; the message holds that rank's traceback."""


class RankStore:
    """What the ranks tell one another outside of collectives, through the store that torchrun keeps.

    Args:
        store: Shared by all ranks.
        rank: This process's number.
        world_size: How many there are.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self._store, self.rank, self.world_size = store, rank, world_size
        self._call = -1
        self.begin_call()

    def begin_call(self) -> None:
        """A new call of the trainer: what an earlier one left in the store counts no more."""
        self._call += 1
        #: An exception ended the call on this rank, which exchanges nothing any more.
        self.failed = False
        self._meetings = self._saves = 0

    def _key(self, name: str) -> str:
        return f"call {self._call}/{name}"

    # ---- waiting without a timeout ---------------------------------------------------------------------------------

    def meet(self, name: str | None, parted: Callable[[], object]) -> None:
        """Wait until all ranks have come here, however long one of them works before. Collective.

        Args:
            name: Where, for messages.
            parted: Called where another rank begins a save instead, and waits for this one in a collective.

        Raises:
            OtherRankError: another rank has failed.
        """
        self._meetings += 1
        key, pause = self._key(f"meeting {self._meetings}"), 0.0005
        self._store.add(key, 1)
        while self._store.add(key, 0) < self.world_size:
            failure, saving = self.failure(), self._store.check([self._key(f"save {self._saves + 1}")])
            if self._store.add(key, 0) >= self.world_size:
                return  # who failed, or saves, has been here, and gone on
            if failure:
                where = f"all ranks at {name or 'a barrier'}"
                raise OtherRankError(f"{failure}\nRank {self.rank}, which waited for {where}, ends with it.")
            if saving:
                parted()
            time.sleep(pause)  # signal handlers run here, as they do not in a collective
            pause = min(2 * pause, 0.1)

    def begin_save(self) -> None:
        """This rank begins a save, by a collective: ranks that wait elsewhere without a collective must know."""
        self._saves += 1
        self._store.set(self._key(f"save {self._saves}"), "begun")

    # ---- failures --------------------------------------------------------------------------------------------------

    def failure(self) -> str:
        """What the first rank that failed in this call reported; empty where none has."""
        key = self._key("failure")
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def report_failure(self, report: str) -> str:
        """Tell the others why this rank ends, unless another rank has failed before; returns the first report."""
        self.failed = True
        return self._store.compare_set(self._key("failure"), "", report).decode()

    def waiting_elsewhere(self, where: str) -> str:
        """This rank has waited in vain, `where`: what the others say of themselves, who may have waited, too."""
        self._store.set(self._key(f"waited {self.rank}"), where)
        keys = {rank: self._key(f"waited {rank}") for rank in range(self.world_size) if rank != self.rank}
        until = time.monotonic() + _ANSWER_SECONDS
        while not self._store.check([*keys.values()]) and time.monotonic() < until:
            time.sleep(0.1)
        return "\n".join(
            self._store.get(key).decode() if self._store.check([key]) else f"rank {rank} has not come"
            for rank, key in keys.items()
        )


#: Ranks begin to wait at different times, and so their waits end.
_ANSWER_SECONDS = 5.0

_joined: RankStore | None = None


def _count_starts(store: Store, rank: int, world_size: int, timeout: timedelta) -> tuple[int, int]:
    """How often the ranks have started with this store, from 1, and been restarted: the same on all. Collective.

    ``TORCHELASTIC_RESTART_COUNT`` does not tell: each machine counts its own failures, and starts its ranks anew
    without counting where another machine's have failed. So rank zero counts. It answers the token that each rank
    leaves in the store; nobody reads the answer to a dead rank's token.

    Raises:
        TimeoutError: another rank has not come.
    """
    given_up = time.monotonic() + timeout.total_seconds()

    def wait_for(there: Callable[[], bool]) -> None:
        while not there():
            if time.monotonic() > given_up:
                raise TimeoutError(f"Rank {rank} of {world_size} has waited {timeout} for the other ranks to start")
            time.sleep(0.01)  # signal handlers run here

    def all_have_come() -> bool:
        for key in (f"rank {other}" for other in range(1, world_size)):
            if store.check([key]):
                store.set(store.get(key).decode(), str(starts))
        return store.add(f"{starts} come", 0) == world_size - 1

    if rank == 0:
        starts = store.add("starts", 1)
        wait_for(all_have_come)
        store.set(f"{starts} restarts", str(starts - 1 + times_restarted() + store.add(f"{starts} elsewhere", 0)))
    else:
        store.set(f"rank {rank}", token := uuid.uuid4().hex)
        wait_for(lambda: store.check([token]))
        starts = int(store.get(token))
        store.add(f"{starts} elsewhere", times_restarted())
        store.add(f"{starts} come", 1)
        wait_for(lambda: store.check([f"{starts} restarts"]))
    return starts, int(store.get(f"{starts} restarts"))


_found: tuple[Store, int, int] | None = None


def find_ranks(timeout: timedelta = default_pg_timeout) -> tuple[Store, int, int]:
    """What torchrun's environment describes: the ranks' store, this process's rank, and how many there are.

    Collective, once a process.

    torchrun keeps its store when it starts the ranks anew: each start has a part of it, where it finds nothing of the
    dead ones.

    Args:
        timeout: How long to wait for the other ranks; 30 minutes by default.
    """
    global _found
    if _found is None:
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        starts, restarts = _count_starts(PrefixStore("espnet3_lite", store), rank, world_size, timeout)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)  # what `times_restarted` tells, on all ranks alike
        _found = PrefixStore(f"espnet3_lite/{starts}", store), rank, world_size
    return _found


def join_process_group(device: torch.device, timeout: timedelta | None = None) -> RankStore:
    """Join, and return what the ranks share besides. Collective, once a process; later only the timeout is set anew.

    Without torchrun it is a group of one process.

    Args:
        device: This process's own.
        timeout: How long a collective waits for the other ranks; torch's default (30 minutes, with NCCL 10) for None.
    """
    global _joined
    if _joined is None:
        alone = "WORLD_SIZE" not in os.environ
        store, rank, world_size = (HashStore(), 0, 1) if alone else find_ranks(timeout or default_pg_timeout)
        _joined = RankStore(store, rank, world_size)
        if not dist.is_initialized():
            on_gpu = device.type == "cuda"
            if on_gpu:
                torch.cuda.set_device(device)
            dist.init_process_group(
                # Objects and checkpoints are exchanged from main memory; gradients and the vote from the device.
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=PrefixStore("group", store),
                rank=rank,
                world_size=world_size,
                timeout=timeout,
                device_id=device if on_gpu else None,
            )
            atexit.register(leave_process_group)
    elif timeout is not None:
        # Public from torch 2.14 on, where the name before is about to go.
        (getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout)(timeout)
    return _joined


#: How long a thread of gloo is given at the end; it needs microseconds, on a busy machine milliseconds.
_LAST_WORK_SECONDS = 0.1


def leave_process_group() -> None:
    """At the process's end.

    `destroy_process_group` waits for outstanding work, which on NCCL would be for ever where another rank has left a
    collective: after a failure the work is aborted instead. A thread of gloo that lets go of its last work takes
    Python's lock for it, and aborts the process ("terminate called without an active exception", seen with torch 2.13)
    where Python has begun to finish. So Python waits a moment, without its lock.
    """
    if dist.is_initialized():
        if _joined is not None and _joined.failed and "nccl" in dist.get_backend_config():
            dist.distributed_c10d._abort_process_group()  # which has no public name
        else:
            dist.destroy_process_group()
    time.sleep(_LAST_WORK_SECONDS)


def is_lost_connection(exception: BaseException) -> bool:
    """True for what a collective raises when another rank has gone."""
    known = (dist.DistBackendError, dist.DistNetworkError)
    return isinstance(exception, known) or isinstance(exception, RuntimeError) and "gloo" in str(exception)


def is_timeout(exception: BaseException) -> bool:
    """True for what a collective raises when the other ranks have not come in time."""
    return isinstance(exception, RuntimeError) and "Timed out waiting" in str(exception)
