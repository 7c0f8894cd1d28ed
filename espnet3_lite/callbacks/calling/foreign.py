"""Callbacks that were written for Lightning, as objects of Lightning's own classes: Optuna's pruning callback, say.

They are taken where all their hooks exist here. Lightning's own callbacks that this package has under the same name
are refused with that name: they reach into parts of Lightning's trainer that ours has not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from espnet3_lite.exceptions import is_lightnings, parentheses_missing
from espnet3_lite.trainer.hook_table import EVENTS


def base_of(callback: Any) -> Any:
    """Lightning's `Callback` class that an object is derived from; None for other objects."""
    return next((kind for kind in type(callback).__mro__ if kind.__name__ == "Callback" and is_lightnings(kind)), None)


def check(callback: Any) -> None:
    """Take a callback that is none of ours, or say why not.

    Raises:
        TypeError: it is no callback of Lightning's either, it has a counterpart here, or a hook that is never called.
    """
    base, name = base_of(callback), type(callback).__name__
    if base is None:
        hint = parentheses_missing(callback)
        raise TypeError(f"callbacks must be instances of Callback, got {callback!r}{hint}")
    ours = importlib.import_module("espnet3_lite.callbacks").__all__
    lightnings = [kind.__name__ for kind in type(callback).__mro__ if is_lightnings(kind) and kind is not base]
    if counterpart := next((known for known in lightnings if known in ours), None):
        derived = "" if counterpart == name else f", which {name} is derived from,"
        raise TypeError(
            f"{counterpart}{derived} is Lightning's own callback, made for its trainer: take "
            f"`espnet3_lite.callbacks.{counterpart}`, which has the same arguments"
        )
    hooks = [hook for hook in dir(base) if hook.startswith("on_") and _overridden(callback, base, hook)]
    if unknown := [hook for hook in hooks if hook not in EVENTS]:
        raise TypeError(f"callback {name}: its hooks {unknown} are Lightning's, and are not called here")


def listener(callback: Any, event: str) -> Callable | None:
    """The method for an event, where the callback's class defines one of its own."""
    base = base_of(callback)
    return getattr(callback, event) if hasattr(callback, event) and _overridden(callback, base, event) else None


def _overridden(callback: Any, base: type, name: str) -> bool:
    own = getattr(callback, name)
    return getattr(own, "__func__", own) is not getattr(base, name, None)
