"""What a ``_target_`` may not name: what runs commands or code given as text, removes files, or ends the process.

A configuration is code all the same: any function that is installed can be called with any arguments, and one of them
may do harm. This list stops accidents and the plainest attacks, as Hydra's does; it makes no stranger's file safe.

The object that a name leads to is judged by its own module and name, and so is everything on the way to it:
``logging.os.system`` is ``os.system``. The environment variable ``ESPNET3_LITE_ALLOW_TARGETS`` lists exceptions,
separated by commas.
"""

import functools
import inspect
import os
import re
from typing import Any

#: Modules that are refused with all that they define.
_REFUSED_MODULES = frozenset(
    """
    _ctypes _frozen_importlib _frozen_importlib_external _pickle _posixsubprocess _sitebuiltins bdb cProfile cloudpickle
    code codeop ctypes dill doctest gc importlib inspect marshal pdb pickle profile pty pydoc runpy shelve signal
    subprocess timeit trace webbrowser
    """.split()
)

#: Single names of other modules, as patterns of the whole name.
_REFUSED_NAMES = re.compile(
    r"""
    builtins\.(eval|exec|compile|__import__|__build_class__|getattr|setattr|delattr|breakpoint|input|vars|locals|globals)
    | os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|kill\w*|abort|_exit|remove|removedirs|unlink|rmdir
        |rename\w*|replace|truncate|ftruncate|chmod|lchmod|fchmod|chown|lchown|fchown|chroot|set\w*id|setgroups
        |startfile|pidfd_open|putenv|unsetenv)
    | sys\.(exit|settrace|setprofile|addaudithook|_getframe|_current_frames)
    | shutil\.(rmtree|move|chown)
    | pathlib\.\w*Path\.(unlink|rmdir|rename|replace|chmod|lchmod)
    | operator\.(attrgetter|methodcaller|itemgetter|call)
    | functools\.reduce
    | yaml\.(load|load_all|full_load|full_load_all|unsafe_load|unsafe_load_all)
    | types\.(FunctionType|CodeType)
    | builtins\.(function|code)
    | torch\.serialization\._legacy_load
    | pandas\.io\.pickle\.read_pickle | joblib\.numpy_pickle\.load
    """,
    re.VERBOSE,
)

#: Modules that are known under another name than the one that defines their objects.
_PUBLIC = {
    "posix": "os", "nt": "os", "_operator": "operator", "_functools": "functools", "_signal": "signal",
    "pathlib._local": "pathlib",
}  # fmt: skip


def refusal(name: str, passed: list[Any]) -> str | None:
    """Why a target is refused, or None.

    Args:
        name: As it is written.
        passed: The objects that the name leads past, the one that it names among them.

    >>> import logging
    >>> refusal("logging.os.getcwd", [logging, os, os.getcwd])
    >>> print(refusal("logging.os.system", [logging, os, os.system]))
    it is os.system, which runs, removes or ends things and is no part of a configuration...
    """
    for found in passed:
        if inspect.ismodule(found):
            continue
        own = _own_name(found)
        if own is not None and _is_refused(own) and own not in _allowed() and name not in _allowed():
            return (
                f"it is {own}, which runs, removes or ends things and is no part of a configuration; if it is meant, "
                f"ESPNET3_LITE_ALLOW_TARGETS={own} in the environment allows it"
            )
    return None


def _own_name(found: Any) -> str | None:
    """``module.name`` of an object, wherever it was reached; None where it has none, such as a number."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found) if callable(found) else found
    if not hasattr(found, "__qualname__"):
        found = type(found)
    module = getattr(found, "__module__", None) or getattr(getattr(found, "__objclass__", None), "__module__", None)
    owner = getattr(found, "__self__", None)
    if module is None and inspect.isbuiltin(found):
        module = owner.__name__ if inspect.ismodule(owner) else type(owner).__module__
    return f"{_PUBLIC.get(str(module), module)}.{found.__qualname__}"


def _is_refused(own: str) -> bool:
    return own.partition(".")[0] in _REFUSED_MODULES or _REFUSED_NAMES.fullmatch(own) is not None


def _allowed() -> list[str]:
    return [name.strip() for name in os.environ.get("ESPNET3_LITE_ALLOW_TARGETS", "").split(",")]
