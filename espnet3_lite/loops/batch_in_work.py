"""All that belongs to the training batch in work, in one object that the loop uses again for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.vote import GO_ON, Verdict
from espnet3_lite.optim.slots import OptimizerSlot

if TYPE_CHECKING:
    from espnet3_lite.metrics.collector import Metrics


class BatchInWork:
    """All that belongs to one batch. It is cleared when the batch is over: nothing outlives its use.

    Attributes:
        batch: What the training step gets.
        index: Within the epoch.
        turn: Which of the batch's turns is in work, by the name that `LiteModule.training_turns` gives it.
        logged: How much the turns before it have logged.
        earlier: What those have trained, without graphs: (loss, slot) pairs.
        output: What the training step returned.
        steps: (loss, slot) pairs: what the output trains. Empty with manual optimization.
        losses: The same with this rank's weight, as they are propagated; none in a skipped batch.
        verdict: What all ranks agreed on.
        closes: The plain optimizer's window is full with this batch.
        closing: The slots whose window is full.
        stepped: Those that have stepped.
        stepped_by_hand: With manual optimization, one has.
        failed: Those that have not: whose gradient it was, for a message, and its norm.
    """

    __slots__ = (
        "batch", "index", "turn", "logged", "output", "earlier", "steps", "losses", "verdict", "closes", "closing",
        "stepped", "stepped_by_hand", "failed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Let go of the batch, its graph and its losses."""
        self.batch: Any = None
        self.output: Any = None
        self.index, self.turn, self.logged, self.closes = 0, "", 0, False
        self.earlier: list[tuple[Any, OptimizerSlot]] = []
        self.verdict: Verdict = GO_ON
        self.steps: list[tuple[Any, OptimizerSlot]] = []
        self.losses: Sequence[tuple[Any, OptimizerSlot]] = ()
        self.closing: list[OptimizerSlot] = []
        self.stepped: list[OptimizerSlot] = []
        self.stepped_by_hand = False
        self.failed: list[tuple[str, float]] = []

    def begin_turn(self, metrics: Metrics) -> None:
        """A further forward pass of the same batch, for other optimizers; nothing to do for the first one."""
        if self.steps:
            self.logged = metrics.mark()
            self.earlier += [(loss.detach(), slot) for loss, slot in self.steps]
            self.steps, self.losses, self.closing = [], [], []
