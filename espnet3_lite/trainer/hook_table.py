"""Every hook in one table: the order in which a run calls them, who may define each, and what `self.log` does there.

The table imports nothing, so that every room can read it. How a hook is called is in `hook_calls.py`; what it means is
said where users define it, in `callbacks/base.py` and `module/hooks.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class LogDefaults(NamedTuple):
    """What `self.log` does in a hook if its caller does not say. The values are Lightning's."""

    on_step: bool
    on_epoch: bool
    #: False: the hook belongs to no batch, and ``on_step=True`` is an error.
    step_possible: bool


_IN_A_STEP = LogDefaults(on_step=True, on_epoch=False, step_possible=True)
_IN_AN_EVALUATION = LogDefaults(on_step=False, on_epoch=True, step_possible=True)
_AROUND_AN_EPOCH = LogDefaults(on_step=False, on_epoch=True, step_possible=False)


class Hook(NamedTuple):
    """One row of the table.

    Attributes:
        log: The defaults of `self.log`; None where logging is an error.
        owners: Who may define it: ``callback``, ``module``, ``datamodule``.
        last: Which callbacks are called after the module: ``saving`` (they store what all others did) and
            ``monitoring`` (they decide by a metric that the module may log in this very hook).
        waits: A `StopTrainingError` that is raised here takes effect when all listeners have been told.
    """

    log: LogDefaults | None = None
    owners: tuple[str, ...] = ("callback", "module")
    last: tuple[str, ...] = ()
    waits: bool = False


_CALLBACK, _MODULE, _DATA = ("callback",), ("module",), ("datamodule", "module")


def _evaluation(stage: str, log: LogDefaults | None, around: LogDefaults | None) -> dict[str, Hook]:
    """The rows of one evaluation, in order."""
    return {
        f"on_{stage}_model_eval": Hook(owners=_MODULE),
        f"on_{stage}_start": Hook(around),
        f"on_{stage}_epoch_start": Hook(around),
        f"on_{stage}_batch_start": Hook(log),
        f"{stage}_step": Hook(log, _MODULE),
        f"on_{stage}_batch_end": Hook(log),
        f"on_{stage}_epoch_end": Hook(around),
        f"on_{stage}_end": Hook(waits=stage == "validation"),
        **({} if stage == "predict" else {f"on_{stage}_model_train": Hook(owners=_MODULE)}),
    }


#: In the order of a run. Validation follows an epoch's last batch here.
HOOKS: dict[str, Hook] = {
    "prepare_data": Hook(owners=_DATA),
    "setup": Hook(owners=("callback", "module", "datamodule")),
    "configure_model": Hook(owners=_MODULE),
    "on_fit_start": Hook(),
    "on_sanity_check_start": Hook(),
    "on_sanity_check_end": Hook(),
    "on_train_start": Hook(_AROUND_AN_EPOCH),
    "on_train_epoch_start": Hook(_AROUND_AN_EPOCH),
    "on_before_batch_transfer": Hook(owners=_DATA),
    "transfer_batch_to_device": Hook(owners=_DATA),
    "on_after_batch_transfer": Hook(owners=_DATA),
    "on_train_batch_start": Hook(_IN_A_STEP),
    "training_step": Hook(_IN_A_STEP, _MODULE),
    "on_before_zero_grad": Hook(_IN_A_STEP),
    "optimizer_zero_grad": Hook(_IN_A_STEP, _MODULE),
    "on_before_backward": Hook(_IN_A_STEP),
    "backward": Hook(_IN_A_STEP, _MODULE),
    "on_after_backward": Hook(_IN_A_STEP),
    "on_before_optimizer_step": Hook(_IN_A_STEP),
    "configure_gradient_clipping": Hook(_IN_A_STEP, _MODULE),
    "optimizer_step": Hook(_IN_A_STEP, _MODULE),
    "lr_scheduler_step": Hook(_IN_A_STEP, _MODULE),
    "on_train_batch_end": Hook(_IN_A_STEP, last=("saving",), waits=True),
    "on_validation_model_zero_grad": Hook(owners=_MODULE),
    **_evaluation("validation", _IN_AN_EVALUATION, _AROUND_AN_EPOCH),
    "on_train_epoch_end": Hook(_AROUND_AN_EPOCH, last=("saving", "monitoring"), waits=True),
    "on_train_end": Hook(),
    "on_fit_end": Hook(),
    **_evaluation("test", _IN_AN_EVALUATION, _AROUND_AN_EPOCH),
    **_evaluation("predict", None, None),
    "teardown": Hook(owners=("callback", "module", "datamodule")),
    "on_exception": Hook(owners=("callback", "datamodule")),
    "on_stop_training_error": Hook(),
    # The module's own are called with the checkpoint by `checkpoint/run_state.py`.
    "on_save_checkpoint": Hook(owners=_CALLBACK),
    "on_load_checkpoint": Hook(owners=_CALLBACK),
}
#: What callbacks can listen to, in the order of a run.
EVENTS: tuple[str, ...] = tuple(name for name, hook in HOOKS.items() if "callback" in hook.owners)
#: The hooks in which `self.log` can be called.
LOG_DEFAULTS = {name: hook.log for name, hook in HOOKS.items() if hook.log is not None}
#: Of a hook with callbacks that come last, these calls are an event of their own.
LATE = ":monitoring"
#: The hook of each event.
HOOK_OF = {event: event.partition(":")[0] for name in HOOKS for event in (name, name + LATE)}
