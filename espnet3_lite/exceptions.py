"""The errors that users may catch, and what their messages are made of: the nearest name, whose class it is.

Imports nothing of ours: every room may use it.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable


class MisconfigurationException(Exception):
    """The settings contradict each other or the model; the message says which, where, and what would do.

    The name is Lightning's, so that `except MisconfigurationException` moves over.
    """


class MisconfigurationRuntimeError(MisconfigurationException, RuntimeError):
    """A mistake in the settings for which Lightning raises a plain `RuntimeError`: caught by either name."""


class StopTrainingError(Exception):
    """Raised by any callback or module to end a run cleanly: checkpoints are kept, `fit` returns normally.

    The name is pytorch-accelerated's; the event `on_stop_training_error` is called before the run ends.
    """


class SearchIsOverError(StopTrainingError):
    """Ends a call that was made for a search alone: no training began, and `on_fit_end` is not called."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong with it."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint of that name."""


def refuse(beginning: str, *problems: tuple[object, str]) -> None:
    """Raise the first of some problems that there is.

    Args:
        beginning: Of the message: what is wrong.
        problems: Each as (is there this one?, what to say of it).

    Raises:
        MisconfigurationException: there is one.

    >>> refuse("frequency=", (False, "'daily' is no number"), (0 < 1, "0 is below 1"))
    Traceback (most recent call last):
        ...
    espnet3_lite.exceptions.MisconfigurationException: frequency=0 is below 1
    """
    for is_there, what in problems:
        if is_there:
            raise MisconfigurationException(beginning + what)


def nearest(name: str, known: Iterable[str], part: Callable[[str], str] = str, alike: float = 0.6) -> str:
    """The end of an error message about an unknown name: ``"; did you mean 'max_epochs'?"``, or nothing.

    Args:
        name: What was given.
        known: What would have done.
        part: Gives what of a name is compared (capitals count as small letters): not what all names have in common.
        alike: How much of two names must be the same, from 0 to 1.

    >>> nearest("max_epoch", ["max_epochs", "min_epochs"])
    "; did you mean 'max_epochs'?"
    >>> nearest("colour", ["max_epochs"])
    ''
    >>> nearest("Adamw", ["Adam", "AdamW"])
    "; did you mean 'AdamW'?"
    """
    compared = {part(entry).casefold(): entry for entry in reversed(list(known))}  # of equal ones the first
    matches = difflib.get_close_matches(part(str(name)).casefold(), compared, n=1, cutoff=alike)
    return f"; did you mean {compared[matches[0]]!r}?" if matches else ""


def parentheses_missing(given: object) -> str:
    """The end of an error message about a class that stands where an instance is wanted, or nothing.

    >>> parentheses_missing(dict), parentheses_missing({})
    ('; pass an instance: add the parentheses', '')
    """
    return "; pass an instance: add the parentheses" if isinstance(given, type) else ""


def wrong_class(name: str, given: object, ours: str, lightnings: str, otherwise: str = "") -> str:
    """The error message about an argument that is none of our class.

    Args:
        name: The argument's.
        given: What it was.
        ours: Our class.
        lightnings: What `espnet3_lite.compat` calls that class, as Lightning does.
        otherwise: The end of the message, where there is nothing better to say of the object.

    >>> wrong_class("model", dict, "LiteModule", "LightningModule")
    '`model` must be a `LiteModule`, got `type`; pass an instance: add the parentheses'
    """
    hint = parentheses_missing(given)
    if any(map(is_lightnings, type(given).__mro__)):
        hint = (
            f"; it is derived from Lightning's own class: take `{lightnings}` from `espnet3_lite.compat`, which has "
            f"the same methods (`python -m espnet3_lite.compat FILE` changes the imports)"
        )
    return f"`{name}` must be a `{ours}`, got `{type(given).__qualname__}`{hint or otherwise}"


def wrong_arguments(kind: type, given: Iterable[str], wanted: Iterable[str]) -> str:
    """The end of an error message about an object that cannot be built from a checkpoint, or nothing.

    Args:
        kind: Its class.
        given: The names of all arguments that it would be built with.
        wanted: Those of them that the caller named.
    """
    parameters = inspect.signature(kind).parameters
    if unknown := sorted(set(wanted) - set(given)):
        called = ", ".join(f"{name}=..." for name in unknown)
        return f"({called}): {kind.__name__}.__init__ takes no such argument{nearest(unknown[0], parameters)}"
    needed = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing := [name for name in needed if name not in set(given)]:
        called = ", ".join(f"{name}=..." for name in missing)
        return (
            f": {kind.__name__}.__init__ needs {', '.join(map(repr, missing))}, which the checkpoint does not hold. "
            f"Give it here, load_from_checkpoint(path, {called}); or call self.save_hyperparameters() in __init__ "
            f"before you train"
        )
    return ""


def is_lightnings(kind: type) -> bool:
    """True for a class that one of Lightning's packages defines."""
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
