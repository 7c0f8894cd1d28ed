"""A recipe's own data set: where its module is, how it is loaded, and how it gets into worker processes.

What the class must promise is in `contract.py`; what is done with it, in `organizer.py`.
"""

import copyreg
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

from espnet3_lite.espnet.import_aliases import HOMES, espnet_stand_ins
from espnet3_lite.espnet.recipe_path import put_egs3_first
from espnet3_lite.exceptions import MisconfigurationException, nearest


def load_dataset_module(data_src: str | None = None, recipe_dir: str | Path | None = None) -> ModuleType:
    """Import the module that has a recipe's `Dataset` class.

    Args:
        data_src: ``recipe/task``, which means the module ``egs3.recipe.task.dataset``; or a module's dotted
            path; or None for the recipe at hand.
        recipe_dir: the recipe at hand, whose ``dataset/__init__.py`` (else ``dataset/dataset.py``) is loaded.

    Raises:
        MisconfigurationException: there is no such module, or it needs something that is not installed.
    """
    source = repr(data_src) if data_src else f"{recipe_dir}/dataset"
    try:
        with espnet_stand_ins():
            if data_src is None:
                return _load_local(recipe_dir)
            if "/" not in data_src:
                return importlib.import_module(data_src)
            put_egs3_first(recipe_dir or ".")
            return importlib.import_module(".".join(["egs3", *data_src.replace("-", "_").split("/"), "dataset"]))
    except ImportError as error:
        hint = ""
        if (error.name or "").partition(".")[0] in ("espnet2", "espnet3"):
            hint = (
                "; espnet is not installed, and espnet3_lite stands in for its data classes only"
                f" ({', '.join(sorted(HOMES))})"
            )
        elif (error.name or "").partition(".")[0] == "egs3":
            hint = "; put the folder that holds egs3/ on PYTHONPATH, or leave data_src out and set recipe_dir"
        raise MisconfigurationException(f"cannot import the data set {source}: {error}{hint}") from error


def instantiate_dataset_reference(
    config: Mapping[str, Any], recipe_dir: str | Path | None = None, where: str = "dataset"
) -> Dataset:
    """Build ``Dataset(**data_src_args)`` of the module that an entry names.

    Args:
        config: an entry; `data_src` and `data_src_args` are read, the rest is not looked at.
        recipe_dir: see `load_dataset_module`.
        where: the entry's path in the config, for errors.

    Raises:
        MisconfigurationException: the entry names no module, or one without a fitting `Dataset`.
    """
    data_src, arguments = config.get("data_src"), config.get("data_src_args")
    if data_src is not None and not isinstance(data_src, str):
        raise MisconfigurationException(
            f"{where}.data_src must be 'recipe/task' or a module's dotted path, got {data_src!r}"
        )
    if arguments is not None and not isinstance(arguments, Mapping):
        raise MisconfigurationException(f"{where}.data_src_args must be a mapping, got {arguments!r}")
    data_src = (data_src or "").strip() or None
    if data_src is None and (recipe_dir is None or _local_file(recipe_dir) is None):
        raise MisconfigurationException(
            f"{where} has no data_src, and there is no dataset/__init__.py in recipe_dir ({recipe_dir}); "
            "set data_src to 'recipe/task' or a module's dotted path, or set dataset.recipe_dir"
        )
    recipe_dir = None if recipe_dir is None else Path(recipe_dir).resolve()
    module = load_dataset_module(data_src, recipe_dir)
    dataset_class = _dataset_class(module, where)
    # Worker processes cannot import a recipe's module by its name alone: they load it as it was loaded here.
    copyreg.pickle(dataset_class, lambda dataset: _reduce(dataset, data_src, recipe_dir))
    return dataset_class(**(arguments or {}))


def _dataset_class(module: ModuleType, where: str) -> type:
    dataset_class = getattr(module, "Dataset", None)
    if not inspect.isclass(dataset_class):
        raise MisconfigurationException(
            f"{where}: {module.__file__} has no class named Dataset; export the recipe's data set under that name"
            f"{nearest('Dataset', vars(module))}"
        )
    # By name: with espnet installed, the recipe derives from espnet3's own class.
    if all(base.__name__ != "BaseDataset" for base in dataset_class.__mro__):
        raise MisconfigurationException(
            f"{where}: {dataset_class.__qualname__} must inherit BaseDataset and declare `fields`"
        )
    return dataset_class


def _local_file(recipe_dir: str | Path) -> Path | None:
    folder = Path(recipe_dir) / "dataset"
    return next((file for file in (folder / "__init__.py", folder / "dataset.py") if file.is_file()), None)


def _load_local(recipe_dir: str | Path | None) -> ModuleType:
    if recipe_dir is None or (file := _local_file(recipe_dir)) is None:
        raise MisconfigurationException(f"there is no dataset/__init__.py in recipe_dir ({recipe_dir})")
    put_egs3_first(recipe_dir)
    # One name a path, so that the modules of two recipes, both called `dataset`, stay apart.
    name = "_recipe_dataset" + "".join(c if c.isalnum() else "_" for c in str(file.resolve()))
    if name not in sys.modules:
        search = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=search)
        assert spec is not None and spec.loader is not None  # a file's
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]  # half a module is worse than none: the next import would return it
            raise
    return sys.modules[name]


def _reduce(dataset: Dataset, data_src: str | None, recipe_dir: str | Path | None) -> tuple:
    return _rebuild, (data_src, recipe_dir), dataset.__reduce_ex__(2)[2]


def _rebuild(data_src: str | None, recipe_dir: str | Path | None) -> Dataset:
    dataset_class = load_dataset_module(data_src, recipe_dir).Dataset
    return dataset_class.__new__(dataset_class)
