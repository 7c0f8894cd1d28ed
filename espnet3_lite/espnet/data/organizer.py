"""A config's `dataset` block: the training, validation and test sets of a run, with their preprocessors.

How a data set's module is loaded: `recipe.py`. How samples are fetched: `dataset.py`. How they get into
batches: `loader.py`.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from espnet3_lite.config.targets import find_target, instantiate
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.espnet.data.dataset import CombinedDataset, DatasetWithTransform, checked_callable, do_nothing
from espnet3_lite.espnet.data.recipe import instantiate_dataset_reference
from espnet3_lite.exceptions import MisconfigurationException, nearest

logger = logging.getLogger(__name__)
_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass
class DatasetConfig:
    """One entry of a split; a mapping with the same keys does as well.

    Args:
        name: What a test set is called in the results.
        data_src: ``recipe/task``, or a module's dotted path; by default the data set of `dataset.recipe_dir`.
        data_src_args: Arguments of the data set.
        transform: A function of a sample, called before the preprocessor; by default none.
        split: Not read; older recipes have it.

    >>> DatasetConfig(data_src="mini_an4/esp2_asr", data_src_args={"split": "test"}).data_src
    'mini_an4/esp2_asr'
    """

    name: str | None = None
    data_src: str | None = None
    data_src_args: dict[str, Any] | None = None
    transform: Any = None
    split: str | None = None


def data_sets(config: Mapping[str, Any]) -> Any:
    """What has the data sets of a configuration as `train`, `valid` and `test`; None where it names none.

    ``dataset`` is a `DataOrganizer` or another class with these attributes, by its ``_target_``; or it has the data
    sets themselves: any torch data set, by its ``_target_``, for each of ``train``, ``valid`` and ``test`` (a mapping
    gives several test sets by name).

    Raises:
        MisconfigurationException: what is given for a split is not a data set, or a data set for no split.

    >>> data_sets({"dataset": {"train": {"_target_": "builtins.range", "_args_": [3]}}}).train
    range(0, 3)
    """
    described = config.get("dataset")
    built = instantiate(described) if described else None
    if not isinstance(built, Mapping):
        return built
    for name, value in built.items():
        if name not in _SPLITS and hasattr(value, "__getitem__") and not isinstance(value, (Mapping, list, str)):
            several = f". Several test sets are named below one key: `test: {{clean: {{_target_: ...}}, {name}: ...}}`"
            hint = several if str(name).startswith("test") else nearest(name, _SPLITS)
            raise MisconfigurationException(
                f"dataset.{name}: there is no such split; there are {', '.join(_SPLITS)}{hint}"
            )
    given = {split: built.get(split) for split in _SPLITS}
    for split, value in given.items():
        for part in value.values() if isinstance(value, Mapping) and split == "test" else [value]:
            is_set = hasattr(part, "__getitem__") or hasattr(part, "__iter__")
            if part is not None and (not is_set or isinstance(part, (Mapping, list, str))):
                several = "several test sets as a mapping that names them, " if split == "test" else ""
                raise MisconfigurationException(
                    f"dataset.{split}: {part!r} is not a data set; give one by its `_target_`, {several}or name an "
                    f"organizer of such entries in `dataset._target_`: espnet3_lite.compat.DataOrganizer, with "
                    f"`_recursive_: false`"
                )
    return SimpleNamespace(**given)


class DataOrganizer:
    """The data sets of a run, built from a config's `dataset` block.

    Args:
        train: entries that together make the training set. An entry has `data_src` and `data_src_args` (see
            `instantiate_dataset_reference`), an optional `transform` (a function, or a ``_target_`` that
            gives one), and an optional `name`.
        valid: the same for validation; with `train`, or not at all.
        test: entries that each make a test set of their own, known by its `name`, else its `data_src`, else
            ``local``.
        preprocessor: applied after the transform: None, a function, a ``_target_`` that gives one, or a
            mapping with one for each split under ``train``, ``valid`` and ``test``, into which the other keys
            are merged; there, validation falls back to training's and test to validation's. A preprocessor of
            ESPnet's (`AbsPreprocessor`) is called with the utterance's id and has its ``train`` flag set
            here: true for the training set alone.
        recipe_dir: the recipe whose ``dataset/`` folder serves entries without `data_src`.
        train_mode: false to switch augmentation off in the training set too.

    Attributes:
        train, valid: `CombinedDataset`, or None.
        test: a dict of `DatasetWithTransform` by name; `test_sets` is the same.

    Raises:
        MisconfigurationException: an entry or preprocessor that cannot be built, only one of `train` and
            `valid`, or two test sets of one name.

    >>> DataOrganizer()
    DataOrganizer(train=None, valid=None, test={})
    """

    def __init__(
        self,
        train: Sequence[Mapping[str, Any] | DatasetConfig] | None = None,
        valid: Sequence[Mapping[str, Any] | DatasetConfig] | None = None,
        test: Sequence[Mapping[str, Any] | DatasetConfig] | None = None,
        preprocessor: Any = None,
        recipe_dir: str | Path | None = None,
        train_mode: bool = True,
    ):
        if (train is None) != (valid is None):
            given, missing = ("valid", "train") if train is None else ("train", "valid")
            raise MisconfigurationException(f"dataset.{given} is given without dataset.{missing}; give both or none")
        for split, entries in zip(_SPLITS, (train, valid, test), strict=True):
            if isinstance(entries, (Mapping, str)):
                raise MisconfigurationException(
                    f"dataset.{split} must be a list of entries, each beginning with '- ' in YAML; got {entries!r}"
                )
        self.recipe_dir = recipe_dir
        self._preprocessor_config = preprocessor
        self._used = [split for split, entries in zip(_SPLITS, (train, valid, test), strict=True) if entries]
        preprocessors = self._build_preprocessors(train_mode)
        self.preprocessor = preprocessors["train"]
        self.train = None if train is None else self._combine("train", train, preprocessors["train"])
        self.valid = None if valid is None else self._combine("valid", valid, preprocessors["valid"])
        self.test_sets = self._build_test_sets(test or (), preprocessors["test"])

    @property
    def test(self) -> dict[str, DatasetWithTransform]:
        """The test sets by name."""
        return self.test_sets

    def for_statistics(self, train_mode: bool = False) -> dict[str, CombinedDataset]:
        """``{"train": ..., "valid": ...}`` as collect_stats reads them: with augmentation only if `train_mode` is true.

        The data sets are those of the organizer; only the training set's preprocessor is built anew.
        """
        if self.train is None or self.valid is None:
            raise MisconfigurationException("dataset.train and dataset.valid are needed to collect statistics")
        preprocessor = self._build_preprocessors(train_mode)["train"]
        train = CombinedDataset(
            self.train.datasets,
            [(transform, preprocessor) for transform, _ in self.train.transforms],
            takes_uid(preprocessor),
        )
        return {"train": train, "valid": self.valid}

    def log_summary(self, log: logging.Logger | None = None) -> None:
        """Write a line for each data set to `log` at INFO: its length, transform, preprocessor; several have a sum."""
        log = log or logger
        for split, combined in (("train", self.train), ("valid", self.valid)):
            if combined is None:
                log.info("%s: no data set", split)
                continue
            parts = list(zip(combined.datasets, combined.lengths, combined.transforms, strict=True))
            if len(parts) > 1:
                log.info("%s: %d samples in %d data sets", split, len(combined), len(parts))
            for index, (dataset, length, (transform, preprocessor)) in enumerate(parts):
                name = f"{split}[{index}]" if len(parts) > 1 else split
                _log_dataset(log, name, dataset, length, transform, preprocessor)
        for name, test in self.test_sets.items():
            _log_dataset(log, f"test[{name}]", test.dataset, len(test), test.transform, test.preprocessor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(train={self.train}, valid={self.valid}, test={self.test_sets})"

    def _combine(self, split: str, entries: Sequence, preprocessor: Callable) -> CombinedDataset:
        built = [self._build_entry(f"dataset.{split}[{i}]", entry) for i, entry in enumerate(entries)]
        return CombinedDataset(
            [dataset for _, dataset, _ in built],
            [(transform, preprocessor) for _, _, transform in built],
            takes_uid(preprocessor),
        )

    def _build_test_sets(self, entries: Sequence, preprocessor: Callable) -> dict[str, DatasetWithTransform]:
        test_sets: dict[str, DatasetWithTransform] = {}
        for i, entry in enumerate(entries):
            name, dataset, transform = self._build_entry(f"dataset.test[{i}]", entry)
            if name in test_sets:
                raise MisconfigurationException(
                    f"dataset.test[{i}]: there is a test set {name!r} already; give each entry its own `name`"
                )
            test_sets[name] = DatasetWithTransform(dataset, transform, preprocessor, takes_uid(preprocessor))
        return test_sets

    def _build_entry(self, where: str, entry: Any) -> tuple[str, Any, Callable]:
        """An entry's name, data set and transform."""
        if dataclasses.is_dataclass(entry) and not isinstance(entry, type):
            entry = dataclasses.asdict(entry)
        if not isinstance(entry, Mapping):
            raise MisconfigurationException(f"{where} must be a mapping with data_src and data_src_args, got {entry!r}")
        known = [field.name for field in dataclasses.fields(DatasetConfig)]
        for key in entry:
            if key not in known:
                rank_zero_warn(
                    f"{where}.{key} is ignored; an entry has {', '.join(known)}, and arguments of the data set belong "
                    f"under data_src_args{nearest(key, known)}"
                )
        dataset = instantiate_dataset_reference(entry, self.recipe_dir, where)
        transform = entry.get("transform")
        if isinstance(transform, Mapping):
            transform = instantiate(transform)
        return (
            entry.get("name") or entry.get("data_src") or "local",
            dataset,
            checked_callable("transform", transform),
        )

    def _build_preprocessors(self, train_mode: bool) -> dict[str, Callable]:
        """The preprocessor of each split."""
        config = self._preprocessor_config
        if isinstance(config, Mapping):
            if any(isinstance(config.get(split), Mapping) for split in _SPLITS):
                return self._build_split_preprocessors(config, train_mode)
            train = _build_preprocessor(config, train_mode)
            others = _build_preprocessor(config, False) if takes_uid(train) else train
            return {"train": train, "valid": others, "test": others}
        preprocessor: Any = checked_callable("preprocessor", config)
        if not takes_uid(preprocessor):
            return dict.fromkeys(_SPLITS, preprocessor)
        # The object that was given serves the splits without augmentation, so that its owner can look at it.
        augmenting = copy.deepcopy(preprocessor)
        augmenting.train, preprocessor.train = train_mode, False
        return {"train": augmenting, "valid": preprocessor, "test": preprocessor}

    def _build_split_preprocessors(self, config: Mapping[str, Any], train_mode: bool) -> dict[str, Callable]:
        shared = {key: value for key, value in config.items() if key not in _SPLITS}
        configs = {split: config.get(split) for split in _SPLITS}
        fallbacks = {"train": None, "valid": "train", "test": "valid"}
        for split, fallback in fallbacks.items():
            if configs[split] is None:
                configs[split] = configs[fallback] if fallback else None
                if split in self._used:
                    instead = f"dataset.{split} uses that of {fallback!r}" if fallback else "it has none"
                    rank_zero_warn(f"dataset.preprocessor has no {split!r}: {instead}.")
        return {
            split: do_nothing
            if chosen is None
            else _build_preprocessor(_merged(shared, chosen), train_mode and split == "train")
            for split, chosen in configs.items()
        }


def takes_uid(preprocessor: Callable) -> bool:
    """Whether a preprocessor is ESPnet's: our `AbsPreprocessor`, or espnet's own where that is installed."""
    return is_espnet_preprocessor(type(preprocessor))


def is_espnet_preprocessor(cls: Any) -> bool:
    """Whether a class derives from a class named AbsPreprocessor, here or in espnet."""
    return isinstance(cls, type) and any(base.__name__ == "AbsPreprocessor" for base in cls.__mro__)


def _build_preprocessor(config: Mapping[str, Any], train: bool) -> Callable:
    if "_target_" not in config:
        raise MisconfigurationException(
            "dataset.preprocessor needs a `_target_` that gives a preprocessor; "
            f"it has the keys {sorted(config)}{nearest('_target_', config)}"
        )
    if is_espnet_preprocessor(find_target(config["_target_"])):
        if "train" in config:
            rank_zero_warn(
                f"dataset.preprocessor.train={config['train']!r} is ignored: the organizer sets it, to true "
                "for the training set and to false for the others."
            )
        config = {**config, "train": train}
    return checked_callable("preprocessor", instantiate(config))


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`shared` with `own` over it, mapping by mapping."""
    result = dict(shared)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _log_dataset(
    log: logging.Logger, split: str, dataset: Any, length: int, transform: Callable, preprocessor: Callable
) -> None:
    line = f"{split}: {length} samples of {type(dataset).__qualname__}"
    for role, function in (("transform", transform), ("preprocessor", preprocessor)):
        if function is not do_nothing:
            line += f", {role} {getattr(function, '__qualname__', type(function).__qualname__)}"
    log.info("%s", line)
