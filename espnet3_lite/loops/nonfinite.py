"""Batches and steps that are left out on all ranks, and how many in a row."""

from __future__ import annotations

from typing import Any

from espnet3_lite.distributed.rank import rank_zero_warn

#: The 101st skipped batch in a row ends the run.
MAX_CONSECUTIVE_SKIPS = 100


def skip_batch(loop: Any, batch_idx: int, reason: str) -> None:
    """Count and report a batch in which nothing is trained; what it logged is taken back.

    Raises:
        RuntimeError: at the 101st in a row.
    """
    loop.trainer.metrics.discard_batch()
    loop.consecutive_skips += 1
    rank_zero_warn(f"epoch {loop.epoch}, batch {batch_idx}: {reason}; skipped on all workers")
    if loop.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
        raise RuntimeError(
            f"Too many NaNs: {loop.consecutive_skips} batches in a row were skipped (epoch {loop.epoch}, batch "
            f"{batch_idx}). Lower the learning rate, clip gradients, or look at the data named in the warnings."
        )


def skip_steps(loop: Any, batch_idx: int, stepped: bool) -> None:
    """Report a batch's steps whose gradients were not finite; it counts as skipped where no other one `stepped`."""
    reason = " and ".join(f"the gradient norm{name} is {norm}" for name, norm in loop.failed_steps)
    loop.failed_steps.clear()
    if stepped:
        rank_zero_warn(f"epoch {loop.epoch}, batch {batch_idx}: {reason}; this step is skipped on all workers")
    else:
        loop.gradient_failed = True  # until a step succeeds
        skip_batch(loop, batch_idx, reason)
