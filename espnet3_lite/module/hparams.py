"""`save_hyperparameters`, `hparams` and `load_from_checkpoint`: shared by modules and data modules.

A checkpoint holds tensors and plain values only. A class or a function is stored as its name, never as code, and comes
back where somebody has imported it already; a path, a `Namespace` and a dataclass come back as what they were. What is
a mapping whose keys are attributes (OmegaConf's `DictConfig`, easydict's `EasyDict`) comes back as an `AttributeDict`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import os
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.allowed_types import plain
from espnet3_lite.checkpoint.lightning_format import OUR_STATE
from espnet3_lite.checks.signatures import taken_of
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest, refuse, wrong_arguments

if TYPE_CHECKING:
    from typing_extensions import Self


class AttributeDict(dict[str, Any]):
    """A dict whose keys are attributes too.

    >>> AttributeDict(lr=0.1).lr
    0.1
    """

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"no hyperparameter {name!r}; there are {sorted(self)}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class HyperparametersMixin:
    """Remembers the arguments of ``__init__``, so that a checkpoint can build the object again.

    Example:
        >>> class Model(HyperparametersMixin):
        ...     def __init__(self, width, depth=2):
        ...         self.save_hyperparameters()
        >>> Model(8).hparams
        {'width': 8, 'depth': 2}
    """

    #: Where a checkpoint has them, for hooks that read or change it there.
    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True) -> None:
        """Save the arguments of ``__init__``, to be called from it.

        Args:
            args: Names of the arguments to save (all by default), or one dict, Namespace, dataclass or OmegaConf
                `DictConfig` to save instead; where that is an argument of ``__init__``, a checkpoint gives it back so.
            ignore: A name or names to leave out, though a base class has saved them.
            frame: Where to look for them; the caller's frame by default.
            logger: Hand them to the loggers at the start of a run.

        Raises:
            MisconfigurationException: called from elsewhere than ``__init__``, with an object that is none of these, or
                with a name that is none of its arguments'.
        """
        self._log_hyperparams = logger
        frame = frame or sys._getframe(1)
        self._hparams_name: str | None = "kwargs"
        if len(args) == 1 and not isinstance(args[0], str):
            values = _items_of(args[0])
            holders = (_init_arguments(frame, self) or {}).items()
            self._hparams_name = next((name for name, value in holders if value is args[0]), None)
        else:
            given, where = _init_arguments(frame, self), f"{type(self).__name__}.save_hyperparameters: "
            known = given or {}
            unknown = (f"{name!r} is none of {sorted(known)}{nearest(name, known)}" for name in {*args} - known.keys())
            refuse(where, (given is None, "call it from __init__"), *((True, what) for what in unknown))
            values = {name: known[name] for name in args} if args else known
        self.hparams.update(values)
        for name in [ignore] if isinstance(ignore, str) else ignore or ():
            if name not in self.hparams and not taken_of(type(self), {name: None}):
                where = f"{type(self).__name__}.save_hyperparameters(ignore={ignore!r})"
                rank_zero_warn(f"{where}: {name!r} is none of {sorted(values)}{nearest(name, values)}")
            self.hparams.pop(name, None)  # one that the base class saved, too
        self._hparams_initial = AttributeDict(_copied(self.hparams))

    @property
    def hparams(self) -> AttributeDict:
        """The saved arguments; empty if `save_hyperparameters` was not called."""
        hparams: AttributeDict = self.__dict__.setdefault("_hparams", AttributeDict())
        return hparams

    def _set_hparams(self, values: Any) -> None:
        """Lightning's way to put others in their place, which NeMo's models take."""
        self.__dict__["_hparams"] = AttributeDict(_items_of(values))

    @property
    def hparams_initial(self) -> AttributeDict:
        """The saved arguments as they were then, whatever changed since."""
        return AttributeDict(_copied(self.__dict__.get("_hparams_initial", {})))

    def _warn_of_hparams_left_out(self) -> None:
        """Before the first step: say which ones no checkpoint will hold."""
        left_out = storable(self.hparams)[2]
        if left_out:
            ignore = list(dict.fromkeys(name.partition(".")[0] for name in left_out))
            rank_zero_warn(
                f"{type(self).__name__}: checkpoints will not hold the hyperparameters {', '.join(left_out)}, which "
                f"are objects; load_from_checkpoint will need {', '.join(ignore)} as arguments. Leave them out by "
                f"save_hyperparameters(ignore={ignore})"
            )

    def _store_hparams(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Put them into a checkpoint, under Lightning's keys; `prefix` is empty for a module."""
        values, kinds, _ = storable(self.hparams)
        checkpoint[f"{prefix}hparams_name"] = self._hparams_name
        checkpoint[f"{prefix}hyper_parameters"] = values
        if kinds:
            checkpoint["loops"][OUR_STATE][f"{prefix}hparams_kinds"] = [[list(p), kind] for p, kind in kinds.items()]

    @classmethod
    def _built_from(
        cls, path: Any, map_location: Any, weights_only: bool | None, prefix: str, hparams_file: Any, overrides: Any
    ) -> tuple[Self, dict[str, Any]]:
        """Read a checkpoint, and build an object from its saved arguments of ``__init__``, some of them overridden.

        Raises:
            TypeError: ``__init__`` takes no argument of an overridden one's name, or needs one that was not saved.
        """
        files.refuse_unsafe_files(f"{cls.__name__}.load_from_checkpoint", weights_only)
        checkpoint = files.load_checkpoint(path, map_location=map_location or "cpu")
        if hparams_file is not None:
            with open(os.path.expanduser(hparams_file), encoding="utf-8") as file:
                saved = yaml.safe_load(file) or {}
        else:
            kinds = checkpoint.get("loops", {}).get(OUR_STATE, {}).get(f"{prefix}hparams_kinds", [])
            stored = checkpoint.get(f"{prefix}hyper_parameters") or {}
            stored = {name: value for name, value in stored.items() if name not in overrides}
            saved = restored(stored, {tuple(place): kind for place, kind in kinds}, cls)
        saved.update(overrides)
        name = checkpoint.get(f"{prefix}hparams_name") or ""
        holder = None if name in overrides else inspect.signature(cls).parameters.get(name)
        of_one = holder is not None and holder.kind is not holder.VAR_KEYWORD  # one argument that holds them all
        saved = {name: AttributeDict(saved), **overrides} if of_one else saved
        given = taken_of(cls, saved)
        if problem := wrong_arguments(cls, given, () if of_one else overrides):
            raise TypeError(f"{cls.__name__}.load_from_checkpoint{problem}")
        return cls(**given), checkpoint


def _items_of(given: Any) -> dict[str, Any]:
    """The entries of a container of hyperparameters.

    Raises:
        MisconfigurationException: it is none.
    """
    if isinstance(given, Mapping):  # an OmegaConf container is one, whose attributes are its own bookkeeping
        return dict(given)
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    if isinstance(given, argparse.Namespace):
        return dict(vars(given))
    raise MisconfigurationException(
        f"save_hyperparameters({given!r}): takes names of arguments, or one dict, Namespace, dataclass or DictConfig, "
        f"not a {type(given).__name__}"
    )


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, so that later changes do not show; a module, or what cannot be copied, is the object itself."""
    copies = {}
    for name, value in values.items():
        try:
            copies[name] = value if hasattr(value, "parameters") else copy.deepcopy(value)
        except Exception:  # whatever an object of the user's raises where it cannot be copied
            copies[name] = value
    return copies


def _init_arguments(frame: Any, instance: Any) -> dict[str, Any] | None:
    """The arguments of the `instance`'s ``__init__``, and of its subclasses', that run in `frame` and its callers.

    Returns:
        None where none runs.
    """
    found: dict[str, Any] | None = None
    while frame is not None:
        code = frame.f_code
        is_init = code.co_name == "__init__" and code.co_argcount > 0
        if is_init and frame.f_locals.get(code.co_varnames[0]) is instance:  # of this very object
            names = inspect.getargvalues(frame)
            arguments = {name: names.locals[name] for name in names.args[1:]}
            more = names.locals[names.keywords] if names.keywords else {}
            found = {**(found or {}), **arguments, **more}  # an outer one is a subclass's: its values are the user's
        frame = frame.f_back
    return found


# ---- in a checkpoint -----------------------------------------------------------------------------------------------

#: Where a value stands among the hyperparameters: keys and list positions.
Place: TypeAlias = tuple[str | int, ...]
#: By place, what a value was that is stored as a plain one: ``path``, ``namespace``, ``attributes`` (a mapping
#: whose keys are attributes), ``object`` (a class or function, stored as its name), or the name of a dataclass.
Kinds: TypeAlias = dict[Place, str]

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def storable(values: Mapping[str, Any]) -> tuple[dict[str, Any], Kinds, list[str]]:
    """Returns what a checkpoint can hold of the hyperparameters, how to undo it, and the names of those left out.

    >>> storable({"width": 8, "folder": pathlib.PurePosixPath("exp"), "kind": dict, "net": object()})
    ({'width': 8, 'folder': 'exp', 'kind': 'builtins.dict'}, {('folder',): 'path', ('kind',): 'object'}, ['net'])
    """
    kinds: Kinds = {}
    left_out: list[str] = []
    return _stored(values, (), kinds, left_out), kinds, left_out


def _stored(value: Any, place: Place, kinds: Kinds, left_out: list[str]) -> Any:
    """A value at its place, with all that it holds; of a dict without the entries that no checkpoint can hold."""
    if isinstance(value, os.PathLike):
        kinds[place], value = "path", os.fspath(value)
    elif isinstance(value, argparse.Namespace):
        kinds[place], value = "namespace", vars(value)
    elif isinstance(value, (type, *_FUNCTIONS)):
        kinds[place], value = "object", _name_of(value)
    elif dataclasses.is_dataclass(value):
        kinds[place] = _name_of(type(value))
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        items = [_stored(item, (*place, index), kinds, left_out) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if not isinstance(value, Mapping):  # an OmegaConf container is one, too
        return plain(value)
    # It has keys, each can be read as an attribute, and not because its class has a method of that name.
    if place and {hasattr(value, str(key)) for key in value if not hasattr(type(value), str(key))} == {True}:
        kinds[place] = "attributes"
    stored: dict[Any, Any] = {}
    for key, item in value.items():
        found: Kinds = {}
        try:
            stored[plain(key)] = _stored(item, (*place, key), found, left_out)
            kinds.update(found)
        except TypeError:  # a checkpoint could not give it back
            left_out.append(".".join(map(str, [*place, key])))
    return stored


def _name_of(value: Any) -> str:
    """The dotted name by which a class or function is found again."""
    name = f"{value.__module__}.{value.__qualname__}"
    if _found(name) is not value:
        raise TypeError(f"{name} is not found by its name")
    return name


def restored(value: Any, kinds: Kinds, owner: type, place: Place = ()) -> Any:
    """Undo `storable`.

    Args:
        value: As it is in the checkpoint: all of the hyperparameters, or those at a place.
        kinds: As `storable` gave them.
        owner: Whose hyperparameters they are: names of its own package are trusted.
        place: Where the value stands.

    Raises:
        MisconfigurationException: a class or function that is not looked up.
    """
    if not any(known[: len(place)] == place for known in kinds):
        return value  # nothing here is to be undone
    if isinstance(value, dict):
        value = {key: restored(item, kinds, owner, (*place, key)) for key, item in value.items()}
    elif type(value) in (list, tuple):
        value = type(value)(restored(item, kinds, owner, (*place, index)) for index, item in enumerate(value))
    match kinds.get(place):
        case None:
            return value
        case "path":
            return pathlib.Path(value)
        case "attributes":
            return AttributeDict(value)
        case "namespace":
            return argparse.Namespace(**value)
        case "object":
            return _trusted(value, owner, place)
        case name:
            return _trusted(name, owner, place, dataclass=True)(**value)


def _trusted(name: str, owner: type, place: Place, dataclass: bool = False) -> Any:
    """A class or function by its name: from torch's layers and optimizers, or from where `owner` comes from.

    Nothing is imported for it, and of Python's own things only types count: a checkpoint may be anybody's.
    """
    found, homes = _found(name), ("torch.nn.", "torch.optim.", f"{owner.__module__.partition('.')[0]}.")
    is_class = isinstance(found, type) and name.startswith((*homes, "builtins."))
    known = is_class or (isinstance(found, _FUNCTIONS) and name.startswith(homes))
    if not (is_class and dataclasses.is_dataclass(found) if dataclass else known):
        raise MisconfigurationException(
            f"hyper_parameters: {'.'.join(map(str, place))} was {name}, which is not imported from a checkpoint; give "
            f"it to {owner.__name__}.load_from_checkpoint: {place[0]}=..."
        )
    return found


def _found(name: str) -> Any:
    """What a dotted name means among the modules that are imported already; None for nothing."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module: Any = sys.modules.get(".".join(parts[:length]))
        if module is not None:
            return functools.reduce(lambda found, part: getattr(found, part, None), parts[length:], module)
    return None
