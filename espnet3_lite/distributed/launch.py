"""Which processes train together: read from torchrun's environment, and from nothing else."""

from __future__ import annotations

import os

import torch

from espnet3_lite.distributed.rank import local_rank
from espnet3_lite.distributed.single import Strategy
from espnet3_lite.exceptions import MisconfigurationException


def under_torchrun() -> bool:
    """True where torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def choose_device(accelerator: str) -> torch.device:
    """``cuda:<local rank>`` where there are GPUs and they are wanted, else the CPU.

    Raises:
        MisconfigurationException: a GPU is wanted and there is none.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise MisconfigurationException(
            f"Trainer(accelerator={accelerator!r}): torch finds no GPU here; use accelerator='auto' or 'cpu'"
        )
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def make_strategy(name: str, accelerator: str) -> Strategy:
    """One process, DDP or FSDP2. Joins the process group where there are several processes.

    Args:
        name: ``auto`` (DDP under torchrun), ``ddp``, ``ddp_find_unused_parameters_true`` or ``fsdp``.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
    """
    device = choose_device(accelerator)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if name == "fsdp":
        from espnet3_lite.distributed.fsdp import FSDPStrategy

        return FSDPStrategy(device)
    if several:
        from espnet3_lite.distributed.ddp import DDPStrategy

        return DDPStrategy(device, find_unused_parameters=name == "ddp_find_unused_parameters_true")
    return Strategy(device)
