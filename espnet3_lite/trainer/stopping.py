"""Who wants to stop a run and who has agreed: signals, ``should_stop``, `StopTrainingError`.

In a fit a signal's handler only sets a flag. The loop looks at it once a batch, and ends the run in order.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.launch import under_torchrun
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.loggers.base import tell
from espnet3_lite.trainer.states import RunningStage, TrainerFn, TrainerStatus

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class SignalFlag:
    """Notes SIGTERM and SIGUSR1 (preemption) and SIGINT (Ctrl-C) while a run is on.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Outside a fit there is nothing to save, and the first signal of
    any kind does. Handlers that were there before are put back by `uninstall`.
    """

    _WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        #: The first signal that came, or None.
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}
        self._at_once = False

    def install(self, at_once: bool = False) -> None:
        """Watch, from now on. Only a main thread can; elsewhere signals stay as they are.

        Args:
            at_once: The first signal already raises `KeyboardInterrupt`.
        """
        self.received, self._at_once = None, at_once
        for number in self._WATCHED if threading.current_thread() is threading.main_thread() else ():
            self._previous[number] = signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def ending(self, in_order: bool = False) -> BaseException:
        """What is raised after a signal: it ends the process, but for a Python prompt or a notebook, which live on.

        Args:
            in_order: The run has ended as it should, and torchrun need not stop other processes.
        """
        if hasattr(sys, "ps1") and self.received in (None, signal.SIGINT):
            return KeyboardInterrupt("the run was cut; the trainer and the module are as its last batch left them")
        return SystemExit(0 if in_order and under_torchrun() else 128 + (self.received or signal.SIGINT))

    def _note(self, number: int, frame: FrameType | None) -> None:
        name, first = signal.Signals(number), self.received is None
        self.received = self.received or name
        if name is signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # a second Ctrl-C raises at once
        if first and self._at_once:
            raise KeyboardInterrupt(name.name)


class Stopping:
    """Who wants to stop a trainer's call, and on what all ranks have agreed.

    A signal or a `StopTrainingError` ends the run after the batch in work, with nothing in between. ``should_stop``
    ends it in order, once `min_epochs` and `min_steps` are reached. No rank stops alone: what one rank wants becomes
    everybody's wish by the next vote.

    Args:
        trainer: For the number of ranks, and for the evaluation that a `StopTrainingError` breaks off.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        #: What notes the signals.
        self.signals: SignalFlag = SignalFlag()
        self.begin()

    def begin(self) -> None:
        """Nobody wants to stop yet: a call begins."""
        #: ``trainer.should_stop``: somebody on this rank wants to stop, or all ranks have agreed.
        self.wanted = False
        #: The same, once all ranks know of it.
        self.agreed = False
        #: The run ends after this batch: a signal came, on any rank, or something was raised to end the run.
        self.now = False
        self.by_signal: bool = False
        self.error: StopTrainingError | None = None

    def want(self, stop: bool) -> None:
        """Somebody on this rank wants to stop, or wants to no longer."""
        self.wanted = stop
        if self.trainer.world_size == 1:
            self.agreed = stop

    def agree(self, stop: bool, signal: bool = False) -> None:
        """Take what a vote or an exchange came to, equal on all ranks: to stop in order; that a signal came."""
        self.agreed = stop
        self.wanted = self.wanted or stop
        self.by_signal = self.by_signal or signal
        self.now = self.now or signal

    @property
    def allowed(self) -> bool:
        """`min_epochs` and `min_steps` are reached."""
        trainer, loop = self.trainer, self.trainer.fit_loop
        epochs = loop.epoch + loop.epoch_ended
        return epochs >= (trainer.min_epochs or 0) and loop.global_step >= (trainer.min_steps or 0)

    @property
    def max_steps(self) -> int | float:
        """The trainer's limit; a batch that steps several times by hand may jump over it."""
        return self.trainer.max_steps if self.trainer.max_steps != -1 else math.inf

    def after_batch(self) -> bool:
        """No further batch of this epoch: a limit is reached, a signal came, or somebody wanted to stop."""
        limit = self.trainer.max_steps
        return (
            (limit != -1 and self.trainer.fit_loop.global_step >= limit) or self.now or (self.agreed and self.allowed)
        )

    def limit_is_reached(self) -> bool:
        """No further epoch: a limit is reached, which is said, or somebody wanted to stop."""
        trainer, loop = self.trainer, self.trainer.fit_loop
        if trainer.num_training_batches == 0 or trainer.limit_train_batches == 0:
            rank_zero_info("`Trainer.fit` stopped: No training batches.")
        elif loop.global_step >= self.max_steps:
            rank_zero_info("`Trainer.fit` stopped: `max_steps=%d` reached.", trainer.max_steps)
        elif trainer.max_epochs != -1 and loop.epoch >= trainer.max_epochs:
            rank_zero_info("`Trainer.fit` stopped: `max_epochs=%d` reached.", trainer.max_epochs)
        else:
            return self.agreed and self.allowed
        return True

    def note(self, error: StopTrainingError) -> None:
        """An error that ends the run was raised where all can still be told of it."""
        self.error = error
        if self.trainer.world_size == 1:
            self.now = True
        else:
            self.wanted = True  # the vote tells the other ranks
        rank_zero_info("`Trainer.%s` stopped: %s", self.trainer.state.fn, error)

    def leave(self, error: StopTrainingError) -> None:
        """An error that ends the run came out of a batch or an evaluation, which is left as it is.

        Raises:
            RuntimeError: there are several ranks, and no way out of the middle of a batch for one of them.
        """
        trainer = self.trainer
        if trainer.world_size > 1:
            raise RuntimeError(
                f"StopTrainingError on rank {trainer.global_rank} outside a hook, where the other ranks wait for it "
                f"({error}). With several processes raise it in a hook, such as `on_train_batch_end`, or set "
                f"`trainer.should_stop = True`: then all ranks stop together"
            ) from error
        self.note(error)
        if trainer.state.stage != RunningStage.TRAINING:
            trainer.evaluation_loop.abandon()
            if trainer.state.fn == TrainerFn.FITTING:
                trainer.state.stage = RunningStage.TRAINING

    def end_by(self, exception: BaseException) -> None:
        """Tell callbacks, loggers and everybody else that the call ends by an exception."""
        trainer = self.trainer
        trainer.state.status = TrainerStatus.INTERRUPTED
        if isinstance(exception, KeyboardInterrupt):
            rank_zero_info("Detected KeyboardInterrupt, attempting graceful shutdown ...")
        trainer.hook_calls.call_callbacks("on_exception", exception)
        if trainer.datamodule is not None:
            trainer.datamodule.on_exception(exception)
        for logger in trainer.loggers:
            try:
                tell(logger, "finalize", "failed")
            except Exception as error:  # what ended the run is what must be seen
                rank_zero_warn(f"{type(logger).__name__}.finalize failed too: {type(error).__name__}: {error}")
        if trainer.state.stage != RunningStage.TRAINING:
            trainer.evaluation_loop.abandon()
