"""ESPnet's and Lightning's names for ours, while a recipe's modules are imported and these packages are not installed.

A recipe's ``dataset/dataset.py`` imports `BaseDataset` and `Field` from espnet3, a callback in its ``src`` imports
`Callback` from Lightning, and so do espnet3's own modules where espnet is installed without Lightning. Inside
`espnet_stand_ins`, such an import gives this package's class of the same name; afterwards nothing of the kind seems to
be installed, as before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from espnet3_lite.config import Config, load_config
from espnet3_lite.config.targets import is_installed

_NAMES = {
    "espnet.data.contract": "BaseDataset DatasetBuilder DatasetContractError Field KINDS Kind register_kind",
    "espnet.data.dataset": "CombinedDataset DatasetWithTransform ShardedDataset do_nothing",
    "espnet.data.organizer": "DataOrganizer DatasetConfig",
    "espnet.data.recipe": "instantiate_dataset_reference load_dataset_module",
    "espnet.data.samplers": "AbsSampler FoldedBatchSampler LengthBatchSampler NumElementsBatchSampler "
    "SortedBatchSampler UnsortedBatchSampler build_batch_sampler",
    "espnet.data.iterators": "SequenceIterFactory",
    "espnet.data.collate": "CommonCollateFn",
    "espnet.data.preprocessor": "AbsPreprocessor",
    "espnet.data.loader": "DataLoaderBuilder",
    "espnet.data.collect_stats": "collect_stats",
    "espnet.import_aliases": "load_config_with_defaults",
}
HOMES: dict[str, str] = {name: home for home, names in _NAMES.items() for name in names.split()}
"""ESPnet's names that the data rooms have, each with its module in ``espnet3_lite.espnet.data``."""

_MODULES = tuple(
    f"{package}.{name}"
    for package, names in {
        "espnet3.components.data": "base_dataset collect_stats data_organizer dataloader dataset dataset_builder "
        "dataset_module",
        "espnet3.components": "callbacks.default_callbacks callbacks.ema modeling.lightning_module "
        "modeling.optimization_spec schedulers.linear_warmup_decay trainers.trainer",
        "espnet3.contract": "data field kinds",
        "espnet3.utils": "config_utils",
        "espnet2.train": "abs_espnet_model collate_fn preprocessor",
        "espnet2.schedulers": "abs_scheduler noam_lr warmup_lr warmup_step_lr",
        "espnet2.iterators": "sequence_iter_factory",
        "espnet2.samplers": "abs_sampler build_batch_sampler folded_batch_sampler length_batch_sampler "
        "num_elements_batch_sampler sorted_batch_sampler unsorted_batch_sampler",
    }.items()
    for name in names.split()
)
"""Their modules from which recipes import them. (Lightning's are in the tables of `compat`.)"""
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
_ROOTS = ("espnet2", "espnet3", *LIGHTNING)


@contextmanager
def espnet_stand_ins() -> Iterator[None]:
    """While inside, importing ESPnet's and Lightning's names (those of `espnet3_lite.compat`) gives ours.

    A package that is installed, or stood in for already, is left alone.

    >>> with espnet_stand_ins():
    ...     from espnet3.contract import Field
    ...     from lightning.pytorch.callbacks import Timer
    >>> Field("text", "text").label, Timer.__module__
    ('Text', 'espnet3_lite.callbacks.timer')
    """
    finder = stand_in_for_good()
    set_aside = finder.take_out()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.take_out()
        sys.modules.update(set_aside)


def stand_in_for_good(roots: Sequence[str] | None = None) -> _StandInFinder:
    """The same without an end, for a process that somebody else starts.

    Args:
        roots: Which packages; by default those that are not there.
    """
    finder = _StandInFinder([root for root in _ROOTS if not _is_there(root)] if roots is None else roots)
    sys.meta_path.insert(0, finder)
    return finder


def _is_there(package: str) -> bool:
    """Whether a package is installed or stood in for; a mere folder of that name (a namespace) is neither."""
    return is_installed(package) or isinstance(
        getattr(importlib.util.find_spec(package), "loader", None), _StandInFinder
    )


def load_config_with_defaults(path: str | Path, resolve: bool = True) -> Config:
    """Read the YAML file `path`, by ESPnet3's name; whatever `resolve` says, ``${...}`` is resolved when it is read."""
    return load_config(path)


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty package for each module that has a counterpart here; its attributes come from `compat`."""

    def __init__(self, roots: Sequence[str]):
        self.roots = roots

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in self.roots and _has_counterpart(fullname):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def take_out(self) -> dict[str, ModuleType]:
        """Remove from `sys.modules` what is below the roots, and return it."""
        names = [name for name in sys.modules if name.partition(".")[0] in self.roots]
        return {name: sys.modules.pop(name) for name in names}

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = functools.partial(_ours, module.__name__)


def _tables() -> Any:
    """The tables of names, which import everything that they name, and nothing before it is asked for."""
    return importlib.import_module("espnet3_lite.compat.names")


def _has_counterpart(module: str) -> bool:
    if module.partition(".")[0] in LIGHTNING:
        return _tables().home_of(module) is not None
    return any(f"{known}.".startswith(f"{module}.") for known in _MODULES)


def _ours(module: str, name: str) -> Any:
    inner = f"{module}.{name}"  # as in ``import lightning as L; L.pytorch.callbacks.Timer``
    if name.islower() and not name.startswith("_") and name not in _tables().HOMES[""] and _has_counterpart(inner):
        return importlib.import_module(inner)
    return _tables().find(module, name)
