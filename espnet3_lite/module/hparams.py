"""`save_hyperparameters`, `hparams` and `load_from_checkpoint`: shared by modules and data modules."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import MisconfigurationException

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

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True) -> None:
        """Save the arguments of ``__init__``, to be called from it.

        Args:
            args: Names of the arguments to save (all by default), or one dict or Namespace to save instead.
            ignore: A name or names to leave out.
            frame: Where to look for them; the caller's frame by default.
            logger: Hand them to the loggers at the start of a run.

        Raises:
            MisconfigurationException: called from elsewhere than ``__init__``, or with an unknown name.
        """
        self._log_hyperparams = logger
        if len(args) == 1 and not isinstance(args[0], str):
            values = dict(args[0]) if isinstance(args[0], dict) else dict(vars(args[0]))
        else:
            values = _init_arguments(frame or sys._getframe(1), self)
            if unknown := set(args) - set(values):
                raise MisconfigurationException(
                    f"{type(self).__name__}.save_hyperparameters: {sorted(unknown)} are not arguments of __init__, "
                    f"which are {sorted(values)}"
                )
            values = {name: values[name] for name in args} if args else values
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        self.hparams.update({name: value for name, value in values.items() if name not in ignored})
        self._hparams_initial = copy.deepcopy({k: v for k, v in self.hparams.items() if not hasattr(v, "parameters")})

    @property
    def hparams(self) -> AttributeDict:
        """The saved arguments; empty if `save_hyperparameters` was not called."""
        if "_hparams" not in self.__dict__:
            self.__dict__["_hparams"] = AttributeDict()
        return self.__dict__["_hparams"]

    @property
    def hparams_initial(self) -> AttributeDict:
        """The saved arguments as they were then, whatever changed since."""
        return AttributeDict(copy.deepcopy(self.__dict__.get("_hparams_initial", {})))

    @classmethod
    def _from_hyperparameters(cls, saved: dict[str, Any], overrides: dict[str, Any]) -> Self:
        """Build an object from the saved arguments that ``__init__`` takes, with some overridden."""
        parameters = inspect.signature(cls.__init__).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        arguments = {**saved, **overrides}
        return cls(**{k: v for k, v in arguments.items() if takes_any or k in parameters})


def _init_arguments(frame: Any, instance: Any) -> dict[str, Any]:
    """The arguments of the `instance`'s ``__init__``, and of its subclasses', that run in `frame` and its callers."""
    found: dict[str, Any] = {}
    while frame is not None and not _initializes(frame, instance):
        frame = frame.f_back  # a helper that ``__init__`` calls
    if frame is None:
        raise MisconfigurationException(
            f"{type(instance).__name__}.save_hyperparameters() must be called from __init__"
        )
    while _initializes(frame, instance):
        names = inspect.getargvalues(frame)
        arguments = {name: frame.f_locals[name] for name in [*names.args[1:], *_keyword_only(frame)]}
        if names.keywords:
            arguments.update(frame.f_locals[names.keywords])
        found = {**found, **arguments}  # an outer frame is a subclass's __init__: its values are the user's
        frame = frame.f_back
    return found


def _initializes(frame: Any, instance: Any) -> bool:
    """True for a frame that runs an ``__init__`` of this very object."""
    code = frame.f_code
    return code.co_name == "__init__" and bool(code.co_argcount) and frame.f_locals.get(code.co_varnames[0]) is instance


def _keyword_only(frame: Any) -> tuple[str, ...]:
    code = frame.f_code
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
