"""The command line's ``key=value``: changes to a configuration, in Hydra's spelling.

==========================  =================================================================
``trainer.max_epochs=3``    change a key that is there (a mapping is merged key by key)
``callbacks.0.patience=3``  an item of a list
``+model.dropout=0.1``      add a key that is not there
``++model.dropout=0.1``     either
``~scheduler``              remove a key
==========================  =================================================================

The value is read as YAML. Here: one change to one tree. Not here: where the arguments come from (`cli`).
"""

import copy
import re
from collections.abc import Iterable
from typing import Any

from espnet3_lite.config.interpolation import find_key, is_interpolated, split_reference
from espnet3_lite.config.yaml_text import KeyPath, format_path, parse_value
from espnet3_lite.exceptions import MisconfigurationException, nearest

_OVERRIDE = re.compile(r"(?P<sign>~|\+\+|\+|)(?P<key>[^=+~]+)(?P<value>=.*|)", re.DOTALL)


def apply_override(tree: dict, override: str) -> KeyPath:
    """Change ``tree`` in place as one override says.

    Args:
        tree: The configuration as plain dicts and lists.
        override: For example ``"trainer.max_epochs=3"``.

    Returns:
        The path of the key that was changed or removed.

    Raises:
        MisconfigurationException: The text is no override, the key is missing (or, with ``+``, is there
            already).

    >>> tree = {"trainer": {"max_epochs": 10}}
    >>> apply_override(tree, "trainer.max_epochs=3"), tree
    (('trainer', 'max_epochs'), {'trainer': {'max_epochs': 3}})
    """
    match = _OVERRIDE.fullmatch(override.strip())
    split = split_reference(match["key"].strip()) if match else None
    if match is None or split is None or split[0] or (not match["value"] and match["sign"] != "~"):
        raise MisconfigurationException(
            f"override {override!r}: write key.path=value to change, +key=value to add, ~key to remove"
        )
    sign, parts = match["sign"], split[1]
    try:
        value = parse_value(match["value"][1:]) if match["value"] else None
        if sign == "~":
            return _remove(tree, parts, value if match["value"] else ...)
        return _assign(tree, parts, value, sign)
    except MisconfigurationException as error:
        raise MisconfigurationException(f"override {override!r}: {error}") from None


def _descend(tree: dict, parts: list[str], create: bool) -> tuple[Any, KeyPath]:
    """The container that holds the last part; with ``create``, mappings missing on the way are made."""
    container: Any = tree
    path: KeyPath = ()
    for part in parts[:-1]:
        key = find_key(container, part)
        if key is None and not (create and isinstance(container, dict)):
            raise _missing(container, path, part)
        key = part if key is None else key
        path = (*path, key)
        if create and isinstance(container, dict) and not isinstance(container.get(key), dict | list):
            container[key] = {}
        container = container[key]
        if not isinstance(container, dict | list):
            hint = ", an interpolation: override what it points at" if is_interpolated(container) else ""
            raise MisconfigurationException(f"{format_path(path)!r} is {container!r}{hint}; it holds no {parts[-1]!r}")
    return container, path


def _assign(tree: dict, parts: list[str], value: Any, sign: str) -> KeyPath:
    container, path = _descend(tree, parts, create=bool(sign))
    key = find_key(container, parts[-1])
    if key is None:
        if isinstance(container, list) or not sign:
            hint = "" if isinstance(container, list) else f"; to add a new key write +{'.'.join(parts)}=..."
            raise _missing(container, path, parts[-1], hint)
        container[parts[-1]] = value
        return (*path, parts[-1])
    current = container[key]
    path = (*path, key)
    if isinstance(current, dict) and isinstance(value, dict):
        for name, item in value.items():
            _assign(tree, [*parts, str(name)], item, "++" if sign else "")
    elif sign == "+":
        raise MisconfigurationException(
            f"{format_path(path)!r} is there already with the value {current!r}; drop the + to change it"
        )
    else:
        container[key] = copy.deepcopy(value)
    return path


def _remove(tree: dict, parts: list[str], expected: Any) -> KeyPath:
    container, path = _descend(tree, parts, create=False)
    key = find_key(container, parts[-1])
    if key is None:
        raise _missing(container, path, parts[-1])
    if expected is not ... and container[key] != expected:
        raise MisconfigurationException(f"{format_path((*path, key))!r} is {container[key]!r}, not {expected!r}")
    del container[key]
    return (*path, key)


def _missing(container: dict | list, path: KeyPath, part: str, hint: str = "") -> MisconfigurationException:
    where = f"{format_path(path)!r}" if path else "the configuration"
    if isinstance(container, list):
        return MisconfigurationException(f"{where} is a list of {len(container)}; it has no item {part!r}{hint}")
    known: Iterable[str] = map(str, container)
    return MisconfigurationException(f"{where} has no key {part!r}{hint}{nearest(part, known)}")
