"""Which utterances make one batch: ESPnet's batch samplers, from the shape files that collect_stats writes.

The batches are ESPnet's for the same files and settings. In which order an epoch goes through them is decided
in `iterators.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Sampler

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.espnet.data.batch_sizes import cut, equal_parts, filled_sizes, folded_sizes, spread_small_last
from espnet3_lite.espnet.data.shape_files import (
    Shapes,
    check_same_keys,
    read_matching_shapes,
    read_shapes,
    read_two_columns,
)
from espnet3_lite.exceptions import MisconfigurationException, nearest

Batch = tuple[str, ...]
_ORDERS = ("ascending", "descending")
_TYPES = ("unsorted", "sorted", "folded", "length", "numel")


class AbsSampler(Sampler[Batch]):
    """A fixed list of batches, each a tuple of utterance ids; the base class of all samplers here.

    >>> sampler = AbsSampler([("a", "b"), ("c",)])
    >>> len(sampler), list(sampler), sampler.generate(seed=1)
    (2, [('a', 'b'), ('c',)], [('a', 'b'), ('c',)])
    """

    def __init__(self, batches: Sequence[Sequence[str]]):
        self.batch_list: list[Batch] = [tuple(batch) for batch in batches]

    def __len__(self) -> int:
        return len(self.batch_list)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batch_list)

    def generate(self, seed: int) -> list[Batch]:
        """A fresh list of one pass's batches; a sampler that draws them at random, from `seed`, overrides it."""
        return list(self)

    def __repr__(self) -> str:
        sizes = [len(batch) for batch in self.batch_list]
        return f"{type(self).__name__}({len(sizes)} batches of {min(sizes)} to {max(sizes)} utterances)"


class UnsortedBatchSampler(AbsSampler):
    """Batches of a constant size in the file's order; lengths are not looked at.

    Args:
        batch_size: utterances a batch. What remains is spread over all batches, so none is smaller.
        key_file: a file whose lines begin with an utterance's id; a shape file will do.
        drop_last: leave out what does not fill a batch instead. Default False.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write("a 30\\nb 10\\nc 20\\nd 50\\ne 40\\n")
    ...     file.flush()
    ...     list(UnsortedBatchSampler(2, file.name))
    [('a', 'b'), ('c', 'd', 'e')]
    """

    def __init__(self, batch_size: int, key_file: str | Path, drop_last: bool = False):
        _check_counts(batch_size=batch_size)
        super().__init__(equal_parts(list(read_two_columns(key_file)), batch_size, drop_last))


class SortedBatchSampler(AbsSampler):
    """Batches of a constant size of utterances of similar length.

    Args:
        batch_size: utterances a batch. What remains is spread over all batches, so none is smaller.
        shape_file: the utterances' lengths.
        sort_in_batch: ``descending`` (default) or ``ascending``: the order of lengths within a batch.
        sort_batch: the same for the order of the batches; default ``ascending``.
        drop_last: leave out what does not fill a batch: the shortest utterances where `sort_in_batch` is
            ``descending``, else the longest. Default False.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write("a 30\\nb 10\\nc 20\\nd 50\\n")
    ...     file.flush()
    ...     list(SortedBatchSampler(2, file.name))
    [('c', 'b'), ('d', 'a')]
    """

    def __init__(
        self,
        batch_size: int,
        shape_file: str | Path,
        sort_in_batch: str = "descending",
        sort_batch: str = "ascending",
        drop_last: bool = False,
    ):
        _check_counts(batch_size=batch_size)
        _check_orders(sort_in_batch=sort_in_batch, sort_batch=sort_batch)
        shapes = read_shapes(shape_file)
        # Negated, not reversed: utterances of equal length stay in the file's order, as in ESPnet.
        sign = -1 if sort_in_batch == "descending" else 1
        keys = [shapes.keys[index] for index in np.argsort(sign * shapes.lengths(), kind="stable").tolist()]
        batches = equal_parts(keys, batch_size, drop_last)
        if sort_in_batch != sort_batch:
            batches.reverse()
        super().__init__(batches)


class FoldedBatchSampler(AbsSampler):
    """Batches of utterances of similar length, smaller where the utterances are longer.

    A batch whose shortest utterance has the length L gets ``batch_size / (1 + L // fold_length)`` utterances;
    with several streams the one that folds most decides.

    Args:
        batch_size: utterances a batch as long as they are shorter than the fold length.
        shape_files: one a stream; the first one decides the order.
        fold_lengths: one a shape file.
        min_batch_size: no batch is smaller; a smaller last one is spread over the others. Default 1.
        sort_in_batch: ``descending`` (default) or ``ascending``.
        sort_batch: ``ascending`` (default) or ``descending``.
        drop_last: leave out the last batch where it is not full. Default False.
        utt2category_file: lines ``utterance category``; a batch then never mixes categories.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write("a 30\\nb 10\\nc 20\\nd 50\\n")
    ...     file.flush()
    ...     list(FoldedBatchSampler(2, [file.name], fold_lengths=[25]))
    [('c', 'b'), ('a',), ('d',)]
    """

    def __init__(
        self,
        batch_size: int,
        shape_files: Sequence[str | Path],
        fold_lengths: Sequence[int],
        min_batch_size: int = 1,
        sort_in_batch: str = "descending",
        sort_batch: str = "ascending",
        drop_last: bool = False,
        utt2category_file: str | Path | None = None,
    ):
        _check_counts(batch_size=batch_size, min_batch_size=min_batch_size)
        _check_orders(sort_in_batch=sort_in_batch, sort_batch=sort_batch)
        if len(fold_lengths) != len(shape_files) or any(length <= 0 for length in fold_lengths):
            raise MisconfigurationException(
                f"fold_lengths needs one positive length for each of the {len(shape_files)} shape_files, "
                f"got {list(fold_lengths)}"
            )
        streams = read_matching_shapes(shape_files)
        order = np.argsort(streams[0].lengths(), kind="stable")
        keys = [streams[0].keys[index] for index in order.tolist()]
        folds = np.max([s.lengths()[order] // n for s, n in zip(streams, fold_lengths, strict=True)], axis=0)
        sizes_from = dict(zip(keys, np.maximum(min_batch_size, batch_size // (1 + folds)).tolist(), strict=True))
        members = {"": keys}
        if utt2category_file is not None:
            categories = read_two_columns(utt2category_file)
            check_same_keys(shape_files[0], keys, utt2category_file, categories)
            members = {}
            for key in keys:
                members.setdefault(categories[key], []).append(key)

        batches: list[list[str]] = []
        for category in members.values():
            sizes = spread_small_last(folded_sizes(category, sizes_from.__getitem__, drop_last), min_batch_size)
            batches += cut(category, sizes, sort_in_batch, sort_batch)
        super().__init__(batches)


class LengthBatchSampler(AbsSampler):
    """Batches filled up to `batch_bins`: a bin is one frame, sample or token of any stream.

    Utterances are taken from the shortest on. As in ESPnet, the one that exceeds `batch_bins` still belongs
    to its batch, so that a full batch is a little larger than `batch_bins`.

    Args:
        batch_bins: the size beyond which a batch is full, summed over the streams.
        shape_files: one a stream; the first one decides the order.
        min_batch_size: no batch is smaller; a smaller last one is spread over the others. Default 1.
        sort_in_batch: ``descending`` (default) or ``ascending``.
        sort_batch: ``ascending`` (default) or ``descending``.
        drop_last: leave out the last batch where it is not full. Default False.
        padding: count every utterance as long as its batch's longest, since padding is computed on too
            (default), instead of by its own length.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write("a 30\\nb 10\\nc 20\\nd 50\\n")
    ...     file.flush()
    ...     list(LengthBatchSampler(80, [file.name]))
    [('a', 'c', 'b'), ('d',)]
    """

    def __init__(
        self,
        batch_bins: int,
        shape_files: Sequence[str | Path],
        min_batch_size: int = 1,
        sort_in_batch: str = "descending",
        sort_batch: str = "ascending",
        drop_last: bool = False,
        padding: bool = True,
    ):
        _check_counts(batch_bins=batch_bins, min_batch_size=min_batch_size)
        _check_orders(sort_in_batch=sort_in_batch, sort_batch=sort_batch)
        streams = read_matching_shapes(shape_files)
        self._check_dimensions(shape_files, streams, padding)
        order = np.argsort(streams[0].lengths(), kind="stable")
        bins = np.sum([self._bins(shapes) for shapes in streams], axis=0)[order]
        keys = [streams[0].keys[index] for index in order.tolist()]
        largest = int(np.argmax(bins))
        if bins[largest] > batch_bins:
            rank_zero_warn(
                f"batch_bins={batch_bins} is smaller than the utterance {keys[largest]!r} alone, which has "
                f"{bins[largest]} bins by {', '.join(map(str, shape_files))}: batches with such utterances "
                "exceed batch_bins. Raise it, or leave long utterances out."
            )
        sizes = filled_sizes(bins.tolist(), batch_bins, min_batch_size, drop_last, padding)
        super().__init__(cut(keys, spread_small_last(sizes, min_batch_size), sort_in_batch, sort_batch))

    @staticmethod
    def _bins(shapes: Shapes) -> np.ndarray:
        """What each utterance of a stream costs."""
        return shapes.lengths()

    @staticmethod
    def _check_dimensions(files: Sequence[str | Path], streams: list[Shapes], padding: bool) -> None:
        """Only the length counts here, so the other axes may differ."""


class NumElementsBatchSampler(LengthBatchSampler):
    """Batches filled up to `batch_bins`: a bin is one number, such as one feature of one frame, of any
    stream.

    The arguments are `LengthBatchSampler`'s. With `padding`, all axes but the first must agree in a stream.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write("a 30,2\\nb 10,2\\nc 20,2\\nd 50,2\\n")
    ...     file.flush()
    ...     list(NumElementsBatchSampler(160, [file.name]))
    [('a', 'c', 'b'), ('d',)]
    """

    @staticmethod
    def _bins(shapes: Shapes) -> np.ndarray:
        return shapes.elements()

    @staticmethod
    def _check_dimensions(files: Sequence[str | Path], streams: list[Shapes], padding: bool) -> None:
        for file, shapes in zip(files, streams, strict=True):
            odd = shapes.first_odd() if padding else None
            if odd is not None:
                raise MisconfigurationException(
                    f"{file}: {shapes.keys[0]!r} {shapes.shape(0)} and {shapes.keys[odd]!r} {shapes.shape(odd)} differ "
                    "beyond the first axis, so that they cannot be padded to one tensor; set padding: false if the "
                    "model takes them all the same"
                )


def build_batch_sampler(
    type: str,
    batch_size: int | None = None,
    batch_bins: int | None = None,
    shape_files: Sequence[str | Path] = (),
    sort_in_batch: str = "descending",
    sort_batch: str = "ascending",
    drop_last: bool = False,
    min_batch_size: int = 1,
    fold_lengths: Sequence[int] = (),
    padding: bool = True,
    utt2category_file: str | Path | None = None,
) -> AbsSampler:
    """Build the sampler that ESPnet's name for it asks for; settings that it does not use are ignored.

    Args:
        type: ``unsorted``, ``sorted``, ``folded``, ``length`` or ``numel``.
        batch_size: for the first three.
        batch_bins: for the last two.
        shape_files: at least one; ``unsorted`` and ``sorted`` read the first alone.
        sort_in_batch: ``descending`` (default) or ``ascending``: the order of lengths within a batch.
        sort_batch: the same for the order of the batches; default ``ascending``.
        drop_last: leave out what does not fill a batch. Default False.
        min_batch_size: no batch is smaller; for ``folded``, ``length`` and ``numel``. Default 1.
        fold_lengths: one a shape file; for ``folded``.
        padding: count every utterance as long as its batch's longest (default); for ``length`` and ``numel``.
        utt2category_file: lines ``utterance category``, which batches then do not mix; for ``folded``.

    Raises:
        MisconfigurationException: an unknown type, a setting that the type needs and that is missing or bad,
            or a shape file that cannot be used.
    """
    if type not in _TYPES:
        raise MisconfigurationException(
            f"unknown batch sampler type {type!r}; known are {', '.join(_TYPES)}{nearest(type, _TYPES)}"
        )
    if isinstance(shape_files, (str, Path)) or not shape_files:
        raise MisconfigurationException(
            f"batch sampler {type!r} needs shape_files, a list of at least one file; got {shape_files!r}"
        )
    size, bins = cast(int, batch_size), cast(int, batch_bins)  # the samplers themselves refuse None
    if type == "unsorted":
        return UnsortedBatchSampler(size, shape_files[0], drop_last)
    if type == "sorted":
        return SortedBatchSampler(size, shape_files[0], sort_in_batch, sort_batch, drop_last)
    orders: dict[str, Any] = {"sort_in_batch": sort_in_batch, "sort_batch": sort_batch, "drop_last": drop_last}
    if type == "folded":
        return FoldedBatchSampler(
            size,
            shape_files,
            fold_lengths,
            min_batch_size,
            utt2category_file=utt2category_file,
            **orders,
        )
    sampler = LengthBatchSampler if type == "length" else NumElementsBatchSampler
    return sampler(bins, shape_files, min_batch_size, padding=padding, **orders)


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MisconfigurationException(f"{name} of the batch sampler must be an integer >= 1, got {value!r}")


def _check_orders(**orders: str) -> None:
    for name, value in orders.items():
        if value not in _ORDERS:
            raise MisconfigurationException(
                f"{name} must be 'ascending' or 'descending', got {value!r}{nearest(value, _ORDERS)}"
            )
