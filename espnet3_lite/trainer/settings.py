"""What `Trainer` accepts: the one table of its arguments, each with its default, its rule and its meaning.

From it come the constructor's checks and what ``None`` stands for, the documentation of `Trainer`'s arguments, the
types of the attributes of the same names, and the check of ``trainer:`` in a configuration file. So this file imports
no torch. What several settings imply together is here too; what is built from them is in `trainer.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Generic

from espnet3_lite.checks.value_kinds import (
    DURATION,
    FLAG,
    LIST,
    MAPPING,
    NONE,
    OBJECT,
    PATH,
    Kind,
    instead,
    is_number,
    number,
    one_of,
    parse_duration,
    plain_containers,
    whole,
)
from espnet3_lite.exceptions import MisconfigurationException, nearest

if TYPE_CHECKING:
    from torch.profiler import profile as Profile
    from typing_extensions import TypeVar, dataclass_transform

    from espnet3_lite.callbacks.base import Callback
    from espnet3_lite.distributed.single import Strategy
    from espnet3_lite.loggers.base import Logger

    _Given = TypeVar("_Given", default=None)
else:
    from typing import TypeVar

    _Given = TypeVar("_Given")
_Held = TypeVar("_Held")
_Class = TypeVar("_Class", bound=type)

# ---- what a value may be -------------------------------------------------------------------------------------------


def _count_for_float(value: Any) -> str:
    return f"; for batches write {int(value)}" if isinstance(value, float) and value > 1 and value.is_integer() else ""


DEVICES = Kind(
    "a number of at least 1, -1 or 'auto' for all, or a list of them",
    lambda value: (
        value in (-1, "-1", "auto")
        or (str(value).isdecimal() and int(value) >= 1)
        or (isinstance(value, list | tuple) and len(value) > 0)
    ),
)
LIMIT = whole(0) | Kind(
    "a fraction from 0.0 to 1.0", lambda value: isinstance(value, float) and 0 <= value <= 1, _count_for_float
)
INTERVAL = whole(1) | Kind(
    "a fraction above 0.0 and at most 1.0",
    lambda value: isinstance(value, float) and 0 < value <= 1,
    lambda value: "; to leave validation out set limit_val_batches to 0" if value == 0 else _count_for_float(value),
)
PRECISION = one_of(
    "32-true", "64-true", "bf16-mixed", "16-mixed", "32", "64", "bf16", "16", 32, 64, 16, "bf16-true", "16-true",
    hint=lambda value: "; did you mean '16-mixed'?" if value in ("fp16", "float16", "half") else "",
)  # fmt: skip
SEVERAL = Kind("a list of them", LIST.accepts)
LOGGER_NAMES = ("csv", "tensorboard", "wandb", "mlflow")
LOGGERS = FLAG | one_of(*LOGGER_NAMES) | Kind("a logger (in YAML a mapping with _target_)", OBJECT.accepts) | SEVERAL
CALLBACKS = Kind("a callback (in YAML a mapping with _target_)", OBJECT.accepts) | SEVERAL
STRATEGY = one_of(
    "auto", "ddp", "fsdp", "ddp_find_unused_parameters_true",
    hint=instead(
        ("deepspeed", "; DeepSpeed is not supported: use fsdp with one optimizer, ddp with several"),
        ("ddp_find_unused_parameters_false", "; did you mean 'ddp'? It looks for no unused parameters"),
        ("ddpstrategy", "; take DDPStrategy() of espnet3_lite.strategies"),
        ("fsdpstrategy", "; take FSDPStrategy() of espnet3_lite.strategies"),
    ),
) | Kind(
    "an object of espnet3_lite.strategies (in YAML a mapping with _target_)",
    lambda value: hasattr(value, "require_same") or (isinstance(value, dict) and OBJECT.accepts(value)),
)  # fmt: skip

# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting(Generic[_Held, _Given]):
    """One argument of `Trainer`, and the trainer's attribute of the same name.

    ``Setting[Strategy, str]``: the attribute has the first type. The argument may have either, or be None.

    Attributes:
        default: Its value where it is not given, or given as None (unless None has a meaning of its own).
        kind: What it may be.
        meaning: What it does, for the documentation.
    """

    default: Any
    kind: Kind
    meaning: str

    if TYPE_CHECKING:  # when it runs, a trainer's own attribute stands before this one

        def __get__(self, trainer: object, owner: type) -> _Held: ...
        def __set__(self, trainer: object, value: _Held | _Given | None) -> None: ...


#: Where neither epochs nor steps nor time are limited; a fit warns of it.
DEFAULT_EPOCHS = 1000

#: The entries of `Settings`, by name.
SETTINGS: dict[str, Setting[Any, Any]] = {}

if TYPE_CHECKING:

    @dataclass_transform(kw_only_default=True)
    def _with_constructor(table: _Class) -> _Class: ...

else:

    def _with_constructor(table):
        """Give the table a constructor of its entries, as `dataclass` would: what runs, and what `help` shows.

        The class keeps none of them: Python finds an attribute of an instance in half the time where it has none.
        """

        def __init__(self, **given):
            self.__post_init__(resolve(given), epochs_given=given.get("max_epochs") is not None)

        parameters, lines = [Parameter("self", Parameter.POSITIONAL_ONLY)], ["Make a trainer.", "", "Args:"]
        for name in table.__annotations__:
            SETTINGS[name] = setting = vars(table)[name]
            delattr(table, name)
            parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=setting.default))
            lines.append(f"    {name} ({setting.kind.words}; default {setting.default!r}): {setting.meaning}")

        def __setattr__(self, name, value):
            object.__setattr__(self, name, self._checked_change(name, value))

        __init__.__signature__, __init__.__doc__ = Signature(parameters), "\n".join(lines)
        table.__init__, table.__setattr__ = __init__, __setattr__
        return table


@_with_constructor
class Settings:
    """The arguments of `Trainer`, in the order of its signature. As in a dataclass, the constructor comes from them."""

    accelerator: Setting[str] = Setting(
        "auto", one_of("auto", "cpu", "gpu", "cuda", "mps"), "Where to compute; ``auto`` is a GPU where there is one."
    )
    devices: Setting[int | str | list[int]] = Setting("auto", DEVICES, "Processes per machine; torchrun starts them.")
    num_nodes: Setting[int] = Setting(1, whole(1), "How many machines train together.")
    strategy: Setting[Strategy, str] = Setting("auto", STRATEGY, "How processes train together; under torchrun by DDP.")
    dist_timeout: Setting[timedelta, float | str | dict[str, float]] = Setting(
        timedelta(minutes=30), number(1) | DURATION,
        "How long a collective waits for other ranks: seconds, or a duration. Rank 0's long work does not count.",
    )  # fmt: skip
    signal_grace: Setting[int | float] = Setting(30, number(0), "Seconds from SIGTERM to the end of a rank that waits.")
    sync_batchnorm: Setting[bool] = Setting(False, FLAG, "On GPUs: batch norm over all ranks (`SyncBatchNorm`).")
    precision: Setting[str, int] = Setting("32-true", PRECISION, "Number format; 32, 64, bf16, 16 mean the first four.")
    logger: Setting[Logger | None, str | bool | Sequence[Logger | str]] = Setting(
        True, LOGGERS, "Where logged values go. True: a `CSVLogger` in `default_root_dir`; False: nowhere."
    )
    callbacks: Setting[list[Callback], Callback | Sequence[Callback]] = Setting(
        None, CALLBACKS, "The callbacks. The default ones are added, unless one of their kind is given."
    )
    max_epochs: Setting[int] = Setting(
        None, whole(-1, "no limit"),
        "Stop after this many epochs; 1000 if neither this nor `max_steps` nor `max_time` is given.",
    )  # fmt: skip
    min_epochs: Setting[int] = Setting(None, whole(0), "Do not stop early before this many epochs.")
    max_steps: Setting[int] = Setting(-1, whole(-1, "no limit"), "Stop after this many optimizer steps.")
    min_steps: Setting[int | None] = Setting(None, whole(0), "Do not stop early before this many optimizer steps.")
    max_time: Setting[timedelta | None, str | dict[str, float]] = Setting(
        None, DURATION, 'Stop after this time: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments.'
    )
    limit_train_batches: Setting[int | float] = Setting(1.0, LIMIT, "Batches (int) or fraction (float) of each epoch.")
    limit_val_batches: Setting[int | float] = Setting(1.0, LIMIT, "The same for validation; 0 leaves it out.")
    limit_test_batches: Setting[int | float] = Setting(1.0, LIMIT, "The same for `test`.")
    limit_predict_batches: Setting[int | float] = Setting(1.0, LIMIT, "The same for `predict`.")
    fast_dev_run: Setting[bool | int] = Setting(False, FLAG | number(0), "One batch (or N) of each loader; no files.")
    overfit_batches: Setting[int | float] = Setting(0.0, LIMIT, "Train and validate on the same few batches (or part).")
    val_check_interval: Setting[int | float] = Setting(1.0, INTERVAL, "When to validate: batches, or part of an epoch.")
    check_val_every_n_epoch: Setting[int | None] = Setting(
        1, whole(1) | NONE, "Validate in each n-th epoch; None: `val_check_interval` counts over epochs."
    )
    num_sanity_val_steps: Setting[int] = Setting(2, whole(-1, "all batches"), "Validation batches tried beforehand.")
    log_every_n_steps: Setting[int] = Setting(50, whole(0, "never"), "Log training metrics on each n-th step.")
    enable_checkpointing: Setting[bool] = Setting(True, FLAG, "Add a `ModelCheckpoint` where there is none.")
    enable_progress_bar: Setting[bool] = Setting(True, FLAG, "Add a `TQDMProgressBar` where there is none.")
    enable_model_summary: Setting[bool] = Setting(True, FLAG, "Add a `ModelSummary` where there is none.")
    accumulate_grad_batches: Setting[int] = Setting(1, whole(1), "How many batches' gradients make one optimizer step.")
    gradient_clip_val: Setting[float | None] = Setting(None, number(0), "Largest gradient norm (or value); None: any.")
    gradient_clip_algorithm: Setting[str | None] = Setting(
        None, one_of("norm", "value"), "Clip the norm of all gradients together (None too), or each value."
    )
    deterministic: Setting[bool | str | None] = Setting(
        None, FLAG | one_of("warn"),
        "True: torch's deterministic algorithms; ``\"warn\"``: warn where there are none; None: leave torch as it is.",
    )  # fmt: skip
    benchmark: Setting[bool | None] = Setting(None, FLAG, "``torch.backends.cudnn.benchmark``; None: as it is.")
    inference_mode: Setting[bool] = Setting(True, FLAG, "Evaluate in `torch.inference_mode` (else ``no_grad``).")
    use_distributed_sampler: Setting[bool] = Setting(True, FLAG, "The ranks share each loader's samples.")
    prefetch_to_device: Setting[bool] = Setting(True, FLAG, "Copy workers' next batch to a GPU while a step computes.")
    profiler: Setting[str | Profile | None] = Setting(
        None, one_of("simple", "pytorch") | OBJECT,
        "Tell where the seconds go, as a table; ``pytorch``: with a trace; or a `torch.profiler.profile`.",
    )  # fmt: skip
    detect_anomaly: Setting[bool] = Setting(False, FLAG, "``torch.autograd.set_detect_anomaly``; a NaN raises then.")
    reload_dataloaders_every_n_epochs: Setting[int] = Setting(0, whole(0, "never"), "New loaders after so many epochs.")
    default_root_dir: Setting[str, os.PathLike[str]] = Setting(None, PATH, "Where to write; None: the current folder.")
    check_grad_finite: Setting[bool] = Setting(False, FLAG, "Skip steps with non-finite gradients, clipped or not.")
    log_grad_norm: Setting[bool] = Setting(False, FLAG, "Log `grad_norm`: the gradient's norm before clipping.")
    async_save: Setting[bool] = Setting(False, FLAG, "Write checkpoints in the background, from a copy of the state.")
    auto_resume: Setting[bool] = Setting(False, FLAG, "`fit` without `ckpt_path` goes on from the newest checkpoint.")
    compile: Setting[bool | str | dict[str, Any]] = Setting(
        False,
        FLAG | MAPPING | one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        "Compile the training step (an ESPnet model itself): True, a mode, or keyword arguments of ``torch.compile``.",
    )


#: What may be set on a trainer at any time, ``trainer.max_epochs = 5``: who needs it reads it anew, each time.
AT_ANY_TIME = frozenset(("logger", "callbacks", "max_epochs", "min_epochs", "max_steps", "min_steps",
    "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval",
    "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "inference_mode", "reload_dataloaders_every_n_epochs"))  # fmt: skip
#: What a call reads when it begins: it may be set between two calls. All else is read when the trainer is made.
BETWEEN_CALLS = frozenset(("signal_grace", "sync_batchnorm", "use_distributed_sampler", "prefetch_to_device",
    "detect_anomaly", "check_grad_finite", "async_save", "auto_resume", "compile"))  # fmt: skip


REFUSED: dict[str, str] = {
    "plugins": "plugins are Lightning's own; leave it out",
    "barebones": "set logger, enable_checkpointing and enable_progress_bar to false",
    "model_registry": "there is no model registry; leave it out",
    "enable_autolog_hparams": "log them with a logger's log_hyperparams; leave it out",
}
"""Arguments of Lightning's trainer that ours has not, with what to do instead. Empty, false and None are let pass."""


# ---- from what was given to what holds -----------------------------------------------------------------------------


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """Check what the constructor was given, all mistakes in one message, and fill in what was not.

    Returns:
        A value for each setting.

    Raises:
        TypeError: an unknown argument, with the nearest known one.
        MisconfigurationException: each value that is not allowed, and what would be.
    """
    problems = []
    for name in (name for name in given if name not in SETTINGS):
        if name not in REFUSED:
            raise TypeError(f"Trainer() takes no argument {name!r}, only {[*SETTINGS]}{nearest(name, SETTINGS)}")
        if given[name] not in (None, False, [], ()):
            problems.append(f"{name}={given[name]!r} is not supported; {REFUSED[name]}")
    settings = {}
    for name, setting in SETTINGS.items():
        settings[name] = value = plain_containers(given.get(name, setting.default))
        if value is None and not setting.kind.accepts(None):
            settings[name] = setting.default
        elif problem := setting.kind.problem(value):
            problems.append(f"{name}={problem}")
    interval = settings["val_check_interval"]
    if settings["check_val_every_n_epoch"] is None and isinstance(interval, float) and interval != 1.0:
        problems.append("`val_check_interval` should be an integer when `check_val_every_n_epoch=None`, "
                        f"found {interval!r}")  # fmt: skip
    if problems:
        raise MisconfigurationException("\n".join(f"Trainer: {problem}" for problem in problems))
    _imply(settings)
    return settings


def _imply(settings: dict[str, Any]) -> None:
    """What settings say about others: ``fast_dev_run``, ``overfit_batches``, and limits that were not given."""
    from espnet3_lite.distributed.rank import rank_zero_info  # it imports torch

    if batches := int(settings["fast_dev_run"]):
        settings.update({f"limit_{prefix}_batches": batches for prefix in ("train", "val", "test", "predict")})
        settings.update(
            max_epochs=1, max_steps=batches, num_sanity_val_steps=0, val_check_interval=1.0,
            check_val_every_n_epoch=1, logger=False, enable_checkpointing=False,
        )  # fmt: skip
        rank_zero_info("Running in `fast_dev_run` mode: %d batch(es) of each loader, no logs, no checkpoints", batches)
    if settings["overfit_batches"]:
        settings["limit_train_batches"] = settings["limit_val_batches"] = settings["overfit_batches"]
    if settings["max_epochs"] is None:
        limited_otherwise = settings["max_steps"] != -1 or settings["max_time"] is not None
        settings["max_epochs"] = -1 if limited_otherwise else DEFAULT_EPOCHS
    if settings["min_epochs"] is None:
        settings["min_epochs"] = 1 if settings["min_steps"] is not None else 0
    settings["max_time"] = parse_duration(settings["max_time"])
    wait = settings["dist_timeout"]
    settings["dist_timeout"] = timedelta(seconds=wait) if is_number(wait) else parse_duration(wait)
