"""Samples to a batch: pad each stream and remember its lengths, as ESPnet's collate function does.

What a sample contains is the data set's business, what becomes of the padding the model's.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Sample = tuple[str, Mapping[str, Any]]


class CommonCollateFn:
    """Turn a list of ``(uid, dict of arrays)`` into ``(uids, {key: padded tensor, key_lengths: lengths})``.

    Each array's first axis is its length. A padded tensor has the shape ``(batch, longest, ...)`` and the
    arrays' dtype; signed integers are padded with `int_pad_value`, everything else with `float_pad_value`.
    ``key_lengths`` is int64, ``(batch,)``.

    Args:
        float_pad_value: fills the end of shorter arrays that are not signed integers. Default 0.
        int_pad_value: the same for signed integers. Default -1, as ESPnet3 builds it; ESPnet2's own default
            is -32768.
        not_sequence: keys whose lengths mean nothing, and get no ``key_lengths``.

    >>> collate = CommonCollateFn()
    >>> uids, batch = collate([("a", {"text": np.array([4, 5, 6])}), ("b", {"text": np.array([7])})])
    >>> uids
    ['a', 'b']
    >>> batch["text"].tolist(), batch["text_lengths"].tolist()
    ([[4, 5, 6], [7, -1, -1]], [3, 1])
    """

    def __init__(
        self, float_pad_value: float = 0.0, int_pad_value: int = -1, not_sequence: Collection[str] = ()
    ) -> None:
        self.float_pad_value = float_pad_value
        self.int_pad_value = int_pad_value
        self.not_sequence = frozenset(not_sequence)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(float_pad_value={self.float_pad_value}, "
            f"int_pad_value={self.int_pad_value}, not_sequence={sorted(self.not_sequence)})"
        )

    def __call__(self, data: Sequence[Sample]) -> tuple[list[str], dict[str, Tensor]]:
        """Collate one batch.

        Raises:
            TypeError: a sample is no ``(uid, dict)`` pair, or a value no array.
            ValueError: the list is empty, samples differ in their keys or in dtype or trailing axes, a value
                is a scalar, or a key ends in ``_lengths``, which is reserved.
        """
        uids, samples = _split(data)
        batch: dict[str, Tensor] = {}
        for key in samples[0]:
            tensors = [_as_tensor(uid, key, sample[key]) for uid, sample in zip(uids, samples, strict=True)]
            batch[key] = _pad(key, uids, tensors, self._pad_value(tensors[0]))
            if key not in self.not_sequence:
                batch[f"{key}_lengths"] = torch.tensor([len(t) for t in tensors], dtype=torch.long)
        return uids, batch

    def _pad_value(self, tensor: Tensor) -> float:
        signed_integer = tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        return self.int_pad_value if signed_integer else self.float_pad_value


def takes_ids(collate_fn: Any) -> bool:
    """Whether a collate function wants ``(uid, sample)`` pairs: a `CommonCollateFn`, ours or espnet's own."""
    return any(base.__name__ == "CommonCollateFn" for base in type(collate_fn).__mro__)


def _split(data: Sequence[Sample]) -> tuple[list[str], list[Mapping[str, Any]]]:
    """The ids and the samples of a batch, after checking that they belong together."""
    if len(data) == 0:
        raise ValueError("CommonCollateFn was given an empty batch; every batch needs at least one sample")
    for item in data:
        if not (isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Mapping)):
            raise TypeError(
                "CommonCollateFn expects samples of the form (uid, dict of arrays), "
                f"got {type(item).__name__}; a DataOrganizer's data set gives them once its "
                "`use_espnet_collator` is true"
            )
    uids, samples = [str(uid) for uid, _ in data], [sample for _, sample in data]
    for uid, sample in zip(uids, samples, strict=True):
        if set(sample) != set(samples[0]):
            raise ValueError(
                f"samples of one batch must have the same keys: {uids[0]!r} has {sorted(samples[0])}, "
                f"{uid!r} has {sorted(sample)}"
            )
    reserved = [key for key in samples[0] if key.endswith("_lengths")]
    if reserved:
        raise ValueError(f"sample {uids[0]!r} has {reserved}; '_lengths' names are the collate function's own")
    return uids, samples


def _as_tensor(uid: str, key: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OUSMm":
        value = torch.from_numpy(value)
    is_number = isinstance(value, (bool, int, float))
    if not isinstance(value, Tensor) and not is_number:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"{key!r} of sample {uid!r} is {kind}; a batch is made of numeric numpy arrays or tensors: "
            "convert it in the entry's transform or the preprocessor (text to token ids, say)"
        )
    if is_number or value.ndim == 0:
        raise ValueError(
            f"{key!r} of sample {uid!r} is a scalar, but a first axis is needed as its length: "
            f"give an array of shape (1,), such as np.array([{value}])"
        )
    return value


def _pad(key: str, uids: list[str], tensors: list[Tensor], value: float) -> Tensor:
    """`tensors` of shapes ``(time, ...)`` as one ``(batch, longest, ...)`` of the first one's dtype."""
    first = tensors[0]
    for uid, tensor in zip(uids, tensors, strict=True):
        same_kind = tensor.dtype.is_floating_point == first.dtype.is_floating_point
        if tensor.shape[1:] != first.shape[1:] or not same_kind:
            raise ValueError(
                f"{key!r} differs within a batch: {tuple(first.shape)} of {first.dtype} in {uids[0]!r}, "
                f"{tuple(tensor.shape)} of {tensor.dtype} in {uid!r}; only the first axis may differ"
            )
    longest = max(len(tensor) for tensor in tensors)
    padded = first.new_full((len(tensors), longest, *first.shape[1:]), value)
    for row, tensor in zip(padded, tensors, strict=True):
        row[: len(tensor)] = tensor
    return padded
