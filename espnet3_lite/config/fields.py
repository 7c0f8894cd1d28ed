"""The keys of a training configuration as data: what each may be, what is known, what is refused.

Here: tables. Those of ``trainer`` come from the trainer's own table (`trainer.settings`).
Not here: code that reads them (`schema`), and what keys say about each other (`rules`).
"""

from collections.abc import Collection

from espnet3_lite.checks.value_kinds import FLAG, LIST, MAPPING, OBJECT, PATH, Kind, instead, number, one_of, whole
from espnet3_lite.trainer.settings import REFUSED as REFUSED_BY_THE_TRAINER
from espnet3_lite.trainer.settings import SETTINGS

TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
#: What makes a batch of samples.
COLLATE = Kind(OBJECT.words, OBJECT.accepts, lambda value: (
    f"; for the function itself write {{_target_: {value}, _partial_: true}}" if isinstance(value, str) else ""
))  # fmt: skip
PROBABILITY = Kind("a number from 0 to 1", lambda value: number(0).accepts(value) and value <= 1)


TIME_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")

FIELDS: dict[str, Kind] = {
    "num_device": SETTINGS["devices"].kind,
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
    "freeze_param": TEXTS,
    "init_param": TEXTS,
    "ignore_init_mismatch": FLAG,
    "optimizer": OBJECT,
    "scheduler": OBJECT,
    "scheduler_interval": one_of("step", "epoch"),
    "scheduler_monitor": TEXT,
    "accumulate_by_weight": FLAG,
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
    "parallel.env": one_of("local", "local_gpu", hint=instead(
        ("", "; take local with n_workers processes, or torchrun under the cluster's own scheduler"))),
    "parallel.n_workers": whole(1),
    "parallel.options": MAPPING,
    "parallel.allow_overwrite_lock": FLAG,
    "collect_stats_batch_size": whole(1),
    "collect_stats_train_mode": FLAG,
    "dataloader": MAPPING,
    "dataloader.collate_fn": COLLATE,
    "dataloader.train": MAPPING,
    "dataloader.valid": MAPPING,
    "sampler": OBJECT,
    "batch_sampler": OBJECT,
    "fit": MAPPING,
    "fit.ckpt_path": PATH,
    "fit.override_optimizer": FLAG,
    "fit.train_dataloaders": OBJECT | LIST,
    "fit.val_dataloaders": OBJECT | LIST,
    "fit.datamodule": OBJECT,
    "trainer": MAPPING,
    **{f"trainer.{name}": setting.kind for name, setting in SETTINGS.items()},
    **{f"trainer.max_time.{unit}": number(0) for unit in TIME_UNITS},
    "trainer.gan": MAPPING,
    "trainer.gan.generator_first": FLAG,
    "trainer.gan.skip_discriminator_prob": PROBABILITY,
    "trainer.gan.no_forward_run": FLAG,
    **{f"dataloader.{split}.{key}": kind for split in ("train", "valid") for key, kind in {
        "iter_factory": OBJECT,
        "iter_factory.batches": MAPPING,
        "iter_factory.collate_fn": COLLATE,
        "collate_fn": COLLATE,
        "iter_factory.num_iters_per_epoch": whole(1),
        "iter_factory.shuffle": FLAG,
        "batch_distribution": one_of("per_gpu", "global"),
        "total_shards": whole(1),
        "num_shards": one_of(1, hint=instead(("", "; shards are given by total_shards and dist_world_size"))),
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
    "batch_bins": whole(0),
    "min_batch_size": whole(0),
    "sort_in_batch": one_of("ascending", "descending"),
    "sort_batch": one_of("ascending", "descending"),
    "drop_last": FLAG,
    "padding": FLAG,
    "fold_lengths": LIST,
    "utt2category_file": PATH,
}
"""The keys of ``iter_factory.batches`` where it names no sampler of the user's own."""

_LOADER_KEYS = frozenset(
    "sampler batch_sampler pin_memory timeout worker_init_fn multiprocessing_context generator "
    "prefetch_factor persistent_workers pin_memory_device in_order dataset".split()
)
MORE_KEYS: dict[str, Collection[str]] = {"dataloader.train": _LOADER_KEYS, "dataloader.valid": _LOADER_KEYS}
"""Keys that are known without a kind of their own."""

CLOSED = (
    "trainer",
    "trainer.max_time",
    "trainer.gan",
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
    **{f"trainer.{name}": instead for name, instead in REFUSED_BY_THE_TRAINER.items()},
    "dataloader.train.multiple_iterator": "use sharded data sets (total_shards, dist_world_size)",
    "dataloader.valid.multiple_iterator": "use sharded data sets (total_shards, dist_world_size)",
    "dataloader.train.num_iters_per_epoch": "it belongs under iter_factory",
    "dataloader.valid.num_iters_per_epoch": "it belongs under iter_factory",
    **{
        f"dataloader.{split}.iter_factory.distributed_batch_mode": (
            "write batch_distribution: per_gpu or global, beside iter_factory"
        )
        for split in ("train", "valid")
    },
    "fit.weights_only": "checkpoints are always read with weights_only=True; leave it out",
    "fit.model": "the model is built from the key model",
}
"""Keys that Lightning or ESPnet know and we do not, with what to do instead. false and null are let pass."""
