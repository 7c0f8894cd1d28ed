"""Hyperparameters in a checkpoint: what of them it can hold, under which form, and how they come back.

A checkpoint holds tensors and plain values only. A class or a function is stored as its name, never as code, and comes
back where somebody has imported it already; a path, a `Namespace` and a dataclass come back as what they were.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from espnet3_lite.checkpoint.allowed_types import plain
from espnet3_lite.exceptions import MisconfigurationException

#: How a value that is no plain one was stored: where it stands, and its kind (``path``, ``namespace``, ``object``, or
#: the name of a dataclass).
Kinds = list[tuple[list[str | int], str]]


class _NotStorable(Exception):
    pass


def storable(values: Mapping[str, Any]) -> tuple[dict[str, Any], Kinds, list[str]]:
    """Returns what a checkpoint can hold of the hyperparameters, how to undo it, and the names of those left out.

    >>> storable({"width": 8, "folder": pathlib.PurePosixPath("exp"), "kind": dict, "net": object()})
    ({'width': 8, 'folder': 'exp', 'kind': 'builtins.dict'}, [(['folder'], 'path'), (['kind'], 'object')], ['net'])
    """
    kinds: Kinds = []
    left_out: list[str] = []
    return _stored_items(values, [], kinds, left_out), kinds, left_out


def _stored_items(
    values: Mapping[Any, Any], place: list[str | int], kinds: Kinds, left_out: list[str]
) -> dict[Any, Any]:
    stored: dict[Any, Any] = {}
    for key, value in values.items():
        known = len(kinds)
        try:
            stored[plain(key)] = _stored(value, [*place, key], kinds, left_out)
        except (_NotStorable, TypeError):
            del kinds[known:]
            left_out.append(".".join(map(str, [*place, key])))
    return stored


def _stored(value: Any, place: list[str | int], kinds: Kinds, left_out: list[str]) -> Any:
    if isinstance(value, os.PathLike):
        kinds.append((place, "path"))
        return os.fspath(value)
    if isinstance(value, argparse.Namespace):
        kinds.append((place, "namespace"))
        return _stored_items(vars(value), place, kinds, left_out)
    if isinstance(value, Mapping):  # an OmegaConf container is one, too
        return _stored_items(value, place, kinds, left_out)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        items = [_stored(item, [*place, index], kinds, left_out) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        name = f"{value.__module__}.{value.__qualname__}"
        if _found(name) is not value:
            raise _NotStorable
        kinds.append((place, "object"))
        return name
    if dataclasses.is_dataclass(value):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if _found(name) is not type(value):
            raise _NotStorable
        kinds.append((place, name))
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return _stored_items(fields, place, kinds, left_out)
    return plain(value)


def restored(values: dict[str, Any], kinds: Kinds, owner: type, given: set[str]) -> dict[str, Any]:
    """Undo `storable`.

    Args:
        values: As they are in the checkpoint; they are changed.
        kinds: As they are in the checkpoint.
        owner: Whose hyperparameters they are: names of its own package are trusted.
        given: The arguments that the caller gives instead.

    Raises:
        MisconfigurationException: a class or function that is not looked up, and that nobody gave.
    """
    for place, kind in reversed(kinds):  # what is inside of a dataclass first
        *parents, last = place
        if place[0] in given:
            continue
        holder: Any = values
        for parent in parents:
            holder = holder[parent]
        if isinstance(holder, tuple):
            raise MisconfigurationException(f"hyper_parameters: {place} cannot be put back into a tuple; give it anew")
        stored = holder[last]
        if kind == "path":
            holder[last] = pathlib.Path(stored)
        elif kind == "namespace":
            holder[last] = argparse.Namespace(**stored)
        elif kind == "object":
            holder[last] = _trusted(stored, owner, place)
        else:
            holder[last] = _trusted(kind, owner, place, dataclass=True)(**stored)
    return values


def _trusted(name: str, owner: type, place: list[str | int], dataclass: bool = False) -> Any:
    """A class or function by its name: from torch's layers and optimizers, or from where `owner` comes from.

    Nothing is imported for it, and of Python's own things only types count: a checkpoint may be anybody's.
    """
    found = _found(name)
    package = owner.__module__.partition(".")[0]
    functions = (types.FunctionType, types.BuiltinFunctionType)
    known = name.startswith(("torch.nn.", "torch.optim.", f"{package}.")) and isinstance(found, functions)
    is_class = isinstance(found, type) and name.startswith(("torch.nn.", "torch.optim.", f"{package}.", "builtins."))
    if not (dataclasses.is_dataclass(found) and is_class if dataclass else known or is_class):
        raise MisconfigurationException(
            f"hyper_parameters: {'.'.join(map(str, place))} was {name}, which is not imported from a checkpoint; give "
            f"it to {owner.__name__}.load_from_checkpoint: {place[0]}=..."
        )
    return found


def _found(name: str) -> Any:
    """What a dotted name means among the modules that are imported already; None for nothing."""
    module, _, rest = name.rpartition(".")
    while module:
        found: Any = sys.modules.get(module)
        if found is not None:
            for part in rest.split("."):
                found = getattr(found, part, None)
            return found
        module, _, part = module.rpartition(".")
        rest = f"{part}.{rest}"
    return None
