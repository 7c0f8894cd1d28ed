"""How far a fit has come: its counters, where its epoch stands, and the batch in work.

A checkpoint stores the counters, and where the epoch stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.vote import GO_ON
from espnet3_lite.optim.slots import OptimizerSlot

if TYPE_CHECKING:
    from espnet3_lite.metrics.collector import Metrics


class EpochStage(str, Enum):
    """Where the epoch stands, in the order in which it passes through. A resumed run goes on from here."""

    #: Between two epochs: the order of the next one's batches has not been drawn.
    NOT_BEGUN = "not begun"
    #: All batches counted so far are over. One may be in work; a resumed run begins it anew.
    BATCHES = "batches"
    #: A batch is counted, and its hooks are running.
    BATCH_OPEN = "batch open"
    #: Its hooks are over. Its validation, if one is due, has not ended.
    VALIDATION_DUE = "validation due"
    #: The last batch and its validation are over.
    BATCHES_OVER = "batches over"
    #: The hooks of the epoch's end are running; the schedulers that follow a training metric have not stepped yet.
    SCHEDULERS_DUE = "schedulers due"
    #: The hooks of the epoch's end are running, and nothing else is due.
    END_HOOKS = "end hooks"


#: Looked up once: before Python 3.12 an enumeration takes as long for it as a call does.
BATCHES, BATCH_OPEN, BATCHES_OVER = EpochStage.BATCHES, EpochStage.BATCH_OPEN, EpochStage.BATCHES_OVER

_WITHIN = (EpochStage.BATCHES, EpochStage.BATCH_OPEN, EpochStage.VALIDATION_DUE, EpochStage.BATCHES_OVER)


@dataclass(eq=False, slots=True)
class Progress:
    """What a fit counts.

    Attributes:
        epoch: The epoch in work, from 0.
        global_step: Batches in which at least one optimizer stepped; with manual optimization, optimizer steps.
        batches_seen: Training batches in all.
        batches_done: Training batches of this epoch, which is also the index of the next one.
        batches_stepped: The loggers' axis: the batches that stepped, without the one in work.
        uncounted: 1 from a batch's step until its validation is over, when the axis moves on; else 0.
        consecutive_skips: Batches skipped in a row.
        gradient_failed: The last step was skipped for its gradient: the row ends with a step, not with a finite loss.
        validation_ran: There has been a validation.
        is_last_batch: The batch in work, or the one before, is its epoch's last.
        stage: Where the epoch stands.
    """

    epoch: int = 0
    global_step: int = 0
    batches_seen: int = 0
    batches_done: int = 0
    batches_stepped: int = 0
    uncounted: int = 0
    consecutive_skips: int = 0
    gradient_failed: bool = False
    validation_ran: bool = False
    is_last_batch: bool = False
    stage: EpochStage = EpochStage.NOT_BEGUN

    @property
    def within_epoch(self) -> bool:
        """An epoch has begun, and its end has not: what a resumed run goes on with."""
        return self.stage in _WITHIN

    @property
    def epoch_ended(self) -> bool:
        """The hooks of the epoch's end are running."""
        return self.stage in (EpochStage.SCHEDULERS_DUE, EpochStage.END_HOOKS)

    @property
    def batch_is_open(self) -> bool:
        """A batch is counted, and its hooks or its validation have not ended."""
        return self.stage in (EpochStage.BATCH_OPEN, EpochStage.VALIDATION_DUE)

    @property
    def data_is_over(self) -> bool:
        """The epoch's last batch is counted, and the next epoch has not begun."""
        return self.epoch_ended or (self.is_last_batch and self.within_epoch and self.stage is not EpochStage.BATCHES)

    def after_validation(self) -> None:
        """The last batch's hooks and validation are over."""
        self.stage = BATCHES_OVER if self.is_last_batch else BATCHES

    def count_on_axis(self) -> None:
        """Nothing more is logged for the last batch: the loggers' axis moves on, if it stepped."""
        self.batches_stepped, self.uncounted = self.batches_stepped + self.uncounted, 0

    def begin_next_epoch(self) -> None:
        """The epoch is over."""
        self.epoch, self.batches_done, self.stage = self.epoch + 1, 0, EpochStage.NOT_BEGUN

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(Progress)}
        begun_anew = self.stage is EpochStage.BATCHES  # a batch that is in work is begun anew, and says then what it is
        return {**state, "is_last_batch": self.is_last_batch and not begun_anew, "stage": self.stage.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for entry in fields(Progress):
            kind = type(getattr(self, entry.name))
            setattr(self, entry.name, kind(state[entry.name]))


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

    batch: Any
    output: Any
    turn, closes = "", False
    earlier: Sequence[tuple[Any, OptimizerSlot]]
    steps: Sequence[tuple[Any, OptimizerSlot]]
    losses: Sequence[tuple[Any, OptimizerSlot]]
    closing: list[OptimizerSlot]
    stepped: list[OptimizerSlot]
    failed: Sequence[tuple[str, float]]

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Let go of the batch, its graph and its losses."""
        self.batch, self.output, self.index, self.logged, self.stepped_by_hand = None, None, 0, 0, False
        self.steps, self.losses, self.earlier, self.failed = (), (), (), ()
        self.verdict, self.closing, self.stepped = GO_ON, [], []

    def begin_turn(self, metrics: Metrics) -> None:
        """A further forward pass of the same batch, for other optimizers."""
        self.logged = len(metrics.touched)
        self.earlier = [*self.earlier, *((loss.detach(), slot) for loss, slot in self.steps)]
        self.steps, self.losses, self.closing = [], [], []
