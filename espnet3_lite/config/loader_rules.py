"""What the keys of ``dataloader`` say about each other and about those beside it: one function a rule, as in `rules`.

What a loader is built of, and what only its data set tells, is checked when it is built (`espnet.data.loader`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from espnet3_lite.config.fields import BATCH_SAMPLER
from espnet3_lite.config.rules import is_resolved
from espnet3_lite.config.yaml_text import KeyPath

if TYPE_CHECKING:
    from torch.nn import Module

    from espnet3_lite.config.schema import Report


def _splits(report: Report) -> Iterable[tuple[KeyPath, dict]]:
    """The blocks ``dataloader.train`` and ``dataloader.valid``, as far as they are mappings."""
    dataloader = report.settings.get("dataloader")
    if not isinstance(dataloader, dict):
        return
    for split in ("train", "valid"):
        if isinstance(block := dataloader.get(split), dict):
            yield ("dataloader", split), block


def batch_samplers(report: Report, module: Module | None) -> None:
    """``iter_factory.batches`` has keys that ESPnet's samplers take, and those that its type needs."""
    for path, block in _splits(report):
        factory = block.get("iter_factory")
        batches = factory.get("batches") if isinstance(factory, dict) else None
        if not isinstance(batches, dict):
            continue
        if not str(batches.get("_target_", "build_batch_sampler")).endswith("build_batch_sampler"):
            continue  # a sampler of the user's own
        path = (*path, "iter_factory", "batches")
        for key, value in batches.items():
            if key in BATCH_SAMPLER:
                report.check_value((*path, key), value, BATCH_SAMPLER[key])
            elif key != "_target_":
                report.check_known((*path, key), value, BATCH_SAMPLER)
        kind = batches.get("type")
        needed = {"folded": ("batch_size", "fold_lengths"), "length": ("batch_bins",), "numel": ("batch_bins",)}
        for key in ("type", "shape_files", *needed.get(kind if isinstance(kind, str) else "", ())):
            if key not in batches:
                report.add(path, f"the key {key!r} is missing" + (f", which type: {kind} needs" if kind else ""))
        if kind in ("length", "numel") and batches.get("batch_bins") == 0:
            report.add((*path, "batch_bins"), f"0 is not a whole number of at least 1, which type: {kind} needs")
        files, folds = batches.get("shape_files"), batches.get("fold_lengths")
        if kind == "folded" and isinstance(files, list) and isinstance(folds, list) and len(files) != len(folds):
            report.add((*path, "fold_lengths"), f"{folds!r} is not one length for each of the {len(files)} shape_files")


def whole_batches_or_parts(report: Report, module: Module | None) -> None:
    """``batch_distribution: global`` needs batches that all ranks know: an ``iter_factory``'s."""
    for path, block in _splits(report):
        factory = block.get("iter_factory")
        if block.get("batch_distribution") != "global" or not is_resolved(factory):
            continue
        path = (*path, "batch_distribution")
        if factory is None:
            report.add(path, "'global' needs an iter_factory; without one there is per_gpu only")
        elif isinstance(factory, dict) and factory.get("shuffle_within_batch"):
            report.add(path, "'global' does not go with iter_factory.shuffle_within_batch: true; remove one of them")


def one_order(report: Report, module: Module | None) -> None:
    """``sampler`` or ``batch_sampler`` says what an epoch is, and then nothing else does."""
    settings = report.settings
    if "sampler" in settings and "batch_sampler" in settings:
        report.add(("batch_sampler",), "stands beside 'sampler'; keep one of the two")
    for path, block in _splits(report):
        if "iter_factory" in block:
            continue
        for name, harmless in (
            ("sampler", {"shuffle": False}),
            ("batch_sampler", {"shuffle": False, "drop_last": False, "batch_size": 1}),
        ):
            for key, value in harmless.items() if name in settings else ():
                given = block.get(key, value)
                if given != value and is_resolved(given):
                    report.add((*path, key), f"{given!r} does not go with the {name!r} at the top; leave it out")


def validation(report: Report, module: Module | None) -> None:
    """Where the configuration describes the loaders, it describes the validation's, or says that there is none."""
    settings = report.settings
    trainer, fit = settings.get("trainer"), settings.get("fit")
    limit = trainer.get("limit_val_batches") if isinstance(trainer, dict) else None
    given = isinstance(fit, dict) and ("val_dataloaders" in fit or "datamodule" in fit)
    dataloader = settings.get("dataloader")
    if module is None and isinstance(dataloader, dict) and "train" in dataloader and "valid" not in dataloader:
        if not given and limit != 0 and is_resolved(limit):
            report.add(("dataloader",), "the key 'valid' is missing; to train without validation, set "
                       "trainer.limit_val_batches: 0")  # fmt: skip


LOADER_RULES: tuple[Callable[[Report, Module | None], None], ...] = (
    batch_samplers,
    whole_batches_or_parts,
    one_order,
    validation,
)
"""The rules, in the order in which their complaints are listed."""
