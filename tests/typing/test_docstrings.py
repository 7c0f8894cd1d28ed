"""Every public name has a docstring that names each of its parameters; so has each public method.

A method that overrides another may leave its parameters to that one's docstring. Hooks and events may leave
theirs to the tables that say what each gets: `docs/hooks.md`, and `accelerated/trainer_callback.py`.
"""

import importlib
import inspect
import re

import pytest

import espnet3_lite
from espnet3_lite import callbacks, loggers, strategies
from espnet3_lite.accelerated.trainer_callback import TrainerCallback
from espnet3_lite.espnet.import_aliases import HOMES
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.trainer.hook_table import HOOKS
from espnet3_lite.trainer.properties import TrainerProperties

EVENTS = {name for name in vars(TrainerCallback) if name.startswith("on_")}
RECIPES = [getattr(importlib.import_module(f"espnet3_lite.{home}"), name) for name, home in HOMES.items()]
PUBLIC = {
    f"{one.__module__.removeprefix('espnet3_lite.')}.{one.__qualname__}": one
    for one in [
        *(getattr(room, name) for room in (espnet3_lite, callbacks, loggers, strategies) for name in room.__all__),
        *(ModuleHooks, TrainerProperties, *RECIPES),
    ]
    if callable(one)
}


def unnamed(function, text):
    """The parameters of a function that a text does not name; those that begin with ``_`` are nobody's business."""
    parameters = inspect.signature(function).parameters.values()
    open_end = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [one.name for one in parameters if one.kind not in open_end and not one.name.startswith("_")]
    return [name for name in names if name not in ("self", "cls") and not re.search(rf"\b{name}\b", text)]


def plain(member):
    """A method without its decoration as a class or static method."""
    return member.__func__ if isinstance(member, (classmethod, staticmethod)) else member


def missing(one):
    """What is undocumented of a public class or function, in words."""
    if not one.__doc__:
        return ["no docstring"]
    if not inspect.isclass(one):
        return unnamed(one, one.__doc__)
    members = {name: plain(member) for name, member in vars(one).items() if not name.startswith("_")}
    found = unnamed(one.__init__, f"{one.__doc__} {one.__init__.__doc__}") if "__init__" in vars(one) else []
    for name, member in members.items():
        if isinstance(member, property) and not member.__doc__:
            found.append(f"{name}: no docstring")
        if inspect.isfunction(member):
            text = " ".join(plain(vars(base)[name]).__doc__ or "" for base in one.__mro__ if name in vars(base))
            if not text:
                found.append(f"{name}: no docstring")
            elif name not in HOOKS and name not in EVENTS:
                found += [f"{name}: {parameter}" for parameter in unnamed(member, text)]
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_names_each_parameter(name):
    assert missing(PUBLIC[name]) == []


def test_what_the_test_above_would_find():
    class Undocumented:
        """Takes `width`."""

        def __init__(self, width, height):
            pass

        def area(self, unit):
            """The area."""

        def name(self):
            pass

    assert missing(Undocumented) == ["height", "area: unit", "name: no docstring"]
    assert unnamed(lambda width, _height, *others: None, "A `width`.") == []
