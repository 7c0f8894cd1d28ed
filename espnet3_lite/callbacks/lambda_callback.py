"""`LambdaCallback`: a callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from espnet3_lite.callbacks.base import HOOKS, Callback
from espnet3_lite.exceptions import nearest


class LambdaCallback(Callback):
    """Calls a function at each hook that it is given for, with the hook's arguments.

    Args:
        hooks: Functions by the hook's name; each gets what the hook of `Callback` gets, without ``self``. None: none.

    Raises:
        TypeError: a hook that there is not, with the nearest that there is; or something that cannot be called.

    Example:
        >>> callback = LambdaCallback(setup=lambda trainer, module, stage: print("setting up for", stage))
        >>> callback.setup(None, None, "fit")
        setting up for fit
    """

    def __init__(self, **hooks: Callable[..., Any] | None):
        for name, function in hooks.items():
            if name not in HOOKS:
                raise TypeError(f"LambdaCallback() got an unexpected hook {name!r}{nearest(name, HOOKS)}")
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"LambdaCallback({name}={function!r}): give a function, or None for nothing")
            setattr(self, name, function)
