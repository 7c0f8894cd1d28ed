"""`Callback`, with every hook in the order in which a run calls it. Dispatch is in `calling/handler.py`.

`HOOKS` is that order as data: the README's list, the `hooks` command and the test against the code read it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from espnet3_lite.callbacks.calling import event_aliases
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.trainer.hook_table import EVENTS

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: Every event that the trainer calls, in the order of a run. (Validation follows an epoch's last batch here.)
HOOKS = EVENTS

_NO_TRAINER = "{}: no trainer has called this callback; log in its hooks"

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def looks_at_no_outputs(hook: _Hook) -> _Hook:
    """Mark an `on_train_batch_end` that does not look at `outputs`: where no listener does, it gets None for them.

    Making them takes a call of torch in each batch. A hook that overrides a marked one is not marked.
    """
    hook.looks_at_no_outputs = True  # type: ignore[attr-defined]  # functions have room for it
    return hook


def looks_at_no_gradients(hook: _Hook) -> _Hook:
    """Mark an `on_after_backward` that does not look at gradients: where no listener does, the ranks may send those of
    several named optimizers together, and none is averaged yet when it is called.

    A hook that overrides a marked one is not marked.
    """
    hook.looks_at_no_gradients = True  # type: ignore[attr-defined]  # functions have room for it
    return hook


class Callback:
    """Base class: override the hooks you need; the others cost nothing.

    Each hook gets the trainer and the module that is trained. Hooks run on every rank; guard what prints or writes with
    ``trainer.is_global_zero``. Callbacks are called in the order of the list, checkpoint callbacks last.

    Example:
        >>> class PrintEpochs(Callback):
        ...     def on_train_epoch_end(self, trainer, pl_module):
        ...         print("epoch", trainer.current_epoch, "ended")
        >>> PrintEpochs().state_key
        'PrintEpochs'
    """

    #: Names beyond `HOOKS` that are known; a method called `on_...` that is in neither is warned about. By default
    #: pytorch-accelerated's names for our events: see `trainer_callback.py`.
    known_events: frozenset[str] = event_aliases.NAMES
    #: True where ``trainer.run_history`` must be recorded from the start.
    uses_run_history = False
    #: True where `on_save_checkpoint` changes ``checkpoint["state_dict"]``; files of weights alone hold it so changed.
    changes_saved_weights = False
    #: In a class's own namespace: its event methods are stubs, which nobody needs to call.
    _is_interface = True
    #: Whose call is on, or was last.
    _trainer: Trainer | None = None

    @property
    def state_key(self) -> str:
        """The key of the callback's state in a checkpoint. Override it if several instances of a class keep state."""
        return type(self).__qualname__

    def _generate_state_key(self, **arguments: Any) -> str:
        """A state key that tells the instances of a parametrised callback apart, as Lightning writes it."""
        return f"{type(self).__qualname__}{arguments!r}"

    def _listener(self, event: str) -> Callable | None:
        """What the handler calls for `event`: the methods of that name and of its aliases that a subclass defines."""
        listeners = [] if (method := self._own(event)) is None else [method]
        for alias, adapt in event_aliases.ALIASES.get(event, ()):
            if (method := self._own(alias)) is not None:
                listeners.append(adapt(method))
        if len(listeners) < 2:
            return listeners[0] if listeners else None

        def call_all(*args: Any) -> None:
            for listener in listeners:
                listener(*args)

        return call_all

    def _own(self, name: str) -> Callable | None:
        """The bound method `name`, or None where it is missing or an interface's stub."""
        if (method := getattr(self, name, None)) is None:
            return None
        function = getattr(method, "__func__", method)
        if function is vars(Callback).get(name):  # mostly it is, of each of 50 events
            return None
        interfaces = (vars(base) for base in type(self).__mro__ if "_is_interface" in vars(base))
        return None if any(stubs.get(name) is function for stubs in interfaces) else method

    def __repr__(self) -> str:
        """The constructor's call, as far as the arguments are kept under their names and differ from the defaults."""
        given = inspect.signature(type(self)).parameters.values()
        kept = {p.name: getattr(self, p.name) for p in given if hasattr(self, p.name)}
        shown = [f"{p.name}={kept[p.name]!r}" for p in given if p.name in kept and kept[p.name] is not p.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no trainer."""
        return {**self.__dict__, "_trainer": None}

    def log(self, name: str, value: Any, **arguments: Any) -> None:
        """Log one value in a hook, as `LiteModule.log` does in the module's hook of the same name.

        Args:
            name: Its key in ``trainer.callback_metrics`` and in the loggers.
            value: A number, a tensor with one element, or a metric object with `compute` and `reset`.
            arguments: Those of `LiteModule.log`.

        Raises:
            MisconfigurationException: the hook has no step and no epoch to belong to; or no trainer calls this.
        """
        if self._trainer is None:
            raise MisconfigurationException(_NO_TRAINER.format(f"{type(self).__name__}.log({name!r}, ...)"))
        self._trainer.lightning_module.log(name, value, **arguments)

    def log_dict(self, dictionary: Mapping[str, Any], **arguments: Any) -> None:
        """Call `log` for each name and value of `dictionary`, with the same further arguments."""
        if self._trainer is None:
            raise MisconfigurationException(_NO_TRAINER.format(f"{type(self).__name__}.log_dict(...)"))
        self._trainer.lightning_module.log_dict(dictionary, **arguments)

    # ---- setup and teardown of any call (fit, validate, test, predict) -------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """At the beginning of each call; `stage` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """At the end of each call."""

    # ---- fit ------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The model is on its device and the optimizers are made; before the sanity check."""

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After `on_train_end`; only `teardown` follows."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the few validation batches that try `validation_step` out."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the sanity check."""

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the first epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the last epoch, also where a limit or a signal ended the run."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """At the start of each epoch (not when a run resumes within it)."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """At the end of each epoch, after its validation; the epoch's means are in ``trainer.callback_metrics``."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """With the batch on its device. (The module's may return -1: it leaves out this batch and the epoch's rest.)"""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """`outputs`: what the training step returned, as a dict with `loss`; empty where it returned None, None where
        the batch was skipped.
        """

    def on_before_backward(self, trainer: Trainer, pl_module: LiteModule, loss: torch.Tensor) -> None:
        """`loss` is what is propagated: divided by the accumulation window."""

    def on_after_backward(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Gradients are there, not yet clipped."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LiteModule, optimizer: Optimizer) -> None:
        """Gradients are unscaled, not yet clipped."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LiteModule, optimizer: Optimizer) -> None:
        """Before the gradients of the last window are cleared."""

    # ---- validation -----------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before each validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After each validation; its means are in ``trainer.callback_metrics``."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the last validation batch; `log` is still possible."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With the batch on its device."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """`outputs` is what `validation_step` returned."""

    # ---- test -----------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the test."""

    def on_test_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the test; its means are in ``trainer.callback_metrics``."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the last test batch; `log` is still possible."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With the batch on its device."""

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """`outputs` is what `test_step` returned."""

    # ---- predict --------------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the first prediction."""

    def on_predict_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the last prediction."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Before the first batch of predictions."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After the last batch of predictions."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With the batch on its device."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """`outputs` is what `predict_step` returned."""

    # ---- whenever it happens --------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """The run ends by `exception`, which is raised again afterwards."""

    def on_stop_training_error(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A `StopTrainingError` was raised: the run ends in order."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """The checkpoint is complete; add to it what you want to find in `on_load_checkpoint`."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read, before `load_state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue: tensors and plain values."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


class Checkpoint(Callback):
    """Marks a callback that saves checkpoints: it is called after all others, since it stores their state.

    Attributes:
        best_model_path: The best checkpoint so far; ``""`` where there is none.
        last_model_path: The last one, where it keeps one under a name of its own; else ``""``.
    """

    best_model_path: str = ""
    last_model_path: str = ""


class MonitoringCallback(Callback):
    """Marks a callback that decides by a metric: its `on_train_epoch_end` is called after the module's own.

    (The module may log the monitored value there. Lightning does the same for its early stopping and checkpoints.)
    """
