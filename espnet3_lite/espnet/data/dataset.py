"""Data sets as the loaders see them: several as one, with a transform and a preprocessor on each sample.

Building them from a config is `organizer.py`, loading a recipe's own is `recipe.py`.
"""

import bisect
import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from espnet3_lite.espnet.data.contract import DatasetContractError
from espnet3_lite.exceptions import MisconfigurationException


def do_nothing(*values: Any) -> Any:
    """The transform of those who ask for none: one value as it is, several as a tuple.

    >>> do_nothing(1), do_nothing(1, 2)
    (1, (1, 2))
    """
    return values[0] if len(values) == 1 else values


class ShardedDataset(Dataset, ABC):
    """A data set in pieces, of which an epoch passes over some.

    Subclasses set `total_shards`, the number of pieces, and `dist_world_size`, how many of them one epoch
    takes, and implement `shard`. All data sets of a split are sharded alike, or none is.
    """

    total_shards: int
    dist_world_size: int

    @abstractmethod
    def shard(self, idx: int) -> Dataset:
        """The data set that holds piece `idx` alone, counted from 0."""


class CombinedDataset(Dataset):
    """Several data sets in a row, each sample through its data set's transform and preprocessor.

    Indexed with integers over all of them, or with an utterance's id. A data set that does not take integers
    is asked for its keys (``keys()``, else by iterating over it), and its ids are those keys; otherwise the
    id of a sample is its index as a string, which is how collect_stats names it in shape files.

    Args:
        datasets: have ``__len__`` and ``__getitem__``; every sample is a dict.
        transforms: one pair (transform, preprocessor) a data set; None does nothing.
        use_espnet_preprocessor: call preprocessors with ``(uid, sample)`` instead of ``(sample)``.

    `use_espnet_collator` says whether items are ``(uid, sample)`` pairs, as `CommonCollateFn` takes them, or
    samples alone (default).

    Raises:
        MisconfigurationException: a transform or preprocessor is not callable, first samples differ in their
            keys, an id occurs twice, or only some data sets are sharded or they disagree on how.

    >>> tenfold = lambda sample: {"x": sample["x"] * 10}
    >>> digits = CombinedDataset([[{"x": 1}], [{"x": 2}]], [(None, None), (tenfold, None)])
    >>> len(digits), digits[1], digits["0"]
    (2, {'x': 20}, {'x': 1})
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        transforms: Sequence[tuple[Callable | None, Callable | None]],
        use_espnet_preprocessor: bool = False,
    ):
        self.datasets = list(datasets)
        self.transforms = [
            (checked_callable("transform", transform), checked_callable("preprocessor", preprocessor))
            for transform, preprocessor in transforms
        ]
        if len(self.datasets) != len(self.transforms):
            raise MisconfigurationException(
                "CombinedDataset needs a (transform, preprocessor) pair for each data set, "
                f"got {len(self.datasets)} data sets and {len(self.transforms)} pairs"
            )
        self.use_espnet_preprocessor = use_espnet_preprocessor
        self.use_espnet_collator = False
        self.lengths = [len(dataset) for dataset in self.datasets]
        self.cumulative_lengths = list(itertools.accumulate(self.lengths))
        self._keys = [_string_keys(dataset) for dataset in self.datasets]
        self._position_of_key = self._index_keys()
        self._check_sample_keys()
        self._check_sharding()

    def __len__(self) -> int:
        return self.cumulative_lengths[-1] if self.datasets else 0

    def __getitem__(self, index: int | str) -> Any:
        number, uid, sample = self._fetch(index)
        transform, preprocessor = self.transforms[number]
        sample = transform(sample)
        sample = preprocessor(uid, sample) if self.use_espnet_preprocessor else preprocessor(sample)
        return (uid, sample) if self.use_espnet_collator else sample

    def shard(self, *numbers: int) -> "CombinedDataset":
        """The same data sets reduced to these of their pieces; they must be `ShardedDataset`."""
        if not all(isinstance(dataset, ShardedDataset) for dataset in self.datasets):
            raise MisconfigurationException("shard() needs data sets that are all ShardedDataset")
        piece = CombinedDataset(
            [dataset.shard(number) for number in numbers for dataset in self.datasets],
            self.transforms * len(numbers),
            self.use_espnet_preprocessor,
        )
        piece.use_espnet_collator = self.use_espnet_collator
        return piece

    def may_have(self, index: int | str) -> bool:
        """False where ``self[index]`` would fail for certain; nothing is loaded."""
        if isinstance(index, str) and not index.isdecimal():
            # A data set that takes integers may take ids as well; only trying would tell.
            return index in self._position_of_key or None in self._keys
        return index in self._position_of_key or int(index) < len(self)

    def _fetch(self, index: int | str) -> tuple[int, str, Any]:
        """Which data set the sample is in, its id, and the sample as that data set gives it."""
        # Not int(index) for any text that it takes: the id "1_2" is not the index 12.
        if isinstance(index, str):
            if index not in self._position_of_key and not index.isdecimal():
                return self._fetch_by_id(index)
            position = self._position_of_key[index] if index in self._position_of_key else int(index)
        else:
            position = index
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self)} samples")
        position %= len(self)
        number = bisect.bisect_right(self.cumulative_lengths, position)
        local = position - (self.cumulative_lengths[number - 1] if number else 0)
        keys = self._keys[number]
        if keys is None:
            return number, str(position), self.datasets[number][local]
        uid = keys[local]
        return number, uid, self.datasets[number][uid]

    def _fetch_by_id(self, uid: str) -> tuple[int, str, Any]:
        """From the first data set that knows the id, among those that take integers and perhaps ids too."""
        for number, (dataset, keys) in enumerate(zip(self.datasets, self._keys, strict=True)):
            if keys is None:
                try:
                    return number, uid, dataset[uid]
                except (KeyError, TypeError, ValueError, IndexError):
                    continue  # how a data set says that it has no such utterance
        raise KeyError(f"no data set has an utterance {uid!r}")

    def _index_keys(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        starts = [0, *self.cumulative_lengths]
        for start, keys in zip(starts, self._keys, strict=False):
            for position, key in enumerate(keys or (), start=start):
                if key in positions:
                    raise MisconfigurationException(f"the utterance id {key!r} occurs twice in the data sets")
                positions[key] = position
        return positions

    def _check_sample_keys(self) -> None:
        first: tuple[int, set[str]] | None = None
        for number, (dataset, keys) in enumerate(zip(self.datasets, self._keys, strict=True)):
            if self.lengths[number] == 0:
                continue
            sample = self.transforms[number][0](copy.deepcopy(dataset[0 if keys is None else keys[0]]))
            if not isinstance(sample, Mapping):
                raise MisconfigurationException(
                    f"data set {number} ({type(dataset).__name__}) gives {type(sample).__name__} after its "
                    "transform; a sample must be a dict, whose keys are the arguments of the model's forward. (This is "
                    "ESPnet's contract; a model derived from LiteModule takes any samples, from a data set that "
                    "stands in `dataset.train` by its _target_)"
                )
            first = first or (number, set(sample))
            if set(sample) != first[1]:
                raise MisconfigurationException(
                    f"the samples of data sets {first[0]} and {number} differ in their keys: "
                    f"{sorted(first[1])} and {sorted(sample)}; make them equal with a transform"
                )

    def _check_sharding(self) -> None:
        sharded = [dataset for dataset in self.datasets if isinstance(dataset, ShardedDataset)]
        if not sharded:
            return
        if len(sharded) < len(self.datasets):
            raise MisconfigurationException("either all data sets of a split are ShardedDataset, or none is")
        plans = {
            (getattr(dataset, "total_shards", None), getattr(dataset, "dist_world_size", None)) for dataset in sharded
        }
        if len(plans) > 1 or any(None in plan for plan in plans):
            raise MisconfigurationException(
                "sharded data sets must all set the same total_shards and dist_world_size, "
                f"got {sorted(plans, key=str)}"
            )
        self.total_shards, self.dist_world_size = plans.pop()

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{type(dataset).__name__}(len={length})"
            for dataset, length in zip(self.datasets, self.lengths, strict=True)
        )
        return f"{type(self).__name__}(len={len(self)}, datasets=[{parts}])"


class DatasetWithTransform(Dataset):
    """One data set with a transform and a preprocessor, as test sets have.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        transform: applied to each sample first; None does nothing.
        preprocessor: applied to the result; None does nothing.
        use_espnet_preprocessor: call the preprocessor with ``(uid, sample)``, the id being ``str(index)``.

    >>> shouted = DatasetWithTransform([{"text": "one"}], lambda s: {"text": s["text"].upper()}, None)
    >>> shouted[0]
    {'text': 'ONE'}
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable | None,
        preprocessor: Callable | None,
        use_espnet_preprocessor: bool = False,
    ):
        self.dataset = dataset
        self.transform = checked_callable("transform", transform)
        self.preprocessor = checked_callable("preprocessor", preprocessor)
        self.use_espnet_preprocessor = use_espnet_preprocessor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        sample = self.transform(self.dataset[index])
        if self.use_espnet_preprocessor:
            return self.preprocessor(str(index), sample)
        return self.preprocessor(sample)

    def __call__(self, index: Any) -> Any:
        """The same as indexing, for code that maps a function over indices."""
        return self[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.dataset).__name__}(len={len(self)}))"


class EpochShards(Dataset):
    """The pieces of a sharded data set that one epoch passes over, as one data set.

    Epoch e takes the pieces ``e * dist_world_size + r`` modulo `total_shards`, for r from 0 to
    ``dist_world_size - 1``: those that ESPnet3's ranks take in that epoch. Here all of them are dealt out to
    the ranks there are, whose number need not be `dist_world_size`.

    Args:
        dataset: combines data sets that are all sharded.
        epoch: the first epoch, counted from 0.

    Raises:
        MisconfigurationException: the counts are no positive integers, or do not divide.

    >>> class Pieces(ShardedDataset):
    ...     total_shards, dist_world_size = 3, 1
    ...     def shard(self, idx):
    ...         return [{"x": "abc"[idx]}] * 2
    ...     def __len__(self):
    ...         return 6
    ...     def __getitem__(self, index):
    ...         return {"x": "abc"[index // 2]}
    >>> shards = EpochShards(CombinedDataset([Pieces()], [(None, None)]))
    >>> shards.set_epoch(4)
    >>> shards[0], len(shards)
    ({'x': 'b'}, 2)
    """

    def __init__(self, dataset: CombinedDataset, epoch: int = 0):
        total, taken = (_count(name, getattr(dataset, name)) for name in ("total_shards", "dist_world_size"))
        if total % taken:
            raise MisconfigurationException(
                f"total_shards={total} cannot be divided by dist_world_size={taken}, so that epochs would "
                "differ in what they pass over"
            )
        self.dataset, self._total, self._taken = dataset, total, taken
        self.epoch = epoch
        self._pieces = self._take()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next samples are for; takes its pieces."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._pieces = self._take()

    def _take(self) -> CombinedDataset:
        taken, total = self._taken, self._total
        return self.dataset.shard(*((self.epoch * taken + r) % total for r in range(taken)))

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int | str) -> Any:
        return self._pieces[index]


def checked_callable(role: str, function: Any) -> Callable:
    """`function`, or `do_nothing` for None; what cannot be called is a `MisconfigurationException`."""
    if function is None:
        return do_nothing
    if not callable(function):
        raise MisconfigurationException(
            f"a {role} must be callable, got {function!r} of type {type(function).__name__}; "
            "in a config, give it a `_target_`"
        )
    return function


def _string_keys(dataset: Any) -> list[str] | None:
    """The utterance ids by which a data set is indexed, or None for one that takes integers."""
    if len(dataset) == 0:
        return None
    try:
        dataset[0]
        return None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, DatasetContractError):
            raise
        keys = list(dataset.keys() if callable(getattr(dataset, "keys", None)) else dataset)
        if len(keys) != len(dataset) or not all(isinstance(key, str) for key in keys):
            raise MisconfigurationException(
                f"{type(dataset).__name__} takes no integer index ({type(error).__name__}: {error}), so its "
                f"{len(dataset)} utterance ids must come as strings from keys() or from iterating over it; "
                f"that gave {len(keys)} values, such as {keys[:3]}"
            ) from error
        return keys


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise MisconfigurationException(f"{name} of a sharded data set must be an integer >= 1, got {value!r}")
    return value
