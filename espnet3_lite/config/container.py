"""Settings: YAML files merged in order, ``${...}`` resolved on reading, overrides from the command line.

>>> config = Config.create({"exp_dir": "exp/one", "trainer": {"max_epochs": 3, "log": "${exp_dir}/log"}})
>>> config.trainer.max_epochs, config["trainer"]["log"]
(3, 'exp/one/log')

Here: `Config`, `load_config`, merging. Next door: `yaml_text` (text), `interpolation` (``${...}``),
`overrides` (``key=value``). Not here: what the keys mean (`schema`) and what they build
(`targets`).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any

from espnet3_lite.config.files import read_with_defaults, write_in_names
from espnet3_lite.config.interpolation import (
    InterpolationError,
    Reference,
    is_interpolated,
    node_at,
    plain_value,
    resolve,
)
from espnet3_lite.config.overrides import apply_override
from espnet3_lite.config.yaml_text import KeyPath, format_path, write_yaml
from espnet3_lite.exceptions import MisconfigurationException, nearest


class ConfigKeyError(MisconfigurationException, AttributeError, KeyError):
    """A key that is not there; a KeyError and an AttributeError, as the two ways of access expect."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Root:
    """A whole configuration: its raw tree and where each key was written. Shared by all views into it."""

    def __init__(self, tree: dict[str, Any], locations: dict[KeyPath, str]):
        self.tree = tree
        self.locations = locations


class _View:
    """What `Config` and `ConfigList` share: a window on one container, which resolves what it reads."""

    __slots__ = ("_root", "_path", "_node")
    _root: _Root
    _path: KeyPath
    _node: Any  # a dict or a list of the tree

    def __init__(self, root: _Root, path: KeyPath):
        object.__setattr__(self, "_root", root)
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_node", node_at(root.tree, path))

    def __reduce__(self):
        return type(self), (self._root, self._path)

    def __len__(self) -> int:
        return len(self._node)

    def __repr__(self) -> str:
        return repr(self._node)

    def _read(self, key: str | int) -> Any:
        value = resolve(self._root.tree, (*self._path, key))
        return _view(self._root, value.path) if isinstance(value, Reference) else value

    def _write(self, key: str | int, value: Any) -> None:
        self._node[key] = _raw(value)
        self._root.locations.pop((*self._path, key), None)

    def to_container(self, resolve: bool = True) -> Any:
        """A copy as plain dicts and lists.

        Args:
            resolve: Whether ``${...}`` is replaced by what it stands for.

        Raises:
            InterpolationError: An interpolation that cannot be resolved.
        """
        if resolve:
            return plain_value(self._root.tree, self._path)
        return _raw(self._node)

    def to_yaml(self, resolve: bool = False) -> str:
        """YAML text that `load_config` reads back equal; by default ``${...}`` stays as it is."""
        return write_yaml(self.to_container(resolve=resolve))

    def raw(self, key: str | int) -> Any:
        """The value as it is written, with its ``${...}``; containers as plain dicts and lists."""
        return _raw(self._node[key])

    def location(self, *path: str | int) -> str | None:
        """Where a key was written: ``"training.yaml, line 7"``, or None for one that a program set."""
        return self._root.locations.get((*self._path, *path))


class Config(_View, MutableMapping[str, Any]):
    """A mapping with access by item and by attribute, whose interpolations are resolved when they are read.

    A nested mapping is a `Config` too, a list a `ConfigList`; both are windows on one shared tree, so a
    change made through one of them is seen by all, and by every ``${...}`` that refers to it. A key named
    like a method (``items``, ``get``, ...) is reached as an item. Safe to pickle and to copy deeply (the
    whole tree goes along).

    >>> config = Config.create({"model": {"size": 4}, "layers": [{"size": "${model.size}"}]})
    >>> config.model.size = 8
    >>> config.layers[0].size
    8
    >>> config.modle
    Traceback (most recent call last):
        ...
    espnet3_lite.config.container.ConfigKeyError: the configuration has no key 'modle'; did you mean 'model'?...
    """

    __slots__ = ()

    @classmethod
    def create(cls, values: Mapping) -> "Config":
        """A configuration of its own from a mapping; tuples become lists, other values are kept."""
        if not isinstance(values, Mapping):
            raise MisconfigurationException(f"a Config is made from a mapping, not from {values!r}")
        return cls(_Root(_raw(values), {}), ())

    def __getitem__(self, key: str) -> Any:
        if key not in self._node:
            where = repr(format_path(self._path)) if self._path else "the configuration"
            raise ConfigKeyError(f"{where} has no key {key!r}{nearest(key, map(str, self._node))}")
        return self._read(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`: no nearest name is looked for, which takes long."""
        return self._read(key) if key in self._node else default

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for special methods before the slots are filled
            raise AttributeError(name)
        return self[name]

    def __setitem__(self, key: str, value: Any) -> None:
        self._write(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._write(name, value)

    def __delitem__(self, key: str) -> None:
        if key not in self._node:
            self[key]  # raises the error with the nearest name
        del self._node[key]

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._node)

    def __contains__(self, key: object) -> bool:
        return key in self._node

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self._node)]


class ConfigList(_View, MutableSequence[Any]):
    """A list inside a `Config`; equal to a list with the same resolved items.

    >>> Config.create({"size": 4, "sizes": [1, "${size}"]}).sizes == [1, 4]
    True
    """

    __slots__ = ()

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._read(position) for position in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __setitem__(self, index: int | slice, value: Any) -> None:
        if isinstance(index, slice):
            self._node[index] = _raw(value)
        else:
            self._write(range(len(self))[index], value)

    def __delitem__(self, index: int | slice) -> None:
        del self._node[index]

    def insert(self, index: int, value: Any) -> None:
        """Put a value in front of the one at a position, as a list does."""
        self._node.insert(index, _raw(value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | tuple | ConfigList):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list's


def path_of(view: Config | ConfigList) -> KeyPath:
    """Where in its whole configuration a nested one stands; empty for the whole. (A method would hide a key.)

    >>> path_of(Config.create({"trainer": {"callbacks": []}}).trainer.callbacks)
    ('trainer', 'callbacks')
    """
    return view._path


def _view(root: _Root, path: KeyPath) -> Config | ConfigList:
    return (Config if isinstance(node_at(root.tree, path), dict) else ConfigList)(root, path)


def _raw(value: Any) -> Any:
    """A value as a tree holds it. A view of a part is resolved, since its references stay behind."""
    if isinstance(value, _View):
        return value.to_container(resolve=bool(value._path))
    if isinstance(value, Mapping):
        return {key: _raw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_raw(item) for item in value]
    return value


def merge(config: Config, other: Mapping) -> None:
    """Lay ``other`` over ``config``, in place: mappings merge key by key, all else (lists, null) replaces.

    A mapping laid over an interpolation is laid over a copy of what the interpolation stands for, as in
    OmegaConf.

    >>> config = Config.create({"a": {"x": 1, "y": [1, 2]}})
    >>> merge(config, {"a": {"y": [3], "z": 4}})
    >>> config
    {'a': {'x': 1, 'y': [3], 'z': 4}}
    """
    source = other if isinstance(other, Config) else Config.create(other)
    _merge(config._root, (), source._node if not source._path else _raw(source), source._root.locations)


def _merge(root: _Root, path: KeyPath, source: dict, locations: dict[KeyPath, str]) -> None:
    node = node_at(root.tree, path)
    for key, value in source.items():
        below = (*path, key)
        if isinstance(value, dict) and is_interpolated(node.get(key)):
            pointed_at = _pointed_at(root.tree, below)
            if pointed_at is not None:
                node[key] = copy.deepcopy(node_at(root.tree, pointed_at.path))
        if below in locations:
            root.locations[below] = locations[below]
        if isinstance(value, dict) and isinstance(node.get(key), dict):
            _merge(root, below, value, locations)
            continue
        node[key] = _raw(value)
        inner = {place: line for place, line in locations.items() if place[: len(below)] == below}
        root.locations.update(inner)


def _pointed_at(tree: dict, path: KeyPath) -> Reference | None:
    """The container that an interpolation stands for; None for a scalar or what cannot be resolved (yet)."""
    try:
        value = resolve(tree, path)
    except InterpolationError:
        return None  # the mapping laid over it replaces it, as in OmegaConf, so nobody misses its value
    return value if isinstance(value, Reference) else None


def load_config(*paths: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read one or several YAML files into one configuration.

    Args:
        paths: Files, merged in order: a later one is laid over the earlier ones (a recipe's over a
            template's). A file may name others in a ``defaults`` list, as ESPnet3's may.
        overrides: ``"key.path=value"`` and its kin, applied last; see `overrides`.

    Returns:
        The configuration. ``${self_name:}`` is the last file's name without its suffix; paths in
        ``${config_path:...}`` and ``${load_line:...}`` are relative to the file they are written in.

    Raises:
        FileNotFoundError: A file that is not there, with the nearest name beside it.
        MisconfigurationException: Broken YAML (with file and line), or an override that does not fit.
    """
    if not paths:
        raise MisconfigurationException("load_config needs at least one file")
    config = Config.create({})
    for path in map(Path, paths):
        for tree, locations in read_with_defaults(path):
            merge(config, Config(_Root(tree, locations), ()))
    write_in_names(config._root.tree, Path(paths[-1]))
    for override in overrides:
        changed = apply_override(config._root.tree, override)
        config._root.locations[changed] = "command line"
    return config
