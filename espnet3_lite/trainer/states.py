"""What a trainer is doing right now: the enums behind ``trainer.state`` and ``trainer.training``.

The names and values are Lightning's (`TrainerFn.FITTING == "fit"`), so that callbacks which look at them move over.
"""

from dataclasses import dataclass
from enum import Enum

from espnet3_lite.exceptions import MisconfigurationException


class _StringEnum(str, Enum):
    """Members compare equal to their strings: ``TrainerFn.FITTING == "fit"``."""

    def __str__(self) -> str:
        return self.value


class TrainerFn(_StringEnum):
    """The trainer's method that was called."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(_StringEnum):
    """What runs inside it: a `fit` is training, validating or in its sanity check."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """True where `validation_step` or `test_step` runs."""
        return self in (RunningStage.VALIDATING, RunningStage.TESTING, RunningStage.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str:
        """``train``, ``val``, ``test`` or ``predict``: how loaders and limits are named."""
        return "val" if self in (RunningStage.VALIDATING, RunningStage.SANITY_CHECKING) else self.value


class TrainerStatus(_StringEnum):
    """How the current or last call stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """True once the call is over, well or not."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)


@dataclass
class TrainerState:
    """``trainer.state``: the method (`fn`), what runs in it (`stage`) and how it stands (`status`)."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    def begin(self, fn: TrainerFn) -> "TrainerState":
        """The state in which a call begins.

        Raises:
            MisconfigurationException: another call runs, in one of whose hooks this one was made.
        """
        if self.stage is not None:
            raise MisconfigurationException(
                f"Trainer.{fn} was called in a hook of this trainer's {self.fn}: use another"
            )
        return TrainerState(TrainerStatus.RUNNING, fn, RunningStage("train" if fn == TrainerFn.FITTING else fn.value))

    @property
    def finished(self) -> bool:
        """True when the last call ended by itself."""
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """True when no call is running any more."""
        return self.status.stopped
