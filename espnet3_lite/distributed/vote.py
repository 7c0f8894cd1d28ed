"""What the ranks agree on once a batch, before backward. One process needs no collective: `vote_alone`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """The vote's outcome, equal on all ranks.

    Attributes:
        skip: Leave this batch out, and `reason` why.
        last: This is the epoch's last batch; None where each rank knows by itself.
        signal: A signal arrived somewhere.
        stop: Somebody wants to stop.
        scale: What this rank's losses are multiplied by; 1 for one process.
    """

    skip: bool = False
    reason: str = ""
    last: bool | None = None
    signal: bool = False
    stop: bool = False
    scale: float = 1.0

    def weigh(self, steps: list) -> list:
        """The losses with this rank's share in the mean over all ranks."""
        if self.scale == 1.0:
            return steps
        return [(loss if loss is None else loss * self.scale, slot) for loss, slot in steps]


#: The verdict of nearly every batch.
GO_ON = Verdict()


def vote_alone(trainer: Any, steps: Sequence) -> Verdict:
    """One process's verdict where there is something to say: a loss is not finite, or a signal arrived."""
    signal = trainer.signals.received is not None
    bad = not trainer.detect_anomaly and any(loss is not None and not math.isfinite(loss.item()) for loss, _ in steps)
    return Verdict(skip=bad, reason=describe_bad_losses(trainer, steps) if bad else "", signal=signal)


def describe_bad_losses(trainer: Any, steps: list) -> str:
    """Which losses are not finite, on which utterances, and which buffers the forward pass spoilt."""
    bad = [
        f"{'loss' if slot.name is None else f'loss of {slot.name!r}'} is {float(loss)}"
        for loss, slot in steps
        if loss is not None and not math.isfinite(loss.detach())
    ]
    batch = trainer.metrics.batch
    uids = f" (utterances {', '.join(map(str, batch[0]))})" if is_utterance_batch(batch) else ""
    spoilt = [
        name
        for name, buffer in trainer.lightning_module.named_buffers()
        if buffer.is_floating_point() and not bool(buffer.isfinite().all())
    ]
    note = f"; these buffers became non-finite: {', '.join(spoilt)}" if spoilt else ""
    return " and ".join(bad) + uids + note


def is_utterance_batch(batch: Any) -> bool:
    """True for ESPnet's ``(uids, {key: tensor})``."""
    return (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and isinstance(batch[1], dict)
        and isinstance(batch[0], (list, tuple))
    )
