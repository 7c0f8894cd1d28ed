"""Batches and steps that are left out on all ranks, and how many in a row. The vote finds them (`vote.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from espnet3_lite.distributed.rank import rank_zero_warn

if TYPE_CHECKING:
    from espnet3_lite.distributed.vote import Verdict
    from espnet3_lite.loops.fit import FitLoop
    from espnet3_lite.trainer.trainer import Trainer

#: The 101st skipped batch in a row ends the run.
MAX_CONSECUTIVE_SKIPS = 100
_COUNTED = "(both counted from 0)"


def leave_out(loop: FitLoop, verdict: Verdict) -> None:
    """Train nothing on a batch that the vote skips, or that is None, as where a `collate_fn` drops a bad sample."""
    work, plan = loop.work, loop.trainer.plan
    if verdict.skip:
        skip_batch(loop, verdict.reason, since=work.logged)
    else:
        rank_zero_warn("The training loader gave `None` as a batch: nothing is trained on it. If this was on purpose, "
                       "ignore this warning; else look at the data set and its `collate_fn`")  # fmt: skip
        for slot in plan.slots.values():
            slot.warned_of_none = True  # told once more at the end, where nothing was trained at all
    work.losses = ()
    if work.closes and plan.automatic_optimization:  # the window's earlier batches make its step
        work.closing = [slot for slot in plan.slots.values() if slot.name is None and slot.pending]


def skip_batch(loop: FitLoop, reason: str, since: int = 0) -> None:
    """Count and report a batch in which nothing is trained; what it logged, `since` a mark, is taken back.

    Raises:
        RuntimeError: at the 101st in a row.
    """
    loop.trainer.metrics.discard_since(since)
    rank_zero_warn(f"epoch {loop.epoch}, batch {loop.work.index}: {reason}; skipped on all workers {_COUNTED}")
    _count(loop)


def skip_steps(loop: FitLoop) -> None:
    """Report the steps whose gradients were not finite; the batch counts as skipped where no other one was made.

    With a gradient scaler no word is said, and what was logged stays: this is how it finds its scale.
    """
    work, stepped = loop.work, bool(loop.work.stepped or loop.work.stepped_by_hand)
    reason = " and ".join(f"the gradient norm{name} is {norm}" for name, norm in work.failed)
    loop.gradient_failed = not stepped  # until a step succeeds
    if loop.trainer.precision_plugin.scaler is not None:
        if not stepped:
            _count(loop)
    elif stepped:
        rank_zero_warn(
            f"epoch {loop.epoch}, batch {work.index}: {reason}; this step is skipped on all workers {_COUNTED}"
        )
    else:
        skip_batch(loop, reason)


def _count(loop: FitLoop) -> None:
    loop.consecutive_skips += 1
    if loop.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
        raise RuntimeError(
            f"Too many NaNs: {loop.consecutive_skips} batches in a row were skipped (epoch {loop.epoch}, batch "
            f"{loop.work.index}). Lower the learning rate, clip gradients, or look at the data named in the warnings."
        )


def require_training(loop: FitLoop) -> None:
    """At the end of a run, which must not end as if it had trained.

    A run whose steps all returned None is warned about: Lightning lets it pass.

    Raises:
        RuntimeError: all its batches were skipped. (But for a gradient scaler that was still looking for its scale.)
    """
    all_skipped = 0 < loop.batches_seen <= loop.consecutive_skips and loop.global_step == 0
    searching = loop.gradient_failed and loop.trainer.precision_plugin.scaler is not None
    if all_skipped and not searching and not loop.trainer.stopping.by_signal:
        raise RuntimeError(
            f"Nothing was trained: all {loop.batches_seen} batches were skipped. Look at the data, or at the losses "
            f"and gradients, that the warnings name."
        )
    if returned_nothing(loop.trainer):
        rank_zero_warn(
            "Nothing was trained: `training_step` always returned `None`, or was given no batch. End it with `return "
            "loss`, or step manually; a `collate_fn` ends with `return`, too"
        )


def returned_nothing(trainer: Trainer) -> bool:
    """Every training step of the fit returned None: nothing was trained."""
    return any(slot.warned_of_none and not slot.trained for slot in trainer.plan.slots.values())
