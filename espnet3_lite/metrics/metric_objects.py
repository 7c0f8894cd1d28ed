"""Objects that compute an epoch's value themselves, such as torchmetrics': where a module has them, and their state.

They keep what they have seen in plain attributes, which no state dict holds: a run that is resumed within an epoch
would forget the epoch's first part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten  # no public name up to torch 2.14

from espnet3_lite.checkpoint.allowed_types import is_plain
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.loaders.transfer import map_tensors

#: What torch keeps in a module beside its attributes.
_TORCHS_OWN = frozenset(vars(torch.nn.Module()))


def is_metric_object(value: Any) -> bool:
    """Whether `log` takes it as an object that computes its value: its class has `compute` and `reset`.

    An object that has whatever it is asked for, such as a mock or what hands everything on, is none.
    """
    return not isinstance(value, torch.Tensor) and hasattr(type(value), "compute") and hasattr(type(value), "reset")


def metric_objects(module: torch.nn.Module | None) -> dict[str, Any]:
    """The metric objects among a module's attributes, by place, such as ``"model.accuracy"``; not parts of others."""
    found: dict[str, Any] = {}
    for place, value in _attributes_within(module):
        if is_metric_object(value) and not any(place.startswith(f"{outer}.") for outer in found):
            found[place] = value
    return found


def place_of_metric(module: torch.nn.Module, metric: Any) -> str:
    """Where in a module a metric object is found; ``""`` where it is not."""
    return next((place for place, value in _attributes_within(module) if value is metric), "")


def _attributes_within(module: torch.nn.Module | None) -> Iterator[tuple[str, Any]]:
    """The attributes of a module and of its parts, those of an outer part first, each with its place."""
    for prefix, part in module.named_modules() if module is not None else ():
        own = ((name, value) for name, value in vars(part).items() if name not in _TORCHS_OWN)
        yield from ((f"{prefix}.{name}" if prefix else name, value) for name, value in (*own, *part.named_children()))


def state_of(place: str, metric: Any) -> dict[str, dict[str, Any]]:
    """What `reset` would take back: by part, the attributes that differ from those of a copy that is reset.

    Args:
        place: Where it stands, for a warning.
        metric: The object, which stays as it is.
    """
    try:
        fresh = copy.deepcopy(metric)
        fresh.reset()
    except Exception as error:
        rank_zero_warn(
            f"the metric object {place} ({type(metric).__name__}) cannot be copied and reset ({type(error).__name__}: "
            f"{error}), and is in no checkpoint: a run that is resumed within an epoch forgets what it has seen of it"
        )
        return {}
    unset = dict(_values(fresh))
    state: dict[str, dict[str, Any]] = {}
    for (part, key), value in _values(metric):
        if is_plain(value) and not ((part, key) in unset and _same(value, unset[part, key])):
            state.setdefault(part, {})[key] = copy.deepcopy(map_tensors(value, torch.Tensor.detach))
    return state


def restore(metric: Any, state: dict[str, dict[str, Any]], device: torch.device) -> None:
    """Put back what `state_of` gave, on this device."""
    parts = dict(_parts(metric))
    if gone := state.keys() - parts.keys():  # a `MetricTracker` gets a part with each epoch
        rank_zero_warn(
            f"{type(metric).__name__} had parts {sorted(gone)} when it was saved, and forgets what they knew"
        )
    for name in state.keys() & parts.keys():
        for key, value in state[name].items():
            setattr(parts[name], key, map_tensors(value, lambda tensor: tensor.to(device)))


def _parts(metric: Any) -> Iterator[tuple[str, Any]]:
    return metric.named_modules() if isinstance(metric, torch.nn.Module) else iter([("", metric)])


def _values(metric: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """The attributes and buffers of an object's parts, each with the names of the part and its own."""
    for name, part in _parts(metric):
        own = vars(part)
        if isinstance(part, torch.nn.Module):
            own = {key: value for key, value in own.items() if key not in _TORCHS_OWN}
            own.update(part.named_buffers(recurse=False))
        yield from (((name, key), value) for key, value in own.items())


def _same(one: Any, other: Any) -> bool:
    (leaves, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    return form == other_form and all(
        type(a) is type(b) and (a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
        for a, b in zip(leaves, others, strict=True)
    )
