"""Who am I: rank, world size, and what only rank zero does. No collectives here."""

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch.distributed as dist

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_distributed() -> bool:
    """True once this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def global_rank() -> int:
    """This process's number over all machines. Before the group is joined, torchrun's ``RANK`` tells."""
    return dist.get_rank() if is_distributed() else int(os.environ.get("RANK") or "0")


def local_rank() -> int:
    """This process's number on its machine: torchrun's ``LOCAL_RANK``, else 0."""
    return int(os.environ.get("LOCAL_RANK") or "0")


def node_rank() -> int:
    """This process's machine: torchrun's ``GROUP_RANK``, else 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def is_global_zero() -> bool:
    """True on the one process that writes, prints and logs."""
    return global_rank() == 0


def times_restarted() -> int:
    """Above 0 where torchrun has started this run anew (``--max-restarts``), after a failure on any machine.

    Until the ranks have met (`group.find_ranks`) it is what this machine's torchrun has counted.
    """
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def rank_zero_only(function: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """Decorate a function to do nothing, and return None, on all ranks but zero."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        return function(*args, **kwargs) if is_global_zero() else None

    return wrapped


#: Whose lines no warning points to: this package's, torch's, and decorators.
_NOT_THE_USERS = (
    f"{Path(__file__).parents[1]}{os.sep}", f"{Path(dist.__file__).parents[1]}{os.sep}",
    functools.__file__, contextlib.__file__,
)  # fmt: skip


@rank_zero_only
def rank_zero_warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` on rank zero, pointing to the user's line: the innermost that is neither ours nor torch's."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@rank_zero_only
def rank_zero_info(message: str, *args: object) -> None:
    """`logging` at INFO on rank zero; handlers are set up by the command line only."""
    logger.info(message, *args)
