"""The keys of a training configuration as data: what each may be, what is known, what is refused.

Here: tables, and the kinds of value they name. Not here: code that reads them (`schema`), and what keys say
    about each other (`rules`).
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a value may be, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.words} or {other.words}", lambda value: self.accepts(value) or other.accepts(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(minimum: int) -> Kind:
    """A whole number that is not smaller."""
    return Kind(f"a whole number of at least {minimum}", lambda value: _is_whole(value) and value >= minimum)


def number(minimum: float) -> Kind:
    """A number, whole or not, that is not smaller."""
    return Kind(f"a number of at least {minimum}", lambda value: _is_number(value) and value >= minimum)


def one_of(*values: Any) -> Kind:
    """One of these values, of the same type: 1 is not true."""
    words = " or ".join(filter(None, [", ".join(map(repr, values[:-1])), repr(values[-1])]))
    return Kind(words, lambda value: any(value == allowed and type(value) is type(allowed) for allowed in values))


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
PATH = Kind("a path", lambda value: isinstance(value, str) or hasattr(value, "__fspath__"))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
OBJECT = Kind(
    "a mapping with _target_",
    lambda value: "_target_" in value if isinstance(value, dict) else not isinstance(value, str | int | float | list),
)
FRACTION = Kind("a fraction from 0.0 to 1.0", lambda value: isinstance(value, float) and 0 <= value <= 1)
POSITIVE_FRACTION = Kind(
    "a fraction above 0.0 and at most 1.0", lambda value: isinstance(value, float) and 0 < value <= 1
)
DURATION = Kind(
    "a duration 'DD:HH:MM:SS' or a mapping such as {hours: 2}",
    lambda value: (
        isinstance(value, timedelta | dict)
        or (isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None)
    ),
)
DEVICES = Kind(
    "a number of at least 1, -1 or 'auto' for all, or a list of them",
    lambda value: (
        value in (-1, "-1", "auto")
        or (_is_whole(value) and value >= 1)
        or (isinstance(value, str) and value.isdecimal() and int(value) >= 1)
        or (isinstance(value, list) and len(value) > 0)
    ),
)
LIMIT = whole(0) | FRACTION
PRECISION = one_of("32-true", "64-true", "bf16-mixed", "16-mixed", "32", "64", "bf16", "16", 32, 64, 16)

TIME_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")

FIELDS: dict[str, Kind] = {
    "num_device": DEVICES,
    "num_nodes": whole(1),
    "task": TEXT,
    "recipe_dir": PATH,
    "data_dir": PATH,
    "exp_tag": TEXT | whole(0),
    "exp_dir": PATH,
    "stats_dir": PATH,
    "dataset_dir": PATH,
    "create_dataset": MAPPING,
    "dataset": MAPPING | OBJECT,
    "tokenizer": MAPPING,
    "model": MAPPING | OBJECT,
    "model.freeze_param": TEXTS,
    "optimizer": OBJECT,
    "scheduler": OBJECT,
    "scheduler_interval": one_of("step", "epoch"),
    "scheduler_monitor": TEXT,
    "optimizers": MAPPING,
    "optimizers.*": MAPPING,
    "optimizers.*.optimizer": OBJECT,
    "optimizers.*.params": TEXT,
    "optimizers.*.accum_grad_steps": whole(1),
    "optimizers.*.step_every_n_iters": whole(1),
    "optimizers.*.gradient_clip_val": number(0),
    "optimizers.*.gradient_clip_algorithm": one_of("norm", "value"),
    "schedulers": MAPPING,
    "schedulers.*": MAPPING,
    "schedulers.*.scheduler": OBJECT,
    "schedulers.*.interval": one_of("step", "epoch"),
    "schedulers.*.monitor": TEXT,
    "best_model_criterion": LIST,
    "seed": whole(0),
    "init": one_of("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "normal"),
    "parallel": MAPPING,
    "parallel.env": TEXT,
    "parallel.n_workers": whole(1),
    "parallel.options": MAPPING,
    "parallel.allow_overwrite_lock": FLAG,
    "collect_stats_batch_size": whole(1),
    "collect_stats_train_mode": FLAG,
    "dataloader": MAPPING,
    "dataloader.collate_fn": OBJECT,
    "dataloader.train": MAPPING,
    "dataloader.valid": MAPPING,
    "sampler": OBJECT,
    "batch_sampler": OBJECT,
    "fit": MAPPING,
    "fit.ckpt_path": PATH,
    "fit.train_dataloaders": OBJECT | LIST,
    "fit.val_dataloaders": OBJECT | LIST,
    "fit.datamodule": OBJECT,
    "trainer": MAPPING,
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda"),
    "trainer.devices": DEVICES,
    "trainer.num_nodes": whole(1),
    "trainer.strategy": one_of("auto", "ddp", "fsdp", "ddp_find_unused_parameters_true"),
    "trainer.precision": PRECISION,
    "trainer.logger": FLAG | OBJECT | LIST,
    "trainer.callbacks": OBJECT | LIST,
    "trainer.max_epochs": whole(-1),
    "trainer.min_epochs": whole(0),
    "trainer.max_steps": whole(-1),
    "trainer.min_steps": whole(0),
    "trainer.max_time": DURATION,
    **{f"trainer.max_time.{unit}": number(0) for unit in TIME_UNITS},
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": LIMIT,
    "trainer.limit_predict_batches": LIMIT,
    "trainer.fast_dev_run": FLAG | whole(0),
    "trainer.overfit_batches": LIMIT,
    "trainer.val_check_interval": whole(1) | POSITIVE_FRACTION,
    "trainer.check_val_every_n_epoch": whole(1),
    "trainer.num_sanity_val_steps": whole(-1),
    "trainer.log_every_n_steps": whole(0),
    "trainer.enable_checkpointing": FLAG,
    "trainer.enable_progress_bar": FLAG,
    "trainer.enable_model_summary": FLAG,
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": number(0),
    "trainer.gradient_clip_algorithm": one_of("norm", "value"),
    "trainer.deterministic": FLAG | one_of("warn"),
    "trainer.benchmark": FLAG,
    "trainer.inference_mode": FLAG,
    "trainer.use_distributed_sampler": FLAG,
    "trainer.detect_anomaly": FLAG,
    "trainer.reload_dataloaders_every_n_epochs": whole(0),
    "trainer.default_root_dir": PATH,
    "trainer.check_grad_finite": FLAG,
    "trainer.async_save": FLAG,
    "trainer.auto_resume": FLAG,
    "trainer.compile": FLAG | MAPPING,
    **{f"dataloader.{split}.{key}": kind for split in ("train", "valid") for key, kind in {
        "iter_factory": OBJECT,
        "iter_factory.batches": MAPPING,
        "iter_factory.num_iters_per_epoch": whole(1),
        "iter_factory.shuffle": FLAG,
        "batch_distribution": one_of("per_gpu", "global"),
        "total_shards": whole(1),
        "dist_world_size": whole(1),
        "batch_size": whole(1),
        "num_workers": whole(0),
        "shuffle": FLAG,
        "drop_last": FLAG,
    }.items()},
}  # fmt: skip
"""Each known key and what its value may be; ``*`` stands for any name. null counts as absent everywhere."""

BATCH_SAMPLER: dict[str, Kind] = {
    "type": one_of("unsorted", "sorted", "folded", "length", "numel"),
    "shape_files": TEXTS,
    "batch_size": whole(1),
    "batch_bins": whole(1),
    "min_batch_size": whole(0),
    "sort_in_batch": one_of("ascending", "descending"),
    "sort_batch": one_of("ascending", "descending"),
    "drop_last": FLAG,
    "padding": FLAG,
    "fold_lengths": LIST,
    "utt2category_file": PATH,
}
"""The keys of ``iter_factory.batches`` where it names no sampler of the user's own."""

TRAINER_ARGUMENTS = frozenset(
    path.split(".")[1] for path in FIELDS if path.startswith("trainer.")
) | {"profiler", "plugins"}  # fmt: skip
"""The Trainer's documented arguments, for who does not pass their own list to `check_config`."""

_LOADER_KEYS = frozenset(
    "sampler batch_sampler pin_memory timeout worker_init_fn multiprocessing_context generator "
    "prefetch_factor persistent_workers pin_memory_device in_order dataset collate_fn".split()
)
MORE_KEYS: dict[str, Collection[str]] = {"dataloader.train": _LOADER_KEYS, "dataloader.valid": _LOADER_KEYS}
"""Keys that are known without a kind of their own."""

CLOSED = (
    "trainer",
    "trainer.max_time",
    "parallel",
    "optimizers.*",
    "schedulers.*",
    "dataloader",
    "dataloader.train",
    "dataloader.valid",
    "fit",
)
"""Mappings in which an unknown key is a mistake. Elsewhere (``model``, top level) keys are the user's own."""

REFUSED: dict[str, str] = {
    "trainer.plugins": "plugins are Lightning's own; leave it out",
    "trainer.profiler": "there is no profiler; wrap the run in torch.profiler.profile(), or leave it out",
    "trainer.sync_batchnorm": "use torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) in the model",
    "trainer.barebones": "set logger, enable_checkpointing and enable_progress_bar to false",
    "trainer.model_registry": "there is no model registry; leave it out",
    "trainer.enable_autolog_hparams": "log them with a logger's log_hyperparams; leave it out",
    "dataloader.train.multiple_iterator": "use sharded data sets (total_shards, dist_world_size)",
    "dataloader.valid.multiple_iterator": "use sharded data sets (total_shards, dist_world_size)",
    "dataloader.train.num_iters_per_epoch": "it belongs under iter_factory",
    "dataloader.valid.num_iters_per_epoch": "it belongs under iter_factory",
    "fit.weights_only": "checkpoints are always read with weights_only=True; leave it out",
    "fit.model": "the model is built from the key model",
}
"""Keys that Lightning or ESPnet know and we do not, with what to do instead. false and null are let pass."""

INSTEAD: dict[str, tuple[tuple[str, str], ...]] = {
    "trainer.strategy": (
        ("deepspeed", "; DeepSpeed is not supported: use fsdp with one optimizer, ddp with several"),
        ("ddp_find_unused_parameters_false", "; did you mean 'ddp'? It looks for no unused parameters"),
        ("'find_unused_parameters': true", "; write ddp_find_unused_parameters_true"),
        ("ddpstrategy", "; write ddp"),
        ("fsdpstrategy", "; write fsdp"),
    ),
    "trainer.precision": (("true", "; for half precision use bf16-mixed or 16-mixed"),),
}
"""For values that hold a certain word, what to use instead; the first that fits is said."""
