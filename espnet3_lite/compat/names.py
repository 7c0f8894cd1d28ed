"""The tables behind this package: each of Lightning's and ESPnet3's names with ours, and what was left out on purpose.

A name is imported when it is first used. `served` makes a module's ``__getattr__``, ``__dir__`` and ``__all__`` of a
table.
"""

from __future__ import annotations

import abc
import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from espnet3_lite.espnet.import_aliases import HOMES as _DATA_HOMES
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.version import CHECKPOINT_FORMAT

ROOT = "espnet3_lite.compat"
#: How Lightning's packages begin; what follows is a path in this package.
PACKAGES = re.compile(
    r"(lightning\.pytorch|pytorch_lightning|lightning\.fabric|lightning_fabric|lightning_utilities\.core|lightning)"
    r"(?=\.|$)"
)

#: Those of them that have no trainer, and their classes that are another one's bases there.
_FABRIC, _OF_FABRIC = re.compile(r"lightning(\.|_)fabric\."), {"Logger": "FabricLogger"}


def _of(package: str) -> dict[str, str]:
    """All public names of one of our packages, at home there."""
    return {name: package for name in importlib.import_module(f"espnet3_lite.{package}").__all__}


_RANKS = {
    **{f"rank_zero_{name}": "distributed.rank" for name in ("warn", "info")},
    **{f"rank_zero_{name}": "compat.utilities.functions" for name in ("only", "debug", "deprecation")},
    "rank_prefixed_message": "compat.utilities.functions",
}
_STATES = {name: "trainer.states" for name in ("RunningStage", "TrainerFn", "TrainerState", "TrainerStatus")}
_TYPES = {
    name: "compat.utilities.types"
    for name in (
        "STEP_OUTPUT", "EPOCH_OUTPUT", "TRAIN_DATALOADERS", "EVAL_DATALOADERS", "LRSchedulerTypeUnion",
        "LRSchedulerTypeTuple", "LRSchedulerPLType", "OptimizerConfig", "OptimizerLRScheduler",
        "OptimizerLRSchedulerConfig", "LRSchedulerConfigType", "LRSchedulerConfig", "_MAP_LOCATION_TYPE", "_OUT_DICT",
        "_PATH", "_DEVICE", "_EVALUATE_OUTPUT", "_PREDICT_OUTPUT",
    )
}  # fmt: skip
_UTILITIES = {
    **_RANKS,
    **_STATES,
    **_TYPES,
    "apply_to_collection": "compat.utilities.functions",
    "move_data_to_device": "compat.utilities.functions",
    "grad_norm": "compat.utilities.functions",
    "garbage_collection_cuda": "compat.utilities.functions",
    "isolate_rng": "compat.utilities.functions",
    "PossibleUserWarning": "compat.utilities.functions",
    "disable_possible_user_warnings": "compat.utilities.functions",
    "is_overridden": "compat.utilities.functions",
    "get_filesystem": "compat.utilities.functions",
    "get_init_args": "compat.utilities.functions",
    "_AcceleratorConnector": "compat.utilities.functions",
    **dict.fromkeys(
        ("_flatten_dict", "_sanitize_callable_params", "_sanitize_params", "_convert_json_serializable"),
        "compat.utilities.functions",
    ),
    "_add_prefix": "loggers.base:with_prefix",
    "_convert_params": "loggers.base:as_dict",
    "is_oom_error": "callbacks.batch_size_finder:is_out_of_memory",
    "_load": "checkpoint.files:load_checkpoint",
    "_load_from_checkpoint": "compat.utilities.functions",
    "_is_local_file_protocol": "compat.utilities.functions",
    "_jit_is_scripting": "compat.utilities.functions",
    "_scan_checkpoints": "compat.utilities.functions",
    "_logger": "compat.utilities.functions",
    "Interval": "compat.utilities.functions",
    "package_available": "compat.utilities.functions",
    "num_cuda_devices": "compat.utilities.functions",
    "HyperparametersMixin": "module.hparams",
    "seed_everything": "seed",
    "AttributeDict": "module.hparams",
    "MisconfigurationException": "exceptions",
    "summarize": "callbacks.model_summary",
}

#: For each module of this package its names, and where each is: a module of ours, or ``module:name``.
HOMES: dict[str, dict[str, str]] = {
    "": {
        "install": "compat.run",
        "Trainer": "trainer.trainer",
        "LightningModule": "module.lite_module:LiteModule",
        "LightningDataModule": "module.data_module:LiteDataModule",
        "LightningOptimizer": "optim.manual_optimization:ManualOptimizer",
        **_UTILITIES,
        "ESPnetLightningModule": "espnet.module:ESPnetModule",
        "ESPnet3LightningTrainer": "espnet.trainer:ESPnetTrainer",
        "OptimizationStep": "optim.slots",
        "AbsESPnetModel": "espnet.task_models",
        "initialize": "espnet.initialization",
        **_DATA_HOMES,
        **_of("callbacks"),
        **_of("loggers"),
        **_of("strategies"),
        **_of("espnet.schedulers"),
    },
    "callbacks": {
        **_of("callbacks"),
        "RichProgressBarTheme": "callbacks.rich_progress",
        "Tqdm": "callbacks.showing.tqdm_bars",
        "WriteInterval": "callbacks.prediction_writer",
        "get_standard_metrics": "compat.utilities.functions",
    },
    "strategies": _of("strategies"),
    "loggers": {
        **_of("loggers"),
        "rank_zero_experiment": "loggers.base",
        "FabricLogger": "loggers.base",
        **_RANKS,
        "rank_zero_only": "compat.utilities.functions",
    },
    "utilities": {**_UTILITIES, "ModelSummary": "callbacks.model_summary:summarize"},
    "tuner": {"Tuner": "compat.tuner", "_LRFinder": "compat.tuner"},
    "utilities.types": {name: "" for name in _TYPES},
}

#: Lightning's inner modules by their last names: what is in one of them is found in the module that it is in.
INNER = frozenset(
    "pytorch core datamodule module lightning optimizer saving trainer states "
    "base batch_size_finder callback checkpoint device_stats_monitor early_stopping finetuning "
    "gradient_accumulation_scheduler lambda_function lr_finder lr_monitor model_checkpoint model_summary "
    "prediction_writer progress progress_bar rich_progress tqdm_progress pruning quantization rich_model_summary "
    "stochastic_weight_avg timer weight_averaging csv_logs logger mlflow tensorboard wandb ddp fsdp strategy "
    "warnings mixins hparams_mixin cloud_io hooks tuning connectors logger_connector result accelerator_connector "
    "apply_func combined_loader data enums imports signature_utils automatic checkpoint_connector "
    "exceptions grads memory model_helpers parsing rank_zero distributed seed".split()
)

_WRITE_YOUR_OWN = "write a class with `log_metrics` and `log_hyperparams`, which `Trainer(logger=...)` takes"
_PLUGIN = "plugins are Lightning's own; use Trainer's arguments, such as `precision` and `strategy`"
_PROFILER = "use `Trainer(profiler='simple')` or 'pytorch', or torch.profiler"
_NOT_HERE = "ddp and fsdp are what there is, see `espnet3_lite.strategies`"
#: Classes that are Lightning's own business, and that packages derive from all the same.
_INNER_CLASS = re.compile("_[A-Z]")
#: What Lightning has and this package has not, each with what to do instead.
LEFT_OUT: dict[str, str] = {
    "LightningCLI": "use `espnet3-lite train CONFIG`, or `espnet3_lite.load_config` and `instantiate`",
    "LightningArgumentParser": "use `espnet3_lite.load_config`",
    "cli": "use `espnet3-lite train CONFIG`, or `espnet3_lite.load_config` and `instantiate`",
    **dict.fromkeys(
        (
            "plugins", "CheckpointIO", "AsyncCheckpointIO", "TorchCheckpointIO", "LayerSync", "MixedPrecision",
            "MixedPrecisionPlugin", "DoublePrecision", "HalfPrecision", "BitsandbytesPrecision",
            "TransformerEnginePrecision", "ClusterEnvironment", "LightningEnvironment", "SLURMEnvironment",
            "TorchElasticEnvironment", "DDPPlugin",
        ),
        _PLUGIN,
    ),
    "TorchSyncBatchNorm": "use `Trainer(sync_batchnorm=True)`",
    **dict.fromkeys(("profilers", "profiler", "SimpleProfiler", "AdvancedProfiler", "PyTorchProfiler"), _PROFILER),
    **dict.fromkeys(
        (
            "DeepSpeedStrategy", "ModelParallelStrategy", "SingleDeviceStrategy", "ParallelStrategy", "XLAStrategy",
            "SingleDeviceXLAStrategy", "StrategyRegistry",
        ),
        _NOT_HERE,
    ),
    **dict.fromkeys(
        ("CometLogger", "NeptuneLogger", "LitLogger", "TestTubeLogger", "comet", "neptune", "litlogger"),
        _WRITE_YOUR_OWN,
    ),
    "OnExceptionCheckpoint": "use `ModelCheckpoint(save_on_exception=True)`",
    "SpikeDetection": "write a `Callback` with `on_train_batch_end`; what is not finite is skipped anyway",
    "ThroughputMonitor": "use `MetricsLogger`, which writes times, or `DeviceStatsMonitor`",
    "XLAStatsMonitor": "use `DeviceStatsMonitor`",
    **dict.fromkeys(
        ("ClosureResult", "is_param_in_hook_signature"),
        "Lightning's inner parts have no counterpart; the loop here is `espnet3_lite/loops/fit.py`",
    ),
    "CombinedLoader": "for training combine the data sets; evaluation takes a list or a dict of loaders",
    **dict.fromkeys(("fabric", "Fabric", "LightningLite"), "write the loop with torch alone, or a `LightningModule`"),
    **dict.fromkeys(
        ("call", "loops", "overrides", "accelerators", "demos", "serve", "tests"),
        "Lightning's inner parts have no counterpart; the loop here is `espnet3_lite/loops/fit.py`",
    ),
}  # fmt: skip


def reason_of(name: str) -> str:
    """Why a name of Lightning's is not here, as a sentence; empty where nothing is known of it.

    >>> reason_of("LightningCLI")
    '`LightningCLI` is left out: use `espnet3-lite train CONFIG`, or `espnet3_lite.load_config` and `instantiate`'
    """
    return f"`{name}` is left out: {LEFT_OUT[name]}" if name in LEFT_OUT else ""


def home_of(module: str) -> str | None:
    """Which module here stands for one of Lightning's: its key in `HOMES`; None where nothing is known of it.

    >>> home_of("pytorch_lightning.callbacks.timer"), home_of("lightning.pytorch"), home_of("lightning.app")
    ('callbacks', '', None)
    """
    if not PACKAGES.match(module):
        return None
    home = ""
    for part in _parts(module):
        if part in LEFT_OUT:
            break  # its classes may be imported, and raise when they are used
        if (deeper := f"{home}.{part}".lstrip(".")) in HOMES:
            home = deeper
        elif part in HOMES:
            home = part  # `loggers.utilities`
        elif part not in INNER:
            return None
    return home


def find(module: str, name: str) -> Any:
    """What stands for a name of one of Lightning's modules; looked for in the utilities and at the top, too.

    Returns:
        Ours; for what was left out on purpose a class that raises when it is used, since a package may import what it
        never uses.

    Raises:
        AttributeError: there is none; the message names the nearest.
    """
    home = home_of(module) or ""
    if name == "__version__":
        return CHECKPOINT_FORMAT
    if name == "__all__":
        return list(HOMES[home])
    name = _OF_FABRIC.get(name, name) if _FABRIC.match(module) else name
    homes = dict.fromkeys((home, "utilities", ""))
    reason = next((part for part in (*_parts(module), name) if part in LEFT_OUT), None)
    if reason is None and _INNER_CLASS.match(name) and not any(name in HOMES[home] for home in homes):
        reason = "loops"
    if reason is not None and not name.startswith("__") and name not in _UTILITIES:
        return LeftOut(name, (), {"__module__": module, "reason": f"`{module}.{name}`: {LEFT_OUT[reason]}"})
    for home in homes:
        if name in HOMES[home]:
            return getattr(importlib.import_module(f"{ROOT}.{home}" if home else ROOT), name)
    known = [known for home in homes for known in HOMES[home]]
    raise AttributeError(f"espnet3_lite has no stand-in for {f'{module}.{name}'!r}{nearest(name, known)}")


def _parts(module: str) -> list[str]:
    """The path of one of Lightning's modules below its package."""
    return [part for part in PACKAGES.sub("", module, count=1).split(".") if part]


class LeftOut(abc.ABCMeta):
    """The type of a class of Lightning's that is not here: it may be imported and derived from, and raises when used.

    >>> find("lightning.pytorch.plugins", "CheckpointIO")()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    espnet3_lite.exceptions.MisconfigurationException: `lightning.pytorch.plugins.CheckpointIO`: plugins are ...
    """

    reason: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise MisconfigurationException(cls.reason)

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(f"{cls.reason}; so it has no {name!r}")


def served(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a module of this package.

    Args:
        module: Its key in `HOMES`.
    """
    homes, package = HOMES[module], f"{ROOT}.{module}" if module else ROOT

    def __getattr__(name: str) -> Any:
        inner = f"{module}.{name}" if module else name
        if home := homes.get(name):
            place, _, original = home.partition(":")
            value = getattr(importlib.import_module(f"espnet3_lite.{place}"), original or name)
        elif inner in HOMES:
            value = importlib.import_module(f"{ROOT}.{inner}")
        elif name in INNER:
            value = sys.modules[package]
        elif name in LEFT_OUT:  # an AttributeError's text would be lost in ``from ... import ...``
            raise ImportError(f"espnet3_lite has no {name!r}: {reason_of(name)}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{nearest(name, homes)}")
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, list(homes)
