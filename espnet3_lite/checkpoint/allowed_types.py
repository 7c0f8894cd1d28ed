"""What a checkpoint may hold: which values are written, and which pickled types of other programs are read.

Writing is strict: tensors and plain Python values, so that every file of ours loads with
`torch.load(..., weights_only=True)`. Reading is wider: files that ESPnet3 wrote under Lightning hold a few
harmless objects more (hyper-parameters as `Namespace` or OmegaConf containers, paths, NumPy numbers). They are read
through an explicit list of names, never by running what a pickle asks for. Nothing here opens a file.
"""

import argparse
import datetime
import operator
import os
import pathlib
import pickle
import re
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import numpy
import torch

#: An OrderedDict is kept as it is, for a module's state dict carries its versions in an attribute of it.
_CONTAINERS = frozenset((dict, OrderedDict, Counter, list, tuple, set))
_BASES: tuple[type[Any], ...] = (bool, int, float, complex, str, bytes)
_ATOMS = frozenset((*_BASES, bytearray, type(None), torch.Size, torch.device, torch.dtype, torch.Tensor))
_PLAIN = _ATOMS | _CONTAINERS


def plain(value: object, where: str = "checkpoint") -> object:
    """Return `value` as a checkpoint may hold it: tensors and plain Python values.

    What is plain comes back as it is, the same object. A NumPy number becomes a Python number, a path a
    string, a `Namespace` a dict, and a subclass of a built-in type (a `defaultdict`, a named tuple, a string
    enum) its base.

    Args:
        value: Any tree of values.
        where: How the tree is called in an error, such as ``"checkpoint['callbacks']"``.

    Raises:
        TypeError: If a value is of another type; the message names its place and type.

    >>> plain({"rate": numpy.float64(0.5), "folder": pathlib.PurePosixPath("exp/a")})
    {'rate': 0.5, 'folder': 'exp/a'}
    >>> plain({"loss": [torch.nn.MSELoss()]})
    Traceback (most recent call last):
        ...
    TypeError: checkpoint['loss'][0] is a torch.nn.modules.loss.MSELoss, which a checkpoint cannot hold...
    """
    if _is_plain_already(value):
        return value
    try:
        return _plain(value, where, {})
    except RecursionError as error:
        raise TypeError(f"{where} is nested too deeply, or contains itself: a checkpoint cannot hold it") from error


class PlainPickling:
    """What `torch.save` takes for a ``pickle_module``. The bytes are the same.

    torch's pickler asks of each value, in three functions of Python, whether it is a tensor's memory. Here what is
    plain is known not to be.
    """

    class Pickler(pickle.Pickler):
        """The class that torch's own is made from."""

        def __init__(self, *args: Any, **kwargs: Any):
            # Through a weak reference: else the pickler, and with it the state, would wait for the garbage collector.
            of_torch = type(self).persistent_id.__get__(weakref.proxy(self))
            vars(self)["persistent_id"] = lambda value: None if type(value) in _PLAIN else of_torch(value)
            super().__init__(*args, **kwargs)


def is_plain(value: object) -> bool:
    """Whether `plain` finds nothing wrong with a value."""
    try:
        plain(value)
    except TypeError:
        return False
    return True


def _is_plain_already(value: object) -> bool:
    """Whether a tree is plain as it stands, as nearly all are: one look at each level, in a fourth of `_plain`'s time.

    False also where it is nested deeper than a checkpoint is, or contains itself.
    """
    level: list[Any] = [value]
    for _ in range(20):
        if not _PLAIN.issuperset(map(type, level)):
            return False
        held = {id(part): part for part in level if type(part) in _CONTAINERS}.values()  # what is shared counts once
        if not held:
            return True
        level = [*chain(*held, *(part.values() for part in held if isinstance(part, dict)))]
    return False


def _plain(value: Any, where: str, seen: dict[int, tuple[object, object]]) -> Any:
    """`seen` as in `_settle`: what is shared stays shared, and is looked through once."""
    if type(value) in _ATOMS or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, (dict, list, tuple, set)):
        if id(value) not in seen:
            seen[id(value)] = (value, _plain_container(value, where, seen))
        return seen[id(value)][1]
    if isinstance(value, numpy.generic):
        return _plain(value.item(), where, seen)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for base in _BASES:
        if isinstance(value, base):
            return base(value) if base is not str else str.__str__(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise TypeError(
        f"{where} is a {kind}, which a checkpoint cannot hold: it could not be loaded without running code; "
        "store tensors, numbers, strings, lists and dicts (torch.from_numpy(array), date.isoformat(), "
        "module.state_dict()) and rebuild the object from them"
    )


def _plain_container(value: Any, where: str, seen: dict[int, tuple[object, object]]) -> Any:
    is_dict, kept = isinstance(value, dict), type(value) in _CONTAINERS
    contents = [*value, *value.values()] if is_dict else [*value]
    places = [f"{where}[{key!r}]" for key in (value if is_dict else range(len(value)))]
    places = [f"a key of {where}"] * (len(contents) - len(places)) + places
    found = [_plain(item, place, seen) for item, place in zip(contents, places, strict=True)]
    if kept and all(map(operator.is_, found, contents)):
        return value
    if is_dict:
        kind = OrderedDict if type(value) is OrderedDict else dict
        return kind(zip(found[: len(value)], found[len(value) :], strict=True))
    return next(base for base in (list, tuple, set) if isinstance(value, base))(found)


# --- Reading what other programs pickled --------------------------------------------------------------------
#
# torch's weights_only unpickler calls and builds only what stands on a list of names. We give it names, and
# for each something harmless to stand for it: a standard type where that type can do nothing but hold values,
# a stand-in of our own where the real class is not installed (OmegaConf, Lightning) or can be misled by a
# forged state (NumPy's dtype and ndarray, whose __setstate__ can be made to take raw bytes for object
# pointers).


class _EmptyDict:
    """For dict subclasses: torch then fills a plain dict. Arguments (a default factory) are dropped."""

    def __new__(cls, *_: object) -> Any:
        return {}


class _EmptyList:
    """For list-likes that torch would refuse to fill."""

    def __new__(cls, *_: object) -> Any:
        return []


class _Text(str):
    """`str`, of a text alone: of a forged value, whose parts are shared, the text could be endless."""

    def __new__(cls, value: str = "") -> Any:
        return _only(str, value)


class _Bytes(bytes):
    """`bytes`, but not of a length, which may be forged: the memory would be taken at once."""

    def __new__(cls, value: bytes | list[int] = b"") -> Any:
        return bytes(value) if isinstance(value, list) else _only(bytes, value)


def _only(kind: type, value: object) -> object:
    if type(value) is not kind:
        raise pickle.UnpicklingError(f"{kind.__name__}({type(value).__name__}), which no checkpoint needs")
    return value


class _Ignored:
    """For bookkeeping that nobody reads, such as the types in OmegaConf's metadata."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Holder:
    """Stands for one object until the whole file is read; then `content` takes its place."""

    content: object = None


class _OmegaNode(_Holder):
    """An OmegaConf container or leaf: a dict, a list or a value, with interpolations left as text."""

    def __setstate__(self, state: dict[str, object]) -> None:
        self.content = state["_content"] if "_content" in state else state["_val"]


class _NumpyType:
    """`numpy.dtype`: booleans, integers, floats and complex numbers only."""

    def __init__(self, code: str, *_: object):
        if not re.fullmatch(r"(b1|[iu][1248]|f[248]|c(8|16))", code):
            raise pickle.UnpicklingError(f"a NumPy array of type {code!r}; only numbers are read")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def numbers(self, data: bytes) -> numpy.ndarray:
        return numpy.frombuffer(data, dtype=self.order + self.code)


def _numpy_scalar(kind: _NumpyType, data: bytes) -> bool | int | float | complex:
    return kind.numbers(data)[0].item()


class _NumpyArray(_Holder):
    """`numpy.ndarray`, and the function that makes an empty one before its state is known."""

    def __init__(self, *_: object):
        self.content = numpy.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, in_fortran_order, data = state
        self.content = kind.numbers(data).reshape(shape, order="F" if in_fortran_order else "C").copy()


def _named(module: str, *kinds: type) -> dict[str, Callable[..., Any]]:
    return {f"{module}.{kind.__name__}": kind for kind in kinds}


_STAND_INS: dict[str, Callable[..., Any]] = {
    # The standard library: types that only hold values.
    **_named("builtins", bool, dict, float, frozenset, int, list, slice, tuple),
    "builtins.bytes": _Bytes,
    "builtins.str": _Text,
    **_named("datetime", datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone),
    "argparse.Namespace": argparse.Namespace,
    "collections.deque": _EmptyList,
    "typing.Any": _Ignored,
    # Dicts: the standard library's, and Lightning's with attribute access, by the names they have had.
    "collections.defaultdict": _EmptyDict,
    "lightning.fabric.utilities.data.AttributeDict": _EmptyDict,
    "lightning.pytorch.utilities.parsing.AttributeDict": _EmptyDict,
    "lightning_fabric.utilities.data.AttributeDict": _EmptyDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": _EmptyDict,
    # NumPy, before and after it renamed its core.
    "numpy.dtype": _NumpyType,
    "numpy.ndarray": _NumpyArray,
    **{f"numpy.{core}.multiarray._reconstruct": _NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    # OmegaConf.
    **dict.fromkeys(("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"), _Ignored),
    **dict.fromkeys(("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"), _OmegaNode),
    **{
        f"omegaconf.nodes.{kind}Node": _OmegaNode
        for kind in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")
    },
    # Another system's path cannot be made here.
    **_named("pathlib", pathlib.PurePosixPath, pathlib.PureWindowsPath),
    "pathlib.PosixPath": pathlib.Path,
    "pathlib.WindowsPath": pathlib.PureWindowsPath,
}
# Python 3.13 moved the module of paths.
_STAND_INS |= {name.replace("lib", "lib._local"): kind for name, kind in _STAND_INS.items() if "pathlib" in name}


def allowed_names() -> list[str]:
    """The full names of the types that `load_checkpoint` reads beyond tensors and plain values, sorted."""
    return sorted(_STAND_INS)


def harmless_globals() -> AbstractContextManager[None]:
    """While entered, `torch.load(weights_only=True)` also reads what `allowed_names` lists; see `settle`."""
    return torch.serialization.safe_globals([(kind, name) for name, kind in _STAND_INS.items()])


def settle(value: object) -> object:
    """Put real values in place of the stand-ins in a tree that was loaded under `harmless_globals`."""
    return value if _is_plain_already(value) else _settle(value, {})


def _settle(value: object, seen: dict[int, tuple[object, object]]) -> object:
    # `seen` maps an id to the object and what it became. It holds the object, for an id is only good while
    # its owner lives; and it knows shared and circular references, of which a forged file may be full.
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, type) and value.__module__ == __name__:
        return None  # a class itself, such as Lightning's `hparams_type`: of no use without its package
    if isinstance(value, (dict, list, argparse.Namespace)):
        seen[id(value)] = (value, value)
        content = vars(value) if isinstance(value, argparse.Namespace) else value
        for place, item in list(content.items() if isinstance(content, dict) else enumerate(content)):
            content[place] = _settle(item, seen)
    elif isinstance(value, _Holder):
        seen[id(value)] = (value, None)
        seen[id(value)] = (value, _settle(value.content, seen))
    elif type(value) is tuple:
        seen[id(value)] = (value, tuple(_settle(item, seen) for item in value))
    return seen[id(value)][1] if id(value) in seen else value
