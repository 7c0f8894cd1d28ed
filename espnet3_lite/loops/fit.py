"""WHEN things happen in a fit: epochs, batches, hooks, the vote, the step. Read it top to bottom; in short it is::

    for epoch in range(max_epochs):
        for batch_idx, batch in enumerate(train_dataloader):
            output = training_step(batch, batch_idx)              # forward
            steps = [(loss, optimizer), ...]                      # a plain loss is the list of one
            if vote(any loss is not finite, on any rank): continue
            for loss, optimizer in steps:                         # all backward passes, in the list's order
                if its window is new: optimizer.zero_grad()
                loss.backward()
            for loss, optimizer in steps:                         # then all steps
                if its window is full: clip; optimizer.step(); its scheduler.step()
            if due: validate
        epoch schedulers, checkpoints

Which optimizer is in `optim/slots.py`, which process in `distributed/`, evaluation in `evaluation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.distributed.rank import rank_zero_info
from espnet3_lite.distributed.vote import GO_ON, Verdict
from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.loops.closure_step import step_with_closure
from espnet3_lite.loops.nonfinite import skip_batch, skip_steps
from espnet3_lite.optim import lr_stepping
from espnet3_lite.optim.slots import OptimizerSlot, clip_slot, outputs_of, route

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class FitLoop:
    """The training loop of one trainer, and all that it counts.

    Args:
        trainer: Its settings are read here; nothing of it is changed but `should_stop`.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.epoch = 0
        #: Batches in which at least one optimizer stepped (with manual optimization: optimizer steps).
        self.global_step = 0
        #: Training batches seen in all, and within the epoch.
        self.batches_seen = self.batches_done = 0
        #: The loggers' axis: batches that stepped before the one in work.
        self.batches_stepped = 0
        self.uncounted = 0  # 1 from a step until its validation is over, when it is counted in there
        self.consecutive_skips, self.gradient_failed = 0, False
        self.failed_steps: list[tuple[str, float]] = []  # in the batch in work: whose, and its norm
        #: The batch in work is its epoch's last; that one is over.
        self.is_last_batch = self.last_is_done = False
        #: Where a checkpoint of this moment stands: its validation is over; its epoch is over; the order of the epoch's
        #: batches was drawn; its monitored schedulers have not stepped yet, though it is over.
        self.validated = self.epoch_ended = self.epoch_begun = self.schedulers_due = False
        #: Read from a checkpoint: what the next run begins with.
        self.resumed_within_epoch = False
        self.forward_only = False  # set by a callback, to recompute BatchNorm statistics

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All epochs, from wherever the counters stand."""
        trainer, call = self.trainer, self.trainer.call
        ends_here = self.resumed_within_epoch and self.global_step >= self.max_steps  # its validation and end are due
        if not ends_here and self.done():
            return
        try:
            call("on_train_start")
            while self.resumed_within_epoch or not self.done():
                self.train_epoch()
                if trainer.stops_now:
                    break
        except StopTrainingError as error:
            trainer.stop_by(error)
        if trainer.strategy.any(trainer.stop_error is not None):  # collective: all ranks end the run
            call("on_stop_training_error")
        call("on_train_end")

    def done(self) -> bool:
        """True when a limit is reached or somebody wanted to stop; says which."""
        trainer = self.trainer
        if trainer.num_training_batches == 0 or trainer.limit_train_batches == 0:
            rank_zero_info("`Trainer.fit` stopped: No training batches.")
        elif self.global_step >= self.max_steps:
            rank_zero_info("`Trainer.fit` stopped: `max_steps=%d` reached.", trainer.max_steps)
        elif trainer.max_epochs != -1 and self.epoch >= trainer.max_epochs:
            rank_zero_info("`Trainer.fit` stopped: `max_epochs=%d` reached.", trainer.max_epochs)
        elif not (trainer.stop_is_agreed and self.can_stop()):
            return False
        return True

    @property
    def max_steps(self) -> int | float:
        """The trainer's limit; a batch that steps several times by hand may jump over it."""
        return self.trainer.max_steps if self.trainer.max_steps != -1 else math.inf

    @property
    def max_epochs(self) -> int:
        """The trainer's limit; Lightning's users set it here to train on."""
        return self.trainer.max_epochs

    @max_epochs.setter
    def max_epochs(self, epochs: int) -> None:
        self.trainer.max_epochs = epochs

    def can_stop(self) -> bool:
        """False while `min_epochs` or `min_steps` is not reached."""
        trainer, epochs = self.trainer, self.epoch + (1 if self.epoch_ended else 0)
        return epochs >= (trainer.min_epochs or 0) and self.global_step >= (trainer.min_steps or 0)

    def train_epoch(self) -> None:
        """One epoch, or what is left of it after a resume: each batch from the loader to its validation.

        The body is one piece, and what an epoch does not change is looked up before it: so the trainer's own work in a
        step is a few microseconds (`benchmarks/step.py`).
        """
        trainer, call, module = self.trainer, self.trainer.call, self.trainer.lightning_module
        batches = self.begin_epoch()
        metrics, strategy, slots = trainer.metrics, trainer.strategy, trainer.slots
        several, plain = strategy.world_size > 1, trainer.precision_plugin.plain
        optimizes = trainer.automatic_optimization and not self.forward_only
        overridden, max_steps = trainer.overridden_methods, self.max_steps

        for batch, self.is_last_batch in batches:
            batch_idx, hooks, scaler = self.batches_done, trainer.hooks, trainer.precision_plugin.scaler
            if trainer.transfers_batches:
                batch = trainer.transfer_batch(batch, 0)
            metrics.start_batch(batch)
            if hooks["on_train_batch_start"] and trainer.ends_epoch(call("on_train_batch_start", batch, batch_idx)):
                self.is_last_batch = True  # the module's hook returned -1
                self.close_batch()
                break

            accumulate = trainer.accumulate_grad_batches
            closes = self.is_last_batch or (batch_idx + 1) % accumulate == 0  # the plain optimizer's window
            if several:
                strategy.before_forward(closes)
            metrics.hook = "training_step"
            if plain:
                output = trainer.training_step(batch, batch_idx)
            else:
                with trainer.precision_plugin.forward_context():
                    output = trainer.training_step(batch, batch_idx)
            losses = steps = route(output, slots, accumulate) if optimizes else ()

            # All that the ranks must agree on, before backward: one all-reduce, or none for one process.
            verdict = strategy.vote(trainer, steps, self.is_last_batch)
            closing: list[OptimizerSlot] = []
            if verdict is not GO_ON:
                self.heed(verdict, batch_idx)
                closes = closes or self.is_last_batch
                losses = () if verdict.skip else verdict.weigh(steps)
                if verdict.skip and closes:  # nothing is added to a window; what is pending in it is stepped now
                    closing = [slot for slot in slots.values() if slot.name is None and slot.pending]

            # All backward passes, in the list's order. With several optimizers each is restricted to its own
            # parameters: no other gradient is even computed. A graph that others may share is kept until the last one.
            for position, (loss, slot) in enumerate(losses, start=1):
                if not slot.open or (slot.name is None and batch_idx % accumulate == 0):
                    if hooks["on_before_zero_grad"]:
                        call("on_before_zero_grad", slot.optimizer)
                    if "optimizer_zero_grad" in overridden:
                        module.optimizer_zero_grad(self.epoch, batch_idx, slot.optimizer)
                    else:
                        slot.zero_grad()
                    slot.open, slot.pending = True, 0
                if loss is not None:
                    self.backward(loss, slot, retain_graph=position < len(losses))
                    slot.pending += 1
                    slot.synchronized = not several or strategy.synchronizes(slot)
                if closes if slot.name is None else slot.pending >= slot.window:
                    closing.append(slot)

            # Then all steps, in the list's order.
            if several:
                strategy.share_gradients(closing)
            if scaler is not None and not any(slot.pending for slot in closing):
                scaler = None  # no backward pass: nothing to unscale
            stepped: list[OptimizerSlot] = []
            for slot in closing:
                if trainer.closure_wanted:
                    loss = losses[0][0] if losses else None
                    finite = step_with_closure(self, slot, loss, verdict, batch, batch_idx)
                else:
                    finite = self.prepare_step(slot)
                    if scaler is not None and slot.pending:
                        scaler.step(slot.optimizer)  # does nothing where it met a non-finite gradient
                    elif finite:
                        slot.optimizer.step()
                slot.open, slot.pending = False, 0
                if finite:
                    slot.update_step += 1
                    stepped.append(slot)
            if scaler is not None:
                trainer.precision_plugin.update_scaler(slots.values())
            if stepped:
                self.global_step += 1
                self.gradient_failed = False
                if trainer.lr_scheduler_configs:
                    lr_stepping.step_after_update(trainer, stepped, batch_idx)
            if self.failed_steps:
                skip_steps(self, batch_idx, bool(stepped))
            if self.consecutive_skips and not verdict.skip and not self.gradient_failed:
                self.consecutive_skips = 0

            self.close_batch()
            self.uncounted = int(bool(stepped) or not trainer.automatic_optimization)
            saves = hooks["on_train_batch_end:monitoring"]
            outputs = outputs_of(output, steps) if (saves or hooks["on_train_batch_end"]) and not verdict.skip else None
            if hooks["on_train_batch_end"]:
                call("on_train_batch_end", outputs, batch, batch_idx)
            if several and trainer.train_data.replaying:
                metrics.discard_batch()  # what was logged for another rank's data, or a second time
            if stepped and trainer.lr_scheduler_configs:
                lr_stepping.step_waiting(trainer)
            if self.uncounted and trainer.loggers and trainer.should_log_step:
                trainer.log_metrics(metrics.step_values())
            if saves:  # when nothing is left to do for this batch that a resumed run would not do
                call("on_train_batch_end:monitoring", outputs, batch, batch_idx)
            self.validated = not trainer.validates
            if trainer.validates:
                self.validate_if_due(batch_idx)
            if not trainer.stopped_by_signal:  # else the resumed run validates, before this batch is counted
                self.batches_stepped, self.uncounted = self.batches_stepped + self.uncounted, 0
            wanted = trainer.should_stop or trainer.stopped_by_signal or trainer.stop_error
            if self.is_last_batch or self.global_step >= max_steps or (wanted and self.stops_within_epoch()):
                break
        if not trainer.stops_now or (self.is_last_batch and self.validated and not trainer.stopped_by_signal):
            self.end_epoch()

    def begin_epoch(self) -> Iterable[tuple[Any, bool]]:
        """The epoch's batches, each with whether it is the last; none where a resumed run finds the epoch over."""
        trainer, data = self.trainer, self.trainer.train_data
        data.reload_if_due()
        resumed, self.resumed_within_epoch = self.resumed_within_epoch, False
        if not resumed:
            trainer.restore_random_state()  # of a run that resumes between two epochs
            self.batches_done, self.validated, self.epoch_ended, self.last_is_done = 0, False, False, False
            trainer.call("on_train_epoch_start")
        batches = data.start_epoch(self.epoch, self.batches_done, over=resumed and self.is_last_batch)
        self.epoch_begun = True
        self.batches_done = data.first_batch  # counted anew where a run resumes on another number of ranks
        trainer.restore_random_state()  # of a run that resumes here; the loader drew its own before, as it did then
        if resumed:
            lr_stepping.step_waiting(trainer)  # where the batch's hooks had not all logged
        if resumed and self.batches_done and not self.validated:
            self.validate_if_due(self.batches_done - 1)
        if not trainer.stopped_by_signal:
            self.batches_stepped, self.uncounted = self.batches_stepped + self.uncounted, 0
        over = (resumed and self.is_last_batch) or self.global_step >= self.max_steps or self.stops_within_epoch()
        return () if over else batches

    def stops_within_epoch(self) -> bool:
        """After a batch: no further one, since a signal came or somebody wanted to stop?"""
        trainer = self.trainer
        return trainer.stops_now or (trainer.stop_is_agreed and self.can_stop())

    def end_epoch(self) -> None:
        """Means of the epoch, monitored schedulers, hooks: callbacks, the module, then what decides by a metric."""
        trainer, call, metrics, strategy = self.trainer, self.trainer.call, self.trainer.metrics, self.trainer.strategy
        self.epoch_ended = True
        self.schedulers_due = trainer.automatic_optimization and self.is_last_batch
        logged = metrics.end_epoch(metrics.training)
        call("on_train_epoch_end")
        logged.update(metrics.end_epoch(metrics.training))  # what these hooks logged
        if self.schedulers_due:
            self.schedulers_due = False
            lr_stepping.step_epoch_monitored(trainer)  # by a training metric; the others stepped after validation
            if trainer.validation_ran:
                lr_stepping.require_monitored(trainer)
        trainer.log_metrics(logged, ago=1)  # before a checkpoint is saved: who resumes there does not do it again
        call("on_train_epoch_end:monitoring")
        trainer.log_metrics(metrics.end_epoch(metrics.training), ago=1)
        metrics.forget_steps()
        trainer.agree_to_stop(strategy.any(trainer.should_stop))  # collective: all ranks end the epoch
        self.epoch += 1
        self.batches_done, self.epoch_ended, self.epoch_begun = 0, False, False

    # ---- parts of a batch ------------------------------------------------------------------------------------------

    def heed(self, verdict: Verdict, batch_idx: int) -> None:
        """Follow a vote that says more than "go on"."""
        trainer = self.trainer
        trainer.stopped_by_signal = trainer.stopped_by_signal or verdict.signal
        trainer.agree_to_stop(trainer.stop_is_agreed or verdict.stop)
        self.is_last_batch = self.is_last_batch or bool(verdict.last)
        if verdict.skip:
            skip_batch(self, batch_idx, verdict.reason)

    def backward(self, loss: torch.Tensor, slot: OptimizerSlot, retain_graph: bool) -> None:
        """One backward pass with its hooks, for one optimizer."""
        trainer, call = self.trainer, self.trainer.call
        if trainer.precision_plugin.scaler is not None:
            loss = trainer.precision_plugin.scaler.scale(loss)
        if trainer.hooks["on_before_backward"]:
            call("on_before_backward", loss)
        if slot.name is None and "backward" in trainer.overridden_methods:
            trainer.metrics.hook = "backward"
            trainer.lightning_module.backward(loss)
        elif slot.name is None:
            loss.backward()
        else:
            slot.backward(loss, retain_graph, stands_in=trainer.train_data.replaying)
        if trainer.hooks["on_after_backward"]:
            call("on_after_backward")

    def prepare_step(self, slot: OptimizerSlot) -> bool:
        """Make a full window ready to step: ranks, scaler, hook, clipping. False when its gradient is not finite."""
        trainer, logged = self.trainer, self.trainer.metrics.mark()
        if trainer.precision_plugin.scaler is not None and slot.pending:
            trainer.precision_plugin.scaler.unscale_(slot.optimizer)
        if trainer.hooks["on_before_optimizer_step"]:
            trainer.call("on_before_optimizer_step", slot.optimizer)
        if not trainer.checks_gradients:
            return True
        norm = clip_slot(trainer, slot)
        if math.isfinite(norm):
            return True
        trainer.metrics.discard_since(logged)  # of this step alone; other optimizers may step
        if trainer.precision_plugin.scaler is None:  # with a scaler this is how it finds its scale
            slot.zero_grad()
            self.failed_steps.append(("" if slot.name is None else f" of {slot.name!r}", norm))
        return False

    def close_batch(self) -> None:
        """Count the batch; epoch schedulers without a metric step with the epoch's last one."""
        self.batches_seen += 1
        self.batches_done += 1
        self.validated, self.last_is_done = False, self.is_last_batch
        if self.is_last_batch and self.trainer.automatic_optimization:
            lr_stepping.step_with_epoch(self.trainer)

    # ---- validation ------------------------------------------------------------------------------------------------

    def validate_if_due(self, batch_idx: int) -> None:
        """Validate after this batch, if the settings say so."""
        trainer = self.trainer
        if trainer.stops_now:
            return  # what is due is the resumed run's
        if trainer.validation_is_due(batch_idx, self.is_last_batch):
            if not any(slot.pending for slot in trainer.slots.values()):  # never what is pending
                trainer.lightning_module.on_validation_model_zero_grad()
            trainer.validate_within_fit()
            trainer.agree_to_stop(trainer.strategy.any(trainer.should_stop))  # collective: all ranks have validated
        self.validated = not trainer.stopped_by_signal  # which broke this validation off
