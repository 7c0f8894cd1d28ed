"""What makes a run repeatable: seeding all generators, reading and putting back their states, torch's switches."""

import contextlib
import ctypes
import os
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch

from espnet3_lite.distributed.rank import rank_zero_info


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, numpy and torch (all devices).

    Args:
        seed: 0 to 2**32 - 1. None takes ``PL_GLOBAL_SEED`` from the environment, else 0.
        workers: Also let data loader workers derive their seeds from it (``PL_SEED_WORKERS``); torch does this for
            its own and Python's generators by itself, numpy's is seeded by our loaders.
        verbose: Log the seed on rank zero.

    Returns:
        The seed.

    Raises:
        ValueError: the seed is not a whole number in range.

    Example:
        >>> seed_everything(3, verbose=False)
        3
        >>> first = torch.rand(2)
        >>> _ = seed_everything(3, verbose=False)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    try:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0) if seed is None else seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed_everything: seed must be a whole number, got {seed!r}") from error
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed_everything: seed must be between 0 and {2**32 - 1}, got {seed}")
    if verbose:
        rank_zero_info("Seed set to %d", seed)
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def set_backends(deterministic: bool | str | None, benchmark: bool | None) -> None:
    """Torch's global switches, as ``Trainer(deterministic=..., benchmark=...)`` says; None leaves them as they are."""
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition for it
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark


def collect_random_state() -> dict[str, Any]:
    """The state of every generator of this process, as tensors and plain values (loads with ``weights_only``)."""
    version, words, gauss = random.getstate()
    state = {
        "python": [version, list(words), gauss],
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


#: What `_numpy_state` found last: the generator's memory, and what numpy made of it.
_last_numpy_state: tuple[bytes, list[Any]] = (b"", [])


def _numpy_state() -> list[Any]:
    """The state of numpy's generator: the same object as last time, where no number was drawn since.

    A stream's state is taken with each batch, and numpy's `get_state` takes a hundred times as long as a look at the
    memory that it reads, which every number drawn changes. The one exception is the second of a pair of normal numbers,
    which waits outside of that memory: while one waits, numpy is asked.
    """
    global _last_numpy_state
    generator = np.random.mtrand.get_bit_generator()
    memory = ctypes.string_at(generator.ctypes.state_address, 2500)  # of the Mersenne twister: 624 words, a position
    if memory != _last_numpy_state[0]:
        name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
        found = [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)]
        _last_numpy_state = (b"" if has_gauss else memory, found)
    return _last_numpy_state[1]


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `collect_random_state` gave."""
    global _last_numpy_state
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    _last_numpy_state = (b"", [])  # a second normal number may wait now where none did
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def isolated_random_state() -> Iterator[None]:
    """Whatever draws random numbers in here, the outside does not notice."""
    state = collect_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
