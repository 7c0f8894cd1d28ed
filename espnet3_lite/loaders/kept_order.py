"""What gives an epoch its order beside random numbers: a list that is shuffled in place, or a count of the epochs.

A sampler of the user's, a stream, or a loader that is no `DataLoader` may keep such a thing. A new one has the list as
it was at first, so a resumed run must get it as it was when its epoch began. Which attributes matter is seen by what an
iteration changes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch.utils.data import IterableDataset

from espnet3_lite.checkpoint.allowed_types import is_plain, plain

#: A longer list is not looked at.
_MOST_ITEMS = 2_000_000


def kept_order(loader: Any) -> dict[str, bytes]:
    """The numbers and texts that a loader's parts keep in attributes, by place, as they are now.

    Bytes, which are quick to make and to compare: an epoch may have a million samples.
    """
    kept = {}
    for place, part in _parts_of(loader).items():
        for name, value in vars(part).items():
            try:
                kept.update({f"{place}.{name}": pickle.dumps(value)} if _is_plain(value) else {})
            except (pickle.PicklingError, TypeError, AttributeError):
                continue  # there are other things behind its first item
    return kept


def plain_values(kept: Mapping[str, bytes]) -> dict[str, Any]:
    """The same as a checkpoint holds it; lists of what it cannot hold are left out."""
    values = {}
    for place, content in kept.items():
        value = pickle.loads(content)
        value = value.tolist() if isinstance(value, numpy.ndarray) else value
        if is_plain(value):
            values[place] = plain(value)
    return values


def put_back(loader: Any, values: Mapping[str, Any]) -> None:
    """Give the parts what `plain_values` told, in place where others may hold the same list."""
    parts = _parts_of(loader)
    for where, value in values.items():
        place, _, name = where.rpartition(".")
        present = vars(parts[place]).get(name) if place in parts else None
        if isinstance(present, list):
            present[:] = value
        elif isinstance(present, numpy.ndarray):
            setattr(parts[place], name, numpy.array(value, dtype=present.dtype))
        elif present is not None:
            setattr(parts[place], name, value)


def _parts_of(loader: Any) -> dict[str, Any]:
    """Those of the user's own classes that keep no position of their own."""
    batch_sampler, dataset = getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)
    parts = {"sampler": getattr(loader, "sampler", None), "batch_sampler": batch_sampler, "loader": loader,
             "batch_sampler.sampler": getattr(batch_sampler, "sampler", None),
             "dataset": dataset if isinstance(dataset, IterableDataset) else None}  # fmt: skip
    others = ("torch.", "builtins", "espnet3_lite.")
    mine = {place: part for place, part in parts.items() if not type(part).__module__.startswith(others)}
    return {p: part for p, part in mine.items() if hasattr(part, "__dict__") and not hasattr(part, "state_dict")}


def _is_plain(value: Any) -> bool:
    """A whole number or text, a row of whole numbers, or lists of such, as far as their first items tell."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0] if len(value) < _MOST_ITEMS else None
    if isinstance(value, torch.Tensor):
        return value.dim() == 1 and not value.is_floating_point() and len(value) < _MOST_ITEMS
    if isinstance(value, numpy.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu" and len(value) < _MOST_ITEMS
    return isinstance(value, (int, str, numpy.integer))
