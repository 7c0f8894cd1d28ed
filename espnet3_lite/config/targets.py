"""``_target_``: from a mapping that names a class or function to what it builds, as Hydra's `instantiate`.

A target is any importable Python name but for the few that `allowed_targets` refuses, so a configuration is code,
exactly as Hydra's is: read a stranger's configuration before you use it. (YAML tags run nothing; see `yaml_text`.)

Here: finding targets, and building what they name. Names of Lightning, ESPnet3 and some of ESPnet2 give this
package's class of the same name (`OURS` says which). Where espnet itself is installed, the classes that are missing
here are espnet's own, and with ``ESPNET3_LITE_USE_ESPNET=1`` in the environment all of them are. Not here: what may
stand in a configuration (`schema`).
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from espnet3_lite.config.allowed_targets import refusal
from espnet3_lite.config.container import Config, ConfigList, path_of
from espnet3_lite.config.environment import masked, masked_repr
from espnet3_lite.config.yaml_text import KeyPath, format_path
from espnet3_lite.exceptions import MisconfigurationException, nearest

_HOME = ("callbacks", "loggers", "espnet.schedulers", "compat")

OURS: dict[str, tuple[str, ...]] = {
    "lightning": _HOME,
    "pytorch_lightning": _HOME,
    "espnet3.components": _HOME,
    "espnet2.iterators": ("compat",),
    "espnet2.samplers": ("compat",),
    "espnet2.schedulers": ("espnet.schedulers",),
    "espnet2.train.collate_fn": ("compat",),
}
"""Names that begin with a key are looked up, by their last part, in these modules of ``espnet3_lite``."""

HOW_TO_INSTALL_ESPNET = (
    "espnet is not installed; `pip install espnet` installs it without Lightning, which only its extra `train` would "
    "bring (docs/espnet-recipes.md lists what else recipes import)"
)

_SPECIAL = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


class TargetError(MisconfigurationException):
    """A ``_target_`` that names nothing that can be imported."""


class InstantiationError(MisconfigurationException):
    """A ``_target_`` that raised when it was called; the cause is chained."""


def is_installed(package: str) -> bool:
    """Whether a package is installed. A mere folder of that name, or what stands in for the package here, is not it.

    >>> is_installed("torch"), is_installed("no_such_package")
    (True, False)
    """
    if package in sys.modules and getattr(sys.modules[package], "__spec__", None) is None:
        return True  # made by hand, as tests and notebooks do
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _needs_espnet(name: str) -> bool:
    """Whether a name is of a package of espnet's that is not installed."""
    package = name.partition(".")[0]
    return package in ("espnet2", "espnet3") and not is_installed(package)


def find_target(name: Any) -> Any:
    """The class, function or method that a ``_target_`` names.

    Args:
        name: A dotted name. Under a prefix in `OURS`, this package's object of the same last name. Or what is called
            itself, from a configuration that was made in Python.

    Raises:
        TargetError: Nothing of that name; the message says which part failed, and what is near. Or one that is
            refused, as `allowed_targets` says.

    >>> find_target("espnet2.schedulers.warmup_lr.WarmupLR")
    <class 'espnet3_lite.espnet.schedulers.warmup.WarmupLR'>
    >>> find_target("torch.optim.Adm")
    Traceback (most recent call last):
        ...
    espnet3_lite.config.targets.TargetError: 'torch.optim.Adm': 'torch.optim' has no 'Adm'; did you mean 'Adam'?
    """
    if callable(name):
        return name
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise TargetError(f"{name!r} is not a dotted Python name such as 'torch.optim.Adam'")
    prefix = _our_prefix(name)
    return _import_name(name) if prefix is None else _find_ours(name, OURS[prefix])


def _our_prefix(name: str) -> str | None:
    if name.startswith("espnet") and os.environ.get("ESPNET3_LITE_USE_ESPNET", "0") not in ("", "0"):
        return None
    return next((prefix for prefix in OURS if name.startswith(prefix + ".")), None)


def _find_ours(name: str, homes: tuple[str, ...]) -> Any:
    last = name.rpartition(".")[2]
    known: list[str] = []
    for home in homes:
        module = importlib.import_module(f"espnet3_lite.{home}")
        try:
            return getattr(module, last)
        except AttributeError:
            pass
        except ImportError as error:  # it is left out, or needs a package that is not installed: this says so
            raise TargetError(f"{name!r}: {error}") from error
        known += [public for public in dir(module) if not public.startswith("_")]
    if is_installed(name.partition(".")[0]) and name.startswith("espnet"):
        return _import_name(name)
    theirs = (
        f"; {HOW_TO_INSTALL_ESPNET}" if name.startswith("espnet") else "; write your own and name it by its full path"
    )
    raise TargetError(f"{name!r}: espnet3_lite has no {last!r}{theirs}{nearest(last, known)}")


def _import_name(name: str) -> Any:
    """Import the longest part of the name that is a module, and take the rest from it as attributes."""
    parts = name.split(".")
    found = _import_module(name, parts[0])
    passed = [found]
    for depth, part in enumerate(parts[1:], start=1):
        if not hasattr(found, part) and inspect.ismodule(found):
            found = _import_module(name, ".".join(parts[: depth + 1]), within=found)
        elif not hasattr(found, part):
            raise _no_such_part(name, ".".join(parts[:depth]), part, found)
        else:
            found = getattr(found, part)
        passed.append(found)
    reason = refusal(name, passed)
    if reason is not None:
        raise TargetError(f"{name!r} is refused: {reason}")
    return found


def _import_module(name: str, module: str, within: Any = None) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            hint = f"; {HOW_TO_INSTALL_ESPNET}" if _needs_espnet(error.name or "") else ""
            raise TargetError(f"{name!r}: importing {module!r} failed: {error}{hint}") from error
        if _needs_espnet(name):
            raise TargetError(f"{name!r}: {HOW_TO_INSTALL_ESPNET}") from None
        if within is None:
            raise TargetError(
                f"{name!r}: there is no package {module!r}; is it installed, or its folder on PYTHONPATH?"
            ) from None
        parent, _, part = module.rpartition(".")
        raise _no_such_part(name, parent, part, within) from None
    except Exception as error:  # whatever the user's module raises while it is imported is reported with its name
        raise TargetError(f"{name!r}: importing {module!r} failed: {type(error).__name__}: {error}") from error


def _no_such_part(name: str, parent: str, part: str, found: Any) -> TargetError:
    if _needs_espnet(name):  # what was found stands in for it
        return TargetError(f"{name!r}: {HOW_TO_INSTALL_ESPNET}")
    return TargetError(f"{name!r}: {parent!r} has no {part!r}{nearest(part, dir(found))}")


def instantiate(config: Any, *args: Any, **kwargs: Any) -> Any:
    """Build what a configuration describes.

    A mapping with ``_target_`` becomes the result of calling the target with the mapping's other keys; inside
    of it, and in other mappings and lists, the same is done first. Further keys: ``_args_`` (positional
    arguments), ``_partial_: true`` (a `functools.partial` instead of a call), ``_recursive_: false`` (what is
    inside stays configuration, as plain dicts and lists). ``_convert_`` is accepted; targets always get plain
    dicts and lists.

    Args:
        config: A `Config`, a mapping or a list. None, and what is neither (an object already built), comes
            back as is.
        args: Positional arguments for the target, in place of ``_args_``.
        kwargs: Keyword arguments for the target, over the configuration's: mappings are merged, all else
            replaces.

    Returns:
        The object; for a mapping or a list without ``_target_``, a dict or list of what is inside.

    Raises:
        TargetError: A ``_target_`` that cannot be imported.
        InstantiationError: A target that raised, with the path in the configuration and the arguments' names.

    >>> instantiate({"_target_": "datetime.timedelta", "hours": 1}, minutes=30)
    datetime.timedelta(seconds=5400)
    """
    path: KeyPath = ()
    if isinstance(config, Config | ConfigList):
        path = path_of(config)
        config = config.to_container(resolve=True)
    elif isinstance(config, Mapping):
        config = Config.create(config).to_container(resolve=True)
    elif isinstance(config, list | tuple):
        config = Config.create({"list": config}).to_container(resolve=True)["list"]
    else:
        return config
    if kwargs:
        if not isinstance(config, dict):
            raise MisconfigurationException(f"keyword arguments {sorted(kwargs)} need a mapping with a _target_")
        config = _overlay(config, kwargs)
    return _build(config, path, recursive=True, args=args)


def _overlay(config: dict, kwargs: Mapping) -> dict:
    result = dict(config)
    for key, value in kwargs.items():
        value = value.to_container() if isinstance(value, Config | ConfigList) else value
        below = result.get(key)
        result[key] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _build(node: Any, path: KeyPath, recursive: bool, args: tuple = ()) -> Any:
    if isinstance(node, list):
        return [_build(item, (*path, index), recursive) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    recursive = _flag(node, "_recursive_", path, recursive)
    partial = _flag(node, "_partial_", path, False)
    if "_target_" not in node:
        return {key: _build(value, (*path, key), recursive) for key, value in node.items()}
    try:
        target = find_target(node["_target_"])
    except TargetError as error:
        raise TargetError(f"{format_path((*path, '_target_'))}: {error}") from error.__cause__
    if not callable(target):
        raise TargetError(f"{format_path((*path, '_target_'))}: {node['_target_']!r} cannot be called")
    configured = node.get("_args_", [])
    if not isinstance(configured, list):
        raise MisconfigurationException(f"{format_path((*path, '_args_'))}: {configured!r} is not a list")
    kwargs = {key: value for key, value in node.items() if key not in _SPECIAL}
    if recursive:
        configured = _build(configured, (*path, "_args_"), recursive)
        kwargs = {key: _build(value, (*path, key), recursive) for key, value in kwargs.items()}
    return _call(target, args or tuple(configured), kwargs, node["_target_"], path, partial)


def _flag(node: dict, key: str, path: KeyPath, default: bool) -> bool:
    value = node.get(key, default)
    if not isinstance(value, bool):
        raise MisconfigurationException(f"{format_path((*path, key))}: {value!r} is neither true nor false")
    return value


def _call(target: Callable, args: tuple, kwargs: dict, name: Any, path: KeyPath, partial: bool) -> Any:
    if partial:
        return functools.partial(target, *args, **kwargs)
    try:
        return target(*args, **kwargs)
    except Exception as error:
        where = f"{format_path(path)}: " if path else ""
        given = ", ".join(
            [*(type(value).__name__ for value in args), *(f"{key}={_shown(value)}" for key, value in kwargs.items())]
        )
        unknown = unknown_arguments(target, kwargs) if isinstance(error, TypeError) else []
        near = (nearest(key, parameter_names(target)) for key in unknown)
        hint = "".join(f"; it takes no {key!r}" for key in unknown) + next(filter(None, near), "")
        if isinstance(error, TypeError) and "required positional argument" in str(error) and inspect.isroutine(target):
            hint += "; for the function itself, as a collate_fn must be, instead of what it returns: _partial_: true"
        said = str(error).partition(". Did you mean")[0] if unknown else str(error)  # by Python 3.13, and by us
        message = f"raised {type(error).__name__}: {masked(said)}{hint}"
        raise InstantiationError(f"{where}{name}({given}) {message}") from error


def _shown(value: Any) -> str:
    """A short value as it is, anything longer by its type; what came from the environment is masked."""
    short = value is None or isinstance(value, bool | int | float | str) and len(repr(value)) <= 40
    return masked_repr(value) if short else f"<{type(value).__name__}>"


def parameter_names(target: Callable) -> list[str]:
    """The names that a target takes as keywords; none where Python cannot tell (some built-in classes)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in named]


def unknown_arguments(target: Callable, names: Any) -> list[str]:
    """Those of the names that a target does not take; none where it takes any name, or Python cannot tell.

    >>> unknown_arguments(lambda size, depth=1: None, ["size", "dept"])
    ['dept']
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return []
    known = parameter_names(target)
    return [name for name in names if name not in known]
