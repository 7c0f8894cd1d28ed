"""Which processes train together: read from torchrun's environment, and from nothing else."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from espnet3_lite.distributed.rank import is_distributed, local_rank
from espnet3_lite.distributed.single import Strategy
from espnet3_lite.exceptions import MisconfigurationException, refuse


def under_torchrun() -> bool:
    """True where torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def choose_device(accelerator: str) -> torch.device:
    """``cuda:<local rank>`` where there are GPUs and they are wanted, ``mps`` where that is, else the CPU.

    Raises:
        MisconfigurationException: a GPU is wanted and there is none, or one that several processes cannot share.
    """
    on_mps, on_cuda = accelerator == "mps", accelerator in ("gpu", "cuda")
    missing = on_mps and not torch.backends.mps.is_available() or on_cuda and not torch.cuda.is_available()
    refuse(
        f"Trainer(accelerator={accelerator!r}): ",
        (missing, f"torch finds no {'Apple ' * on_mps}GPU here; use accelerator='auto' or 'cpu'"),
        (on_mps and _world_size() > 1, "torch has no collectives between processes there; start one process, or use "
         "accelerator='cpu'"),
    )  # fmt: skip
    if on_mps:
        return torch.device("mps")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or "1")


def _check_environment() -> None:
    """Refuse what torchrun cannot have set: ranks would wait for others that never come, or nobody would log.

    A machine with one process may leave out its ``LOCAL_RANK``; a group that is there already needs no address.
    """
    given = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")}
    size, rank, local = given["WORLD_SIZE"] or "1", given["RANK"] or "0", given["LOCAL_RANK"] or "0"
    bad = not (size + rank + local).isdecimal() or int(rank) >= int(size)
    lacking = not bad and int(size) > 1 and not is_distributed() and None in [*given.values()][:-1]
    told = "torchrun sets all of these or none; start the processes with it, or unset them"
    refuse(f"the environment has {given}: ", (bad or lacking, told))


def make_strategy(given: str | Strategy, accelerator: str, timeout: timedelta | None = None) -> Strategy:
    """One process, DDP or FSDP2. Joins the process group where there are several processes.

    Args:
        given: ``auto`` (DDP under torchrun), ``ddp``, ``ddp_find_unused_parameters_true``, ``fsdp``, or an object of
            `espnet3_lite.strategies`.
        accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.
        timeout: How long a collective waits for the other ranks, unless the object says otherwise.

    Raises:
        MisconfigurationException: the strategy, the device or torchrun's environment does not fit the others.
    """
    _check_environment()
    device = choose_device(accelerator)
    strategy = Strategy() if isinstance(given, str) else given
    if given == "fsdp":
        from espnet3_lite.distributed.fsdp import FSDPStrategy

        strategy = FSDPStrategy()
    elif isinstance(given, str) and _world_size() > 1:
        from espnet3_lite.distributed.ddp import DDPStrategy

        strategy = DDPStrategy(find_unused_parameters=given == "ddp_find_unused_parameters_true")
    elif strategy.name == "ddp" and _world_size() == 1:
        strategy = Strategy()  # nothing to exchange: the same training, without a process group
    elif strategy.name == "single" and _world_size() > 1:
        raise MisconfigurationException(
            f"Trainer(strategy={given!r}): torchrun started {_world_size()} processes; use 'auto', or DDPStrategy() or "
            f"FSDPStrategy() of espnet3_lite.strategies"
        )
    if strategy.name == "single" and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        from espnet3_lite.distributed.group import find_ranks

        find_ranks()  # it may be what other machines have left of a run
    strategy.connect(device, timeout)
    return strategy
