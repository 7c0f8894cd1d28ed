"""ESPnet's names for ours, while a recipe's module is imported and espnet itself is not installed.

A recipe's ``dataset/dataset.py`` imports `BaseDataset` and `Field` from espnet3. Inside `espnet_stand_ins`,
such an import gives this package's class of the same name; afterwards nothing of espnet seems to be
installed, as before.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from espnet3_lite.config import Config, load_config

HOMES: dict[str, str] = {
    **dict.fromkeys(
        ("BaseDataset", "DatasetBuilder", "DatasetContractError", "Field", "KINDS", "Kind", "register_kind"),
        "contract",
    ),
    **dict.fromkeys(("CombinedDataset", "DatasetWithTransform", "ShardedDataset", "do_nothing"), "dataset"),
    **dict.fromkeys(("DataOrganizer", "DatasetConfig"), "organizer"),
    **dict.fromkeys(("instantiate_dataset_reference", "load_dataset_module"), "recipe"),
    **dict.fromkeys(
        (
            "AbsSampler",
            "FoldedBatchSampler",
            "LengthBatchSampler",
            "NumElementsBatchSampler",
            "SortedBatchSampler",
            "UnsortedBatchSampler",
            "build_batch_sampler",
        ),
        "samplers",
    ),
    "SequenceIterFactory": "iterators",
    "CommonCollateFn": "collate",
    "AbsPreprocessor": "preprocessor",
    "DataLoaderBuilder": "loader",
    "collect_stats": "collect_stats",
    "load_config_with_defaults": "stand_ins",
}
"""ESPnet's names that the data rooms have, each with its module in ``espnet3_lite.data``."""


@contextmanager
def espnet_stand_ins() -> Iterator[None]:
    """While inside, ``from espnet3... import name`` and ``from espnet2... import name`` find the names in
    `HOMES`.

    The module path before the name does not matter. A package that is installed, or stood in for already, is
    left alone.

    >>> with espnet_stand_ins():
    ...     from espnet3.contract import Field
    >>> Field("text", "text").label
    'Text'
    """
    finder = _StandInFinder(
        root
        for root in ("espnet2", "espnet3")
        if root not in sys.modules and importlib.util.find_spec(root) is None
    )
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.roots]:
            del sys.modules[name]


def load_config_with_defaults(path: str | Path, resolve: bool = True) -> Config:
    """ESPnet3's way to read a YAML file; whatever `resolve` says, ``${...}`` is resolved when it is read."""
    return load_config(path)


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty package for every module below some roots; attributes come from `HOMES`."""

    def __init__(self, roots: Iterator[str]):
        self.roots = frozenset(roots)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _ours


def _ours(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"espnet3_lite has nothing that stands in for {name!r}")
    return getattr(importlib.import_module(f"espnet3_lite.data.{HOMES[name]}"), name)
