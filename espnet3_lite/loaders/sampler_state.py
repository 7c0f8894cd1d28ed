"""What a sampler of the user's keeps beside its generators: a list that it shuffles in place, or a count of its epochs.

A new sampler has the list as it was at first. So a resumed run must get it as it was when its epoch began. Which of its
attributes matter is seen by what an iteration changes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy
import torch


def kept_by_samplers(loader: Any) -> dict[str, bytes]:
    """The numbers and texts that samplers of the user's own classes keep in attributes, by place, as they are now.

    Bytes, which are quick to make and to compare: an epoch may have a million samples.
    """
    kept = {}
    for place, sampler in _samplers_of(loader).items():
        for name, value in vars(sampler).items():
            if _is_plain(value):
                kept[f"{place}.{name}"] = pickle.dumps(value)
    return kept


def plain_values(kept: Mapping[str, bytes]) -> dict[str, Any]:
    """The same as a checkpoint holds it."""
    values = {place: pickle.loads(value) for place, value in kept.items()}
    return {place: value.tolist() if isinstance(value, numpy.ndarray) else value for place, value in values.items()}


def put_back(loader: Any, values: Mapping[str, Any]) -> None:
    """Give the samplers what `plain_values` told, in place where others may hold the same list."""
    samplers = _samplers_of(loader)
    for where, value in values.items():
        place, _, name = where.rpartition(".")
        present = vars(samplers[place]).get(name) if place in samplers else None
        if isinstance(present, list):
            present[:] = value
        elif isinstance(present, numpy.ndarray):
            setattr(samplers[place], name, numpy.array(value, dtype=present.dtype))
        elif present is not None:
            setattr(samplers[place], name, value)


def _samplers_of(loader: Any) -> dict[str, Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = {"sampler": getattr(loader, "sampler", None), "batch_sampler": batch_sampler,
             "batch_sampler.sampler": getattr(batch_sampler, "sampler", None)}  # fmt: skip
    others = ("torch.", "builtins", "espnet3_lite.")
    return {
        place: part
        for place, part in parts.items()
        if hasattr(part, "__dict__") and not type(part).__module__.startswith(others)
    }


def _is_plain(value: Any) -> bool:
    """A number, an array of numbers, or a list of such, as far as its first item tells."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, str, torch.Tensor)) or (
        isinstance(value, numpy.ndarray) and value.dtype.kind in "iuf"
    )
