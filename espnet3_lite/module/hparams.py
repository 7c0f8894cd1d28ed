"""`save_hyperparameters`, `hparams` and `load_from_checkpoint`: shared by modules and data modules."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.checkpoint.lightning_format import OUR_STATE
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, wrong_arguments
from espnet3_lite.module.hparams_store import restored, storable

if TYPE_CHECKING:
    from typing_extensions import Self


class AttributeDict(dict[str, Any]):
    """A dict whose keys are attributes too.

    >>> AttributeDict(lr=0.1).lr
    0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"no hyperparameter {name!r}; there are {sorted(self)}") from error

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
            ignore: A name or names to leave out.
            frame: Where to look for them; the caller's frame by default.
            logger: Hand them to the loggers at the start of a run.

        Raises:
            MisconfigurationException: called from elsewhere than ``__init__``, or with an unknown name.
        """
        self._log_hyperparams = logger
        frame = frame or sys._getframe(1)
        self._hparams_name: str | None = "kwargs"
        if len(args) == 1 and not isinstance(args[0], str):
            values = _items_of(args[0])
            given = _init_arguments(frame, self, must_be_found=False)
            self._hparams_name = next((name for name, value in given.items() if value is args[0]), None)
        else:
            values = _init_arguments(frame, self)
            if unknown := set(args) - set(values):
                raise MisconfigurationException(
                    f"{type(self).__name__}.save_hyperparameters: {sorted(unknown)} are not arguments of __init__, "
                    f"which are {sorted(values)}"
                )
            values = {name: values[name] for name in args} if args else values
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        self.hparams.update({name: value for name, value in values.items() if name not in ignored})
        self._hparams_initial = AttributeDict(_copied(self.hparams))

    @property
    def hparams(self) -> AttributeDict:
        """The saved arguments; empty if `save_hyperparameters` was not called."""
        hparams: AttributeDict = self.__dict__.setdefault("_hparams", AttributeDict())
        return hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        """The saved arguments as they were then, whatever changed since."""
        return AttributeDict(_copied(self.__dict__.get("_hparams_initial", {})))

    def _warn_of_hparams_left_out(self) -> None:
        """Before the first step: say which ones no checkpoint will hold."""
        left_out = storable(self.hparams)[2]
        if left_out:
            rank_zero_warn(
                f"{type(self).__name__}: checkpoints will not hold the hyperparameters {', '.join(left_out)}, which "
                f"are objects; load_from_checkpoint will need them as arguments. Leave them out by "
                f"save_hyperparameters(ignore={[name for name in left_out if '.' not in name]})"
            )

    def _store_hparams(self, checkpoint: dict[str, Any], prefix: str) -> None:
        """Put them into a checkpoint, under Lightning's keys; `prefix` is empty for a module."""
        values, kinds, _ = storable(self.hparams)
        checkpoint[f"{prefix}hparams_name"] = self._hparams_name
        checkpoint[f"{prefix}hyper_parameters"] = values
        if kinds:
            checkpoint["loops"][OUR_STATE][f"{prefix}hparams_kinds"] = [list(kind) for kind in kinds]

    @classmethod
    def _built_from(
        cls, path: Any, map_location: Any, weights_only: bool | None, prefix: str, hparams_file: Any, overrides: Any
    ) -> tuple[Self, dict[str, Any]]:
        """Read a checkpoint, and build an object from its saved arguments of ``__init__``, some of them overridden.

        Raises:
            TypeError: ``__init__`` takes no argument of an overridden one's name, or needs one that was not saved.
        """
        checkpoint_io.refuse_unsafe_files(f"{cls.__name__}.load_from_checkpoint", weights_only)
        checkpoint = checkpoint_io.load_checkpoint(path, map_location=map_location or "cpu")
        parameters = inspect.signature(cls.__init__).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if hparams_file is not None:
            with open(os.path.expanduser(hparams_file), encoding="utf-8") as file:
                saved = yaml.safe_load(file) or {}
        else:
            kinds = checkpoint.get("loops", {}).get(OUR_STATE, {}).get(f"{prefix}hparams_kinds", [])
            saved = restored(dict(checkpoint.get(f"{prefix}hyper_parameters") or {}), kinds, cls, set(overrides))
        saved.update(overrides)
        name = checkpoint.get(f"{prefix}hparams_name")
        of_one = name in parameters and name not in overrides  # one argument that holds them all
        saved = {name: AttributeDict(saved), **overrides} if of_one else saved
        given = {name: value for name, value in saved.items() if takes_any or name in parameters}
        if problem := wrong_arguments(cls, given, () if of_one or takes_any else overrides):
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


def _init_arguments(frame: Any, instance: Any, must_be_found: bool = True) -> dict[str, Any]:
    """The arguments of the `instance`'s ``__init__``, and of its subclasses', that run in `frame` and its callers."""
    found: dict[str, Any] = {}
    while frame is not None and not _initializes(frame, instance):
        frame = frame.f_back  # a helper that ``__init__`` calls
    if frame is None and not must_be_found:
        return {}
    if frame is None:
        raise MisconfigurationException(
            f"{type(instance).__name__}.save_hyperparameters() must be called from __init__"
        )
    while _initializes(frame, instance):
        names = inspect.getargvalues(frame)
        arguments = {name: names.locals[name] for name in names.args[1:]}
        if names.keywords:
            arguments.update(names.locals[names.keywords])
        found = {**found, **arguments}  # an outer frame is a subclass's __init__: its values are the user's
        frame = frame.f_back
    return found


def _initializes(frame: Any, instance: Any) -> bool:
    """True for a frame that runs an ``__init__`` of this very object."""
    code = frame.f_code
    return code.co_name == "__init__" and bool(code.co_argcount) and frame.f_locals.get(code.co_varnames[0]) is instance
