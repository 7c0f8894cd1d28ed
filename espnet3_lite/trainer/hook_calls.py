"""What the loops ask of a trainer: hooks, batches on their way, values for the loggers, whether to validate or to stop.

Mixed into `Trainer`; nothing here decides when it is asked.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from espnet3_lite.distributed.rank import rank_zero_info
from espnet3_lite.exceptions import MisconfigurationException, StopTrainingError
from espnet3_lite.loaders.requests import has_loaders
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.module.lite_module import LiteDataModule, LiteModule
from espnet3_lite.seed import collect_random_state, restore_random_state
from espnet3_lite.trainer.states import RunningStage, TrainerFn

_MISSING = object()
#: Events in which a `StopTrainingError` waits until all have been told, and the run until the next batch. With several
#: ranks these are all events.
_AFTER_THE_FACT = (
    "on_train_batch_end", "on_train_batch_end:monitoring", "on_validation_end", "on_train_epoch_end",
    "on_train_epoch_end:monitoring",
)  # fmt: skip


class ValidationBrokenOff(Exception):
    """A signal ends a validation within a fit; never leaves `validate_within_fit`."""


class TrainerServices:
    """See the module; every method is called by `fit.py`, `evaluation.py` or the rooms around them."""

    def call(self, event: str, *args: Any) -> Any:
        """Call a hook: the callbacks in order, then the module. Returns what the module's hook returned."""
        listeners = self.hooks[event]
        if not listeners:
            return None
        self.metrics.hook = event.partition(":")[0]
        response = None
        for listener in listeners:
            try:
                response = listener(*args)
            except StopTrainingError as error:
                # A rank alone must not leave what the others are in the middle of: it waits for the next vote.
                if event not in _AFTER_THE_FACT and self.world_size == 1:
                    raise
                # Nobody misses what has happened: the others in the list are told, an epoch's checkpoint is saved.
                self.stop_error, response = error, None
                self.should_stop = self.should_stop or self.world_size > 1  # the vote tells the other ranks
                rank_zero_info("`Trainer.%s` stopped: %s", self.state.fn, error)
        return response if event in self.module_hooks else None

    def prepare_hooks(self) -> None:
        """For each event, who is called: the callbacks, trainer and module filled in, then the module's own hook."""
        self.hooks = {
            event: [functools.partial(listener, self, self.lightning_module) for listener in listeners]
            + ([self.module_hooks[event]] if event in self.module_hooks else [])
            for event, listeners in self.callback_handler.listeners.items()
        }

    def call_callbacks(self, event: str, *args: Any) -> None:
        """Call a hook of the callbacks alone, perhaps within another hook (which saves a checkpoint), and logs on."""
        outer, self.metrics.hook = self.metrics.hook, event
        self.callback_handler.call_event(event, self, self.lightning_module, *args)
        self.metrics.hook = outer

    def is_overridden(self, method: str, owner: Any) -> bool:
        """True where a module or data module really defines a method (None on an instance counts as not defined)."""
        own = owner.__dict__.get(method, _MISSING)
        if own is not _MISSING:
            return own is not None
        mine = getattr(type(owner), method, None)
        bases = (getattr(base, method, None) for base in (LiteModule, LiteDataModule, ModuleHooks))
        return mine is not None and mine not in tuple(bases)

    def transfer_batch(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch on its way to the device: the three hooks of the data module, else of the module."""
        batch = self.precision_plugin.convert_batch(batch)
        self.metrics.hook = "transfer_batch_to_device"
        for hook in self.transfer_hooks:
            batch = hook(batch, dataloader_idx)
        return batch

    def ends_epoch(self, response: Any) -> bool:
        """`on_train_batch_start` returned -1 (on any rank)."""
        ends = response == -1
        if self.world_size > 1 and "on_train_batch_start" in self.module_hooks:
            return self.strategy.any(ends)  # collective: all ranks define the same hook
        return ends

    def slot_of(self, optimizer: Any) -> Any:
        """The slot of an optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        return next(slot for slot in self.slots.values() if slot.optimizer is optimizer)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None, ago: int = 0) -> None:
        """Hand values to the loggers as numbers: the one place where logging reads from the device.

        Args:
            metrics: Values by name.
            step: Where they stand on the loggers' axis; by default at the present step, or `ago` steps before it.
            ago: An epoch's means stand at its last step.
        """
        if not metrics or not self.loggers:
            return
        self.metrics.logged.update(metrics)
        numbers = {name: float(value) for name, value in metrics.items()}
        if step is None and (step := numbers.pop("step", None)) is None:  # a logged "step" is the axis, as in Lightning
            numbers.setdefault("epoch", self.current_epoch)
            step = self.logging_step - ago
        for logger in self.loggers:
            logger.log_metrics(numbers, step=int(step))

    def _validates_in_fit(self) -> bool:
        return (
            self.limit_val_batches != 0
            and self.is_overridden("validation_step", self.lightning_module)
            and has_loaders(self, "val")
        )

    def validation_is_due(self, batch_idx: int, is_last: bool) -> bool:
        """After this training batch?"""
        every = self.check_val_every_n_epoch
        if not self.validates or (every is not None and (self.current_epoch + 1) % every != 0):
            return False
        if self.stop_is_agreed and self.fit_loop.can_stop():
            return True
        unknown = self.val_check_batch == float("inf")
        if is_last and (unknown or every is not None) and batch_idx + 1 < self.val_check_batch:
            return True  # the number of batches is not known, or there are fewer than the loader said
        count = self.fit_loop.batches_seen if every is None else batch_idx + 1
        return count % self.val_check_batch == 0

    def validate_within_fit(self) -> None:
        """A validation between two training batches. A signal breaks it off: the resumed run validates anew."""
        self.state.stage = RunningStage.VALIDATING
        self.random_before_validation = collect_random_state()
        loop = self.evaluation_loops["val"]
        loop.setup_if_due()
        published = self.metrics.published()
        try:
            loop.run(end_of_epoch=self.fit_loop.is_last_batch)
            self.validation_ran = True
        except ValidationBrokenOff:
            loop.abandon()
            self.metrics.put_back(published)  # a loader that was through has no say: the resumed run asks it again
            restore_random_state(self.random_before_validation)
            self.stopped_by_signal = True
        self.state.stage = RunningStage.TRAINING

    def heed_signal_in_validation(self) -> None:
        """Between two batches of an evaluation.

        Raises:
            ValidationBrokenOff: a signal came within a fit's validation. Several ranks wait for the next vote.
        """
        if self.signals.received is not None and self.state.stage == RunningStage.VALIDATING:
            if self.state.fn == TrainerFn.FITTING and self.world_size == 1:
                raise ValidationBrokenOff

    @property
    def stops_now(self) -> bool:
        """A signal (on any rank) or a `StopTrainingError` ends the run between two batches, with nothing in between.

        With several ranks such an error is a wish to stop, which the next vote makes everybody's.
        """
        return self.stopped_by_signal or (self.stop_error is not None and self.strategy.world_size == 1)

    def stop_by(self, error: StopTrainingError) -> None:
        """A `StopTrainingError` came out of a batch or an evaluation, which is left as it is.

        Raises:
            RuntimeError: there are several ranks, and no way out of the middle of a batch for one of them.
        """
        if self.world_size > 1:
            raise RuntimeError(
                f"StopTrainingError on rank {self.global_rank} outside a hook, where the other ranks wait for it "
                f"({error}). With several processes raise it in a hook, such as `on_train_batch_end`, or set "
                f"`trainer.should_stop = True`: then all ranks stop together"
            ) from error
        self.stop_error = error
        rank_zero_info("`Trainer.%s` stopped: %s", self.state.fn, error)
        if self.state.stage != RunningStage.TRAINING:
            self.evaluation_loops[self.state.stage.dataloader_prefix].abandon()
            if self.state.fn == TrainerFn.FITTING:
                self.state.stage = RunningStage.TRAINING

    @property
    def stop_is_agreed(self) -> bool:
        """`should_stop`, once all ranks know of it: a rank alone must not stop."""
        return self.should_stop if self.strategy.world_size == 1 else self._stop_was_agreed

    def agree_to_stop(self, stop: bool) -> None:
        """What a vote or an exchange came to, equal on all ranks: one rank's wish to stop is everybody's."""
        self._stop_was_agreed = stop
        self.should_stop = self.should_stop or stop

    def restore_random_state(self) -> None:
        """Put this rank's random state back, in a run that resumes."""
        states, self.resumed_random_states = self.resumed_random_states, None
        if states:
            restore_random_state(states[self.global_rank % len(states)])

    @contextlib.contextmanager
    def isolated_random_state(self) -> Any:
        """Whatever draws random numbers in here, the outside does not notice."""
        state = collect_random_state()
        try:
            yield
        finally:
            restore_random_state(state)

    def _restore_training_mode(self) -> None:
        prefix = RunningStage(self.state.stage).dataloader_prefix
        self.evaluation_loops[prefix].restore_training_mode()

    def _replace_optimizers(self, optimizers: list[Any]) -> None:
        slots = list(self.slots.values())
        if len(optimizers) != len(slots):
            raise MisconfigurationException(f"{len(optimizers)} optimizers for {len(slots)} slots; replace one by one")
        for slot, optimizer in zip(slots, optimizers, strict=True):
            slot.optimizer = optimizer
