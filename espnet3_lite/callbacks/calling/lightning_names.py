"""What code written for Lightning asks of a trainer's inner parts: what there is of it here, and else what would do.

The trainer is built in another way. Its counters can be read under Lightning's names, and what may be set there is set
on the trainer. What would be set in vain is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import nearest, refuse
from espnet3_lite.trainer.settings import SETTINGS

if TYPE_CHECKING:
    from espnet3_lite.loops.fit import FitLoop
    from espnet3_lite.trainer.trainer import Trainer

_Class = TypeVar("_Class", bound=type)

_LOADERS = "`trainer.train_dataloader` and `trainer.val_dataloaders` are those in use; others are given to `fit`"
_VALUES = "`trainer.callback_metrics` and `trainer.logged_metrics` have the values"
_COUNTERS = (
    "`trainer.current_epoch` and `trainer.global_step` can be read, and a run goes on with fit(ckpt_path=...). For a "
    "run that is to count from another number write a checkpoint: it is a dict, read by torch.load"
)
#: Lightning's inner parts that programs reach into, each with what does the same here.
_INSTEAD = {
    **dict.fromkeys(
        ("_checkpoint_connector", "checkpoint_connector"),
        "fit(ckpt_path=...) goes on from a checkpoint, `trainer.save_checkpoint(path)` writes one, and the callback "
        "`ModelCheckpoint` does so by itself. (NeMo's `exp_manager` needs "
        "`save_best_model: false`)",
    ),
    "_logger_connector": f"`trainer.loggers = [...]` sets the loggers, and {_VALUES}",
    **dict.fromkeys(("_results", "_active_loop"), _VALUES),
    "_callback_connector": "`trainer.callbacks` is the list of callbacks, and may be changed",
    **dict.fromkeys(("_data_connector", "_combined_loader", "_data_fetcher", "_data_source", "setup_data"), _LOADERS),
    "_signal_connector": "`trainer.received_sigterm` and `trainer.stopped_by_signal` tell of signals",
    **dict.fromkeys(
        ("validate_loop", "test_loop", "predict_loop", "val_loop", "_evaluation_loop"),
        "`trainer.val_dataloaders`, `trainer.num_val_batches` and the like tell what is evaluated",
    ),
    **dict.fromkeys(("epoch_progress", "optim_progress", "scheduler_progress", "batch_progress"), _COUNTERS),
    "manual_optimization": "with `automatic_optimization = False` the module steps what `self.optimizers()` gives",
    "val_check_batch": "`trainer.val_check_interval` says when a fit validates, and may be set between two calls",
    "_val_check_time_interval": "a fit validates by batches: `trainer.val_check_interval`",
    "scaler": "`trainer.precision_plugin.scaler` is the gradient scaler, None without `precision='16-mixed'`",
}  # fmt: skip


class _InnerPart:
    """A part of Lightning's trainer that is not here: to read it is an error, unless a program has set it.

    Where the class had a ``__getattr__`` instead, Python would take three times as long for each of its attributes.
    """

    def __init__(self, place: str, instead: str):
        self.message = f"{place} is an inner part of Lightning's trainer, and not here: {instead}"

    def __get__(self, owner: object, kind: type) -> _InnerPart:
        if owner is None:
            return self
        raise AttributeError(self.message)


def tells_inner_parts(where: str) -> Callable[[_Class], _Class]:
    """For a class whose objects stand in for Lightning's: what they lack says what would do.

    Args:
        where: How a program calls the object.
    """

    def with_parts(kind: _Class) -> _Class:
        for name in _INSTEAD.keys() - set(dir(kind)):
            setattr(kind, name, _InnerPart(f"{where}.{name}", _INSTEAD[name]))
        return kind

    return with_parts


def warn_of_unread(trainer: Trainer, name: str) -> None:
    """An attribute is set on a trainer that is no setting: of one that somebody might expect to be read it is told."""
    is_inner = isinstance(getattr(type(trainer), name, None), _InnerPart)
    if "plan" not in vars(trainer) or name in vars(trainer) or (hasattr(type(trainer), name) and not is_inner):
        return
    instead = f": {_INSTEAD[name]}" if is_inner else nearest(name, SETTINGS, alike=0.9)
    if instead:
        rank_zero_warn(f"trainer.{name} is no setting, and nothing here reads it{instead}")


def ckpt_path_of(trainer: Trainer) -> Any:
    """The checkpoint that the present or last call started from, or what was set since; None where there is none."""
    return vars(trainer).get("_ckpt_path")


def set_ckpt_path(trainer: Trainer, path: Any) -> None:
    """``trainer.ckpt_path = ...``: calls start from it that name no other checkpoint, as under Lightning."""
    if trainer.state.stage is None or path != ckpt_path_of(trainer):  # a hook that hands it round changes nothing
        vars(trainer).update(_ckpt_path=path, _path_was_set=bool(path))


def path_for(trainer: Trainer, fn: str, given: Any) -> Any:
    """What a call starts from.

    Args:
        trainer: Whose call.
        fn: Its name.
        given: What the call names, which counts and is told where something was set before; None where it names none.
    """
    if not vars(trainer).get("_path_was_set"):
        return given
    set_before = ckpt_path_of(trainer)
    if given is None:
        return set_before
    vars(trainer)["_path_was_set"] = False
    rank_zero_warn(
        f"trainer.ckpt_path = {set_before!r} was set, and then .{fn}(ckpt_path={given!r}) was called: the latter is "
        f"loaded"
    )
    return given


def refuse_storage_options(options: Any) -> None:
    """What ``trainer.save_checkpoint(..., storage_options=...)`` would hand to a plugin of Lightning's.

    Raises:
        MisconfigurationException: there are some.
    """
    beginning = "Trainer.save_checkpoint(storage_options="
    refuse(beginning, (options is not None, f"{options!r}): they are for a CheckpointIO plugin of Lightning's, and the "
           "trainer alone writes files here; leave them out"))  # fmt: skip


@tells_inner_parts("trainer.fit_loop.epoch_loop")
class _Copy(SimpleNamespace):
    """Values as they are now; setting one would change nothing, and is an error."""

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"Lightning's loop has {name!r}, which is here for reading alone: {_COUNTERS}")


class _EpochLoop(_Copy):
    """A fit's counters under Lightning's names. Two settings may be set, and are the trainer's."""

    def __setattr__(self, name: str, value: Any) -> None:  # type: ignore[override]
        if name not in ("max_steps", "min_steps"):
            super().__setattr__(name, value)
        setattr(vars(self)["_trainer"], name, value)


def epoch_loop_of(loop: FitLoop) -> _EpochLoop:
    """What Lightning calls ``trainer.fit_loop.epoch_loop``, as it is now.

    Args:
        loop: Whose counters.
    """
    begun = loop.stage == "batches"  # a batch is in work, and is not counted yet
    under_way = begun + loop.batch_is_open  # the hooks of a batch's end are not through with it
    done, seen = loop.batches_done + begun, loop.batches_seen + begun
    current, total = (_Copy(ready=count, completed=count - under_way) for count in (done, seen))
    return _EpochLoop(
        batch_idx=done - 1, total_batch_idx=seen - 1, global_step=loop.global_step, val_loop=loop.val_loop,
        batch_progress=_Copy(current=current, total=total, is_last_batch=loop.is_last_batch),
        max_steps=loop.max_steps, min_steps=loop.min_steps, _batches_that_stepped=loop.batches_stepped,
        _trainer=loop.trainer,
    )  # fmt: skip


def set_epoch_loop(loop: FitLoop, given: Any) -> NoReturn:
    """Refuse another loop: there is one, and nothing would run what is set.

    Args:
        loop: Whose.
        given: What was to run instead.
    """
    raise AttributeError(
        f"trainer.fit_loop.epoch_loop = {given!r}: the training loop cannot be exchanged. It is "
        f"`espnet3_lite/loops/fit.py`; hooks, `training_turns` and `automatic_optimization = False` say what it does"
    )


def accelerator_connector_of(trainer: Trainer) -> Any:
    """What Optuna's pruning callback, made for Lightning, asks of a trainer: whether there are several ranks."""
    return SimpleNamespace(is_distributed=trainer.world_size > 1)


class LoggerConnector:
    """What NeMo's `exp_manager` asks of a trainer to set its loggers.

    Args:
        trainer: Whose loggers.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def configure_logger(self, logger: Any) -> None:
        """Set the loggers.

        Args:
            logger: As ``Trainer(logger=...)``: one, or a list of them.
        """
        self.trainer.loggers = logger

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer._logger_connector.{name} is an inner part of Lightning's trainer, and not here: "
                             f"{_INSTEAD['_logger_connector']}")  # fmt: skip
