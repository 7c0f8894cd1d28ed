"""Names of a package that are imported when they are first used, so that importing the package costs nothing."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: The package's name.
        homes: Each name, and where it is: a module, or ``module:name`` where it is called otherwise there.

    Example:
        >>> attribute, names = lazy_names("espnet3_lite.lazy_names", {"sqrt": "math", "root": "math:sqrt"})
        >>> attribute("root")(9.0), "sqrt" in names()
        (3.0, True)
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, original = homes[name].partition(":")
        value = getattr(importlib.import_module(module), original or name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
