"""What every logger offers, and what those that write files share: a versioned folder and `hparams.yaml`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
import yaml

from espnet3_lite.checkpoint.atomic_files import replacing
from espnet3_lite.distributed.rank import is_global_zero, rank_zero_only, rank_zero_warn, times_restarted

if TYPE_CHECKING:
    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint
    from espnet3_lite.trainer.trainer import Trainer

HPARAMS_FILE = "hparams.yaml"


class FabricLogger(ABC):
    """Lightning Fabric's base, without a trainer: in ``class Theirs(Logger, ItsFabricLogger)`` the second counts."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The experiment's name."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Which run of the experiment this is."""

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record `metrics`, numbers by name; `step` counts optimizer steps."""

    @abstractmethod
    def log_hyperparams(self, params: Mapping[str, Any] | argparse.Namespace) -> None:
        """Record `params`, the hyper-parameters that the run was set up with."""

    @property
    def log_dir(self) -> str | None:
        """This run's folder; None if nothing is written to disk."""
        return None

    @property
    def experiment(self) -> Any:
        """The object that does the writing, for what this interface does not offer. Default: None."""
        return None

    @property
    def root_dir(self) -> str | None:
        """The folder of this experiment, which holds its runs; None if nothing is written to disk."""
        return None

    @property
    def group_separator(self) -> str:
        """What stands between a group and a name in metrics' names, such as ``train/loss``."""
        return "/"

    def log_graph(  # noqa: B027 - few loggers can draw one
        self, model: torch.nn.Module, input_array: torch.Tensor | tuple | None = None
    ) -> None:
        """Record the module's graph. Default: nothing, as in Lightning.

        Args:
            model: The module.
            input_array: What to call it with; by default its `example_input_array`.
        """

    def save(self) -> None:  # noqa: B027 - most loggers hold nothing back
        """Write out what is held back. Default: nothing is."""

    def finalize(self, status: str) -> None:
        """Called once at the end of a run. Default: `save`.

        Args:
            status: ``"success"``, or ``"failed"`` when an exception ended the run.
        """
        self.save()


class Logger(FabricLogger):
    """Base of all loggers: subclass it to send metrics to a platform of your own.

    The trainer calls every method on all ranks; decorate what writes with
    `espnet3_lite.distributed.rank.rank_zero_only`.

    >>> class PrintLogger(Logger):
    ...     name, version = "print", 0
    ...     def log_metrics(self, metrics, step=None):
    ...         print(step, metrics)
    ...     def log_hyperparams(self, params):
    ...         print(params)
    >>> PrintLogger().log_metrics({"train/loss": 0.5}, step=10)
    10 {'train/loss': 0.5}
    """

    @property
    def save_dir(self) -> str | None:
        """The folder that was given for all experiments; None if nothing is written to disk."""
        return None

    def state_dict(self) -> dict[str, Any] | None:
        """Called when a checkpoint is made: plain values that say which log this is and how far it goes. Default: none.

        Whatever was logged so far must be on disk when this returns. Only what rank zero returns is kept.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the log of a run that was cut, where the checkpoint stands: drop what was logged after it.

        Called before anything is logged, on all ranks, in a run that finds its own checkpoint (``auto_resume``).

        Args:
            state: What `state_dict` gave.
        """

    def log_home(self) -> dict[str, str]:
        """What its runs belong to: tells it from other loggers of its class where a run goes on with several."""
        return {}

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Called on rank zero when a checkpoint callback has saved a file. Default: nothing.

        Args:
            checkpoint_callback: Who saved: its `best_model_path`, `last_model_path` and `best_k_models` are up to date.
        """


def rank_zero_experiment(experiment: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorate a logger's `experiment`: on other ranks than zero it is one that does nothing.

    >>> class Mine:
    ...     @property
    ...     @rank_zero_experiment
    ...     def experiment(self):
    ...         return "a connection"
    >>> Mine().experiment
    'a connection'
    """

    @functools.wraps(experiment)
    def on_rank_zero(logger: Any) -> Any:
        return experiment(logger) if is_global_zero() else SilentExperiment()

    return on_rank_zero


class SilentExperiment:
    """The experiment on ranks that do not write: any method may be called, and does nothing.

    >>> SilentExperiment().add_image("grid", None, 3)
    """

    rows_logged = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def keeps_training(method: Callable) -> Callable:
    """Decorate a `FolderLogger`'s method: files that cannot be read or written are told once, and the run goes on."""

    @functools.wraps(method)
    def guarded(self: FolderLogger, *args: object, **kwargs: object) -> object:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            self._experiment = SilentExperiment()
            rank_zero_warn(
                f"{type(self).__name__}: {self.log_dir} cannot be used: {type(error).__name__}: {error}. Training goes "
                "on, and is not logged there"
            )
            return None

    return guarded


class FolderLogger(Logger):
    """A logger that writes into ``<save_dir>/<name>/version_<N>``. Base of those in this package.

    Args:
        save_dir: The folder of all experiments.
        name: The experiment's folder in it; ``""`` or None for none.
        version: A number N for ``version_N``, or a string for a folder of that name. Default: one more than
            the highest there is. Rank zero looks when it is first needed, and makes the folder at once, so that of
            runs that begin together each has its own.
        prefix: Put before every metric's name, with a ``-`` between.
    """

    LOGGER_JOIN_CHAR = "-"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(save_dir={self._save_dir!r}, name={self._name!r}, version={self._version!r})"

    def __init__(self, save_dir: str | Path, name: str | None, version: int | str | None, prefix: str):
        self._save_dir = os.path.expanduser(os.fspath(save_dir))
        self._name = name or ""
        self._given_version = self._version = version
        self._prefix = prefix
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The experiment's name; ``""`` where it has no folder of its own."""
        return self._name

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """The experiment's folder, which holds its versions."""
        return os.path.join(self.save_dir, self.name)

    @property
    def version(self) -> int | str | None:
        """This run's version. None on other ranks, unless it was given: they might find another one."""
        if self._version is None and is_global_zero():
            self._version = self._next_version()
        return self._version

    @property
    def log_dir(self) -> str | None:
        """This run's folder. None on other ranks than zero, unless the version was given."""
        version = self.version
        if version is None:
            return None
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def log_home(self) -> dict[str, str]:
        """The name of the experiment's folder, which stays when that is moved."""
        return {"folder": os.path.basename(os.path.realpath(self.root_dir))}

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Which log this is, and how far it goes."""
        own = {"logger": type(self).__name__, "root_dir": os.path.realpath(self.root_dir), "version": self.version}
        return {**own, **self._position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in that folder, if it is one of this logger's, and not another version was asked for.

        A folder that was moved or copied is this logger's too: it has a version of that number in its present place.
        """
        if state.get("logger") != type(self).__name__ or self._given_version not in (None, state["version"]):
            return
        found, self._version = self._version, state["version"]
        moved = os.path.basename(state["root_dir"]) == self.log_home()["folder"]
        if os.path.realpath(self.root_dir) != state["root_dir"] and not (moved and os.path.isdir(self.log_dir or "")):
            self._version = found
            return
        if is_global_zero():
            if found not in (None, state["version"]):
                with contextlib.suppress(OSError):  # it was made for this run, and holds nothing
                    os.rmdir(os.path.join(self.root_dir, f"version_{found}"))
            try:
                self._go_on(state)
            # What stands in a damaged file decides what reading it raises.
            except (OSError, ValueError, LookupError, csv.Error) as error:
                rank_zero_warn(
                    f"{self.log_dir} cannot be continued: {type(error).__name__}: {error}. The log goes on in a new "
                    "version"
                )
                self._version = self._next_version()

    @abstractmethod
    def _position(self) -> dict[str, Any]:
        """How far the log goes, all of it on disk: what `_go_on` asks for, plain values."""

    @abstractmethod
    def _go_on(self, state: dict[str, Any]) -> None:
        """Open this run's files for more, without what was logged after `state_dict` gave `state`."""

    def _next_version(self) -> int:
        taken, number = self.root_dir, 1
        while self._name and os.path.exists(self.root_dir) and not os.path.isdir(self.root_dir):
            self._name, number = f"{os.path.basename(taken)}-{number}", number + 1
        if self.root_dir != taken:
            rank_zero_warn(f"{taken} is a file; the log goes to {self.root_dir}")
        try:
            os.makedirs(self.root_dir, exist_ok=True)
            names = [entry.name for entry in os.scandir(self.root_dir) if entry.is_dir()]
        except OSError:  # who writes there first says what is wrong
            return 0
        numbers = [int(name.split("_")[1]) for name in names if re.fullmatch(r"version_\d+", name)]
        newest = max(numbers, default=-1)
        if times_restarted() and numbers:
            return newest  # a restarted run goes on in its own folder
        return next(version for version in itertools.count(newest + 1) if self._reserve(version))

    def _reserve(self, version: int) -> bool:
        """Make a version's folder now; False where another run, which looked at the same time, was faster."""
        try:
            os.mkdir(os.path.join(self.root_dir, f"version_{version}"))
        except FileExistsError:
            return False
        except OSError:  # who writes there first says what is wrong
            return True
        return True

    def _with_prefix(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR)


def with_prefix(metrics: Mapping[str, Any], prefix: str, between: str) -> Mapping[str, Any]:
    """Metrics by name, each with a prefix before it, if there is one."""
    return {f"{prefix}{between}{name}": value for name, value in metrics.items()} if prefix else metrics


def is_logger(value: object) -> bool:
    """True for what the trainer takes as a logger: an object with `log_metrics` and `log_hyperparams`, whosever."""
    methods = (getattr(value, name, None) for name in ("log_metrics", "log_hyperparams"))
    return not isinstance(value, type) and all(map(callable, methods))


def tell(logger: Any, method: str, *args: Any) -> Any:
    """Call a method that not every logger has; None where it is missing."""
    call = getattr(logger, method, None)
    return None if call is None else call(*args)


def log_hyperparameters(trainer: Trainer) -> None:
    """At the start of a call: hand the module's and the data module's hyperparameters to the loggers."""
    values: dict[str, Any] = {}
    for owner in trainer.owners:
        if trainer.state.fn == "fit":
            owner._warn_of_hparams_left_out()
        if getattr(owner, "_log_hyperparams", False):
            values.update(owner.hparams_initial)
    if values:
        trainer.tell_loggers("log_hyperparams", values)
    trainer.tell_loggers("save")


def as_dict(params: Mapping[str, Any] | argparse.Namespace | None) -> dict[str, Any]:
    """Hyper-parameters as a dict, whatever holds them."""
    if params is None:
        return {}
    return dict(vars(params) if isinstance(params, argparse.Namespace) else params)


def write_hyperparams(folder: str, params: Mapping[str, Any]) -> None:
    """Write ``hparams.yaml``, which `yaml.safe_load` reads, in the order given; what YAML does not know as text."""
    with replacing(Path(folder) / HPARAMS_FILE) as temporary:
        temporary.write_text(
            yaml.safe_dump(plain_values(params), allow_unicode=True, sort_keys=False), encoding="utf-8"
        )


def plain_values(value: object) -> Any:
    """Hyper-parameters as YAML and JSON hold them: what they do not know as text."""
    if isinstance(value, (Mapping, argparse.Namespace)):
        return {str(key): plain_values(item) for key, item in as_dict(value).items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain_values(item) for item in value]
    if isinstance(value, (numpy.generic, numpy.ndarray)) and value.ndim == 0:
        return plain_values(value.item())
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return str(value)


def flattened(params: Mapping, parent: str = "") -> dict[str, object]:
    """Nested hyper-parameters as ``{"outer/inner": value}``, values as TensorBoard takes them: numbers and text."""
    flat: dict[str, object] = {}
    for key, value in params.items():
        name = f"{parent}/{key}" if parent else str(key)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, (Mapping, argparse.Namespace)):
            flat.update(flattened(as_dict(value), name))
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            flat.update(flattened(dict(enumerate(value)), name))
        elif isinstance(value, numpy.generic):
            flat[name] = value.item()
        else:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
