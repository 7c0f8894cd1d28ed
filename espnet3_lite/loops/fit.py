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

Which optimizer is in `optim/slots.py`, which process in `distributed/`, evaluation in `evaluation.py`, and where an
epoch stands in `progress.py`. A few words are our own:

- A *vote* is the one exchange between the ranks in each batch: may it be used, is it the last, does somebody want to
  stop? Its outcome, the *verdict*, is the same on all ranks. One process votes alone.
- A *window* is the run of backward passes whose gradients make one step (`accumulate_grad_batches`).
- A *slot* is an optimizer with its window: what is pending in it, and how often it has stepped.
- A rank's *share* is the part of the data that it trains on.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.calling import lightning_names
from espnet3_lite.checks.optimizers import look_at_weights
from espnet3_lite.distributed.vote import GO_ON, Verdict, weight_of_step
from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.loops import resuming
from espnet3_lite.loops.closure_step import step_with_closure
from espnet3_lite.loops.evaluation import validate_within_fit
from espnet3_lite.loops.nonfinite import leave_out, require_training, skip_steps
from espnet3_lite.loops.progress import BATCH_OPEN, BatchInWork, EpochStage, Progress
from espnet3_lite.optim import lr_stepping
from espnet3_lite.optim.slots import OptimizerSlot, outputs_of, route

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def _limit(name: str) -> Any:
    """One of the trainer's limits, which Lightning's users set on the loop, to train on."""
    return property(lambda loop: getattr(loop.trainer, name), lambda loop, value: setattr(loop.trainer, name, value))


@lightning_names.tells_inner_parts("trainer.fit_loop")
class FitLoop(Progress):
    """The training loop of one trainer, and all that it counts.

    Args:
        trainer: Its settings and its plan are read here.
    """

    max_epochs, min_epochs, max_steps, min_steps = map(_limit, ("max_epochs", "min_epochs", "max_steps", "min_steps"))
    epoch_loop = property(lightning_names.epoch_loop_of, lightning_names.set_epoch_loop)

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.trainer = trainer
        self.work, self.hooks = BatchInWork(), trainer.hook_calls.listeners
        self.val_loop = trainer.evaluation_loops["val"]
        #: A callback sets it to recompute BatchNorm's statistics: batches run forward, and nothing is trained.
        self.forward_only = False
        #: The random state of each rank, from a checkpoint. It is put back at the batch where the run goes on.
        self.resumed_random_states: list[dict[str, Any]] | None = None
        #: A run that resumes from a state saved within a validation validates again, from this random state.
        self.random_before_validation: dict[str, Any] | None = None

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All epochs, from wherever the counters stand."""
        trainer, call, stopping = self.trainer, self.trainer.call, self.trainer.stopping
        ends_here = self.within_epoch and self.global_step >= stopping.max_steps  # a resumed run may lack its end alone
        if not ends_here and stopping.limit_is_reached():
            resuming.restore_random_state(self)
            return
        try:
            call("on_train_start")
            while self.within_epoch or not stopping.limit_is_reached():
                self.train_epoch()
                if stopping.now:
                    break
        except StopTrainingError as error:
            stopping.leave(error)
        if trainer.strategy.any(stopping.error is not None):  # collective: all ranks end the run
            call("on_stop_training_error")
        self.work.clear()
        require_training(self)
        trainer.strategy.sync_buffers(trainer.lightning_module)  # collective: the ranks end with one model
        call("on_train_end")

    # ---- an epoch --------------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """One epoch, or what is left of it after a resume: each batch from the loader to its validation."""
        trainer, plan, work, turns = self.trainer, self.trainer.plan, self.work, self.trainer.model.training_turns
        call, hooks, of_module = trainer.call, self.hooks, trainer.hook_calls.of_module
        metrics, strategy, stopping = trainer.metrics, trainer.strategy, trainer.stopping
        batches, precision, ranks = self.begin_epoch(), trainer.precision_plugin, strategy.deals_out
        optimizes = plan.automatic_optimization and not self.forward_only

        for work.batch, self.is_last_batch in batches:
            # ---- Next batch: to the device, and announced.
            work.index = batch_idx = self.batches_done
            if plan.transfer is not None:
                work.batch = plan.transfer(work.batch, 0)
            metrics.start_batch(work.batch)
            if hooks["on_train_batch_start"]:
                response = None if work.batch is None else call("on_train_batch_start", work.batch, batch_idx)
                # Collective, and all ranks reach it: they define the same hook. -1 on any of them ends the epoch.
                if "on_train_batch_start" in of_module and strategy.any(bool(response == -1)):
                    self.is_last_batch = True
                    self.count_batch()
                    self.stage = EpochStage.BATCHES_OVER
                    break

            accumulate = trainer.accumulate_grad_batches
            for work.turn in turns():  # mostly one; each has a forward pass and steps of its own
                # ---- Forward.
                if work.steps:
                    work.begin_turn(metrics)
                work.closes = self.is_last_batch or (batch_idx + 1) % accumulate == 0
                if ranks:
                    strategy.before_forward(work.closes)
                metrics.hook = "training_step"
                given = work.batch is not None
                work.output = plan.training_step(work.batch, batch_idx) if given or ranks else None
                work.losses = work.steps = route(work.output, plan.slots, accumulate) if optimizes and given else ()

                # ---- Agree: one all-reduce with all that the ranks must know of one another, or none for one process.
                work.verdict = strategy.vote(trainer, work.steps, self.is_last_batch)
                if work.verdict is not GO_ON or not given:
                    self.heed(work.verdict)

                # ---- Backward: all passes, in the list's order.
                for loss, slot in work.losses:
                    self.backward(loss, slot)
                    if ranks and loss is not None:
                        slot.synchronized = strategy.synchronizes(slot)
                    if work.closes if slot.name is None else slot.pending >= slot.window:
                        work.closing.append(slot)
                loss = None  # nor does its graph outlive the batch

                # ---- Update: then all steps, in the list's order.
                if ranks:
                    strategy.share_gradients(work.closing)
                for slot in work.closing:
                    if plan.closure_wanted:
                        finite = step_with_closure(self, slot)
                    else:
                        finite = self.prepare_step(slot)
                        if finite:
                            slot.optimizer.step()
                    slot.close_window(finite)
                    if finite:
                        work.stepped.append(slot)
                if precision.scaler is not None:
                    precision.update_scaler(plan.slots.values(), failed=bool(work.failed))
                if work.verdict.skip:
                    break

            # ---- Finish: counters, schedulers, hooks, loggers, what saves; then the validation that is due.
            self.finish_batch()
            self.validate_if_due()

            # ---- Go on?
            work.clear()
            if self.is_last_batch or stopping.after_batch():
                break
        if not stopping.now or (self.stage is EpochStage.BATCHES_OVER and not stopping.by_signal):
            self.end_epoch()

    def begin_epoch(self) -> Iterable[tuple[Any, bool]]:
        """The epoch's batches, each with whether it is the last; none where a resumed run finds them over."""
        trainer, data, resumed = self.trainer, self.trainer.train_data, self.within_epoch
        if not resumed:
            resuming.restore_random_state(self)  # this run resumes between two epochs
            data.setup_if_due()
            self.batches_done = 0
            if None in trainer.plan.slots:  # the plain optimizer's window; a named one's goes on over epochs
                trainer.plan.slots[None].open = False  # an epoch that a hook ended may have left it half full
            trainer.call("on_train_epoch_start")
        batches = data.start_epoch(self.epoch, self.batches_done, over=resumed and self.is_last_batch)
        self.batches_done = data.first_batch  # another number, where the number of ranks has changed
        # Only now: the loader has drawn its numbers, as it had in the run that was cut.
        resuming.restore_random_state(self)
        if self.stage is EpochStage.BATCH_OPEN:
            lr_stepping.step_waiting(trainer)  # the hook that logs their metric may not have run
        if resumed:
            resuming.save_what_was_due(self)
        if self.batch_is_open and self.batches_done:
            self.validate_if_due()
        elif not resumed or self.batch_is_open:
            self.stage = EpochStage.BATCHES
        if not self.batch_is_open:
            self.count_on_axis()
        return batches if self.stage is EpochStage.BATCHES and not trainer.stopping.after_batch() else ()

    def end_epoch(self) -> None:
        """Means of the epoch, monitored schedulers, hooks: callbacks, the module, then what decides by a metric."""
        trainer, call, metrics, strategy = self.trainer, self.trainer.call, self.trainer.metrics, self.trainer.strategy
        schedulers_due = trainer.plan.automatic_optimization and self.is_last_batch
        self.stage = EpochStage.SCHEDULERS_DUE if schedulers_due else EpochStage.END_HOOKS
        logged = metrics.end_epoch()
        call("on_train_epoch_end")
        logged.update(metrics.end_epoch())  # these hooks may have logged, too
        if schedulers_due:
            self.stage = EpochStage.END_HOOKS
            lr_stepping.step_with_epoch(trainer, monitored=True)  # the others stepped after the validation
            if self.validation_ran:
                lr_stepping.require_monitored(trainer)
        trainer.log_metrics(logged, ago=1)  # before the hook that saves, so that no resumed run logs it again
        call("on_train_epoch_end:monitoring")
        trainer.log_metrics(metrics.end_epoch(), ago=1)
        metrics.forget()
        look_at_weights(trainer)  # collective: all ranks end the epoch
        trainer.stopping.agree(strategy.any(trainer.stopping.wanted))  # collective: all ranks end the epoch
        self.begin_next_epoch()

    #: A checkpoint's counters are loaded. If it was saved while its epoch ended, the rest of that is done here.
    resume = resuming.end_epoch

    # ---- the acts of a batch ---------------------------------------------------------------------------------------

    def heed(self, verdict: Verdict) -> None:
        """Follow a vote that says more than "go on"."""
        work, stopping = self.work, self.trainer.stopping
        stopping.agree(stopping.agreed or verdict.stop, verdict.signal)
        self.is_last_batch = self.is_last_batch or bool(verdict.last)
        work.closes = work.closes or self.is_last_batch
        if verdict.skip or work.batch is None:
            leave_out(self, verdict)
        else:
            work.losses = verdict.weigh(work.steps)

    def backward(self, loss: torch.Tensor | None, slot: OptimizerSlot) -> None:
        """One optimizer's backward pass with its hooks. Before the first one of a window its gradients are cleared."""
        trainer, work, hooks = self.trainer, self.work, self.hooks
        accumulate = trainer.accumulate_grad_batches
        if not slot.open or (slot.name is None and work.index % accumulate == 0):
            if hooks["on_before_zero_grad"]:
                trainer.call("on_before_zero_grad", slot.optimizer)
            if "optimizer_zero_grad" in trainer.hook_calls.of_module:
                trainer.lightning_module.optimizer_zero_grad(self.epoch, work.index, slot.optimizer)
            else:
                slot.zero_grad()
            slot.open, slot.pending, slot.weight = True, 0, 0.0
        if loss is None:
            return

        if trainer.plan.accumulates_by_weight:
            window, weight = slot.window if slot.name is not None else accumulate, weight_of_step(trainer)
            loss, slot.weight = loss * (weight * window), slot.weight + weight
        if (scaler := trainer.precision_plugin.scaler) is not None:
            loss = scaler.scale(loss)
        if hooks["on_before_backward"]:
            trainer.call("on_before_backward", loss)
        if slot.name is not None:  # its own parameters alone; the graph is kept for those that follow
            slot.backward(loss, slot is not work.losses[-1][1], stands_in=trainer.train_data.replaying)
        elif slot.own_backward:
            trainer.metrics.hook = "backward"  # as `call_module` does, without a call in each step
            trainer.lightning_module.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
        if hooks["on_after_backward"]:
            trainer.strategy.settle_gradients()
            trainer.call("on_after_backward")
        slot.pending += 1
        slot.trained = True

    def prepare_step(self, slot: OptimizerSlot) -> bool:
        """Make a full window ready to step: scaler, hook, clipping. False when its gradient is not finite."""
        trainer, logged = self.trainer, len(self.trainer.metrics.touched)
        if slot.weight:
            slot.divide_by_weight()
        if trainer.precision_plugin.scaler is not None and slot.pending:
            trainer.precision_plugin.unscale(slot, trainer.plan.slots.values())
        if self.hooks["on_before_optimizer_step"]:
            trainer.call("on_before_optimizer_step", slot.optimizer)
        if isfinite(norm := slot.clip()):
            return True
        trainer.metrics.discard_since(logged)  # only what this step logged: other optimizers may step
        self.work.failed = [*self.work.failed, ("" if slot.name is None else f" of {slot.name!r}", norm)]
        return False

    def count_batch(self) -> None:
        """The batch is over, but for its hooks and its validation. With the last one epoch schedulers step."""
        self.batches_seen += 1
        self.batches_done += 1
        self.stage = BATCH_OPEN
        if self.is_last_batch and self.trainer.plan.automatic_optimization:
            lr_stepping.step_with_epoch(self.trainer, monitored=False)

    def finish_batch(self) -> None:
        """Count, step schedulers, call hooks. What saves comes last: all that is left then, a resumed run does."""
        trainer, plan, work, hooks = self.trainer, self.trainer.plan, self.work, self.hooks
        if work.stepped:
            self.global_step += 1
            self.gradient_failed = False
            if plan.schedulers:
                lr_stepping.step_after_update(trainer, work.stepped, work.index)
        if work.failed:
            skip_steps(self)
        if self.consecutive_skips and not work.verdict.skip and not self.gradient_failed:
            self.consecutive_skips = 0
        self.count_batch()
        self.uncounted = 1 if work.stepped or not plan.automatic_optimization else 0
        wanted = trainer.callback_handler.outputs_wanted or "on_train_batch_end" in trainer.hook_calls.of_module
        outputs = outputs_of(work.output, [*work.earlier, *work.steps]) if wanted and not work.verdict.skip else None
        if hooks["on_train_batch_end"]:
            trainer.call("on_train_batch_end", outputs, work.batch, work.index)
        if trainer.train_data.in_use.replaying:
            trainer.metrics.discard_since()  # this batch was seen before: the rank has no data left
        if work.stepped and plan.schedulers:
            lr_stepping.step_waiting(trainer)
        if self.uncounted and trainer.loggers and trainer.should_log_step:
            trainer.log_metrics(trainer.metrics.step_values())
        if hooks["on_train_batch_end:monitoring"]:
            trainer.call("on_train_batch_end:monitoring", outputs, work.batch, work.index)

    def validate_if_due(self) -> None:
        """Validate after this batch if the settings say so; where the run ends before, the resumed run validates."""
        trainer = self.trainer
        if trainer.plan.validation.enabled:
            stopping = trainer.stopping
            self.stage = EpochStage.VALIDATION_DUE
            if stopping.now:
                return
            if trainer.plan.validation.is_due(self.batches_done - 1, self.is_last_batch):
                if not trainer.plan.pending:
                    trainer.lightning_module.on_validation_model_zero_grad()
                validate_within_fit(trainer)
                stopping.agree(trainer.strategy.any(stopping.wanted))  # collective: all ranks have validated
                if stopping.by_signal:
                    return
        self.after_validation()
        self.count_on_axis()
