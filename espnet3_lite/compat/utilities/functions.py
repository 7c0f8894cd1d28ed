"""Functions that code written for Lightning imports from its utilities, and that nothing else here needs."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import gc
import importlib.util
import inspect
import logging
import os
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map  # no public name up to torch 2.14

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.distributed.launch import choose_device
from espnet3_lite.distributed.rank import global_rank, rank_zero_warn
from espnet3_lite.distributed.rank import rank_zero_only as _rank_zero_only
from espnet3_lite.loaders.transfer import move
from espnet3_lite.module.data_module import LiteDataModule
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.seed import collect_random_state, restore_random_state

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class RankZeroOnly:
    """`rank_zero_only`, a decorator that also tells the rank.

    >>> rank_zero_only.rank, rank_zero_only(lambda: "zero")()
    (0, 'zero')
    """

    @property
    def rank(self) -> int:
        """This process's number over all machines."""
        return global_rank()

    def __call__(self, function: Callable) -> Callable:
        """Decorate a function to do nothing, and return None, on all ranks but zero."""
        return _rank_zero_only(function)


rank_zero_only = RankZeroOnly()


@_rank_zero_only
def rank_zero_debug(message: str, *args: object) -> None:
    """`logging` at DEBUG on rank zero."""
    logger.debug(message, *args)


def rank_zero_deprecation(message: str) -> None:
    """A `DeprecationWarning` on rank zero."""
    rank_zero_warn(message, DeprecationWarning)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """A message with its rank before it.

    >>> rank_prefixed_message("stopped", 1), rank_prefixed_message("stopped", None)
    ('[rank: 1] stopped', 'stopped')
    """
    return message if rank is None else f"[rank: {rank}] {message}"


class _AcceleratorConnector:
    """What ``auto`` means on this machine, by Lightning's private names, which scvi-tools asks for.

    Args:
        accelerator: As `Trainer`'s.
        devices: As `Trainer`'s.

    Attributes:
        _accelerator_flag: ``cpu``, ``cuda`` or ``mps``.
        _devices_flag: `devices`, or how many there are.

    >>> connector = _AcceleratorConnector("cpu")
    >>> connector._accelerator_flag, connector._devices_flag
    ('cpu', 1)
    """

    def __init__(self, accelerator: str = "auto", devices: int | str | list[int] = "auto"):
        self._accelerator_flag = choose_device(accelerator).type
        there = torch.cuda.device_count() if self._accelerator_flag == "cuda" else 1
        self._devices_flag = there if devices == "auto" else devices


def num_cuda_devices() -> int:
    """How many GPUs torch finds."""
    return torch.cuda.device_count()


def _load_from_checkpoint(cls: type[LiteModule], *args: Any, **kwargs: Any) -> LiteModule:
    """`LiteModule.load_from_checkpoint` of a class that overrides it and calls this, as rl4co's does.

    Args:
        cls: The class.
        args: As there.
        kwargs: As there.
    """
    load = LiteModule.load_from_checkpoint.__func__  # type: ignore[attr-defined]  # a class method, for this class
    loaded: LiteModule = load(cls, *args, **kwargs)
    return loaded


def apply_to_collection(
    data: Any,
    dtype: type | tuple[type, ...],
    function: Callable,
    *args: Any,
    wrong_dtype: type | tuple[type, ...] = (),
    **kwargs: Any,
) -> Any:
    """Apply a function to everything of a type in nested dicts, lists, tuples and dataclasses; the rest stays.

    Args:
        data: What to walk through.
        dtype: Of which type.
        function: Called with each such value, `args` and `kwargs`.
        wrong_dtype: Values of this type stay.

    >>> apply_to_collection({"a": 1, "b": [2.0, 3]}, int, lambda value, by: value * by, 10)
    {'a': 10, 'b': [2.0, 30]}
    """

    def is_meant(value: Any) -> bool:
        return isinstance(value, dtype) and not isinstance(value, wrong_dtype)

    def is_leaf(value: Any) -> bool:
        return is_meant(value) or _is_dataclass(value)

    def applied(value: Any) -> Any:
        if is_meant(value):
            return function(value, *args, **kwargs)
        if not _is_dataclass(value):
            return value
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(
            value, **{name: tree_map(applied, part, is_leaf=is_leaf) for name, part in fields.items()}
        )

    return tree_map(applied, data, is_leaf=is_leaf)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def move_data_to_device(batch: Any, device: torch.device | str) -> Any:
    """A batch on another device: whatever in it is a tensor, or knows how to move.

    >>> move_data_to_device({"x": torch.ones(1)}, "meta")["x"].device.type
    'meta'
    """
    return move(batch, torch.device(device))


def grad_norm(
    module: torch.nn.Module, norm_type: float | int | str, group_separator: str = "/"
) -> dict[str, torch.Tensor]:
    """The norm of each parameter's gradient, and of all together, to be logged.

    Args:
        module: Whose parameters.
        norm_type: The p of the p-norm; ``"inf"`` for the largest absolute value.
        group_separator: Between ``grad_<p>_norm`` and the parameter's name.

    Returns:
        ``()`` tensors by name, the last one ``grad_<p>_norm_total``; empty where there is no gradient.

    Raises:
        ValueError: `norm_type` is not positive.

    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> layer.weight.grad = torch.full((1, 1), -3.0)
    >>> {name: float(norm) for name, norm in grad_norm(layer, 2).items()}
    {'grad_2.0_norm/weight': 3.0, 'grad_2.0_norm_total': 3.0}
    """
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"grad_norm(norm_type={norm_type}): must be a positive number or 'inf'")
    norms = {
        f"grad_{norm_type}_norm{group_separator}{name}": torch.linalg.vector_norm(parameter.grad.detach(), norm_type)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        total = torch.linalg.vector_norm(torch.stack([norm.cpu() for norm in norms.values()]), norm_type)
        norms[f"grad_{norm_type}_norm_total"] = total
    return norms


class PossibleUserWarning(UserWarning):
    """A category that programs tell `warnings` to ignore; what is warned about here is a plain `UserWarning`."""


def disable_possible_user_warnings(module: str = "") -> None:
    """Ignore warnings of the category `PossibleUserWarning`.

    Args:
        module: Only those from modules whose names this regular expression fits.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


def get_standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """What Lightning's bars show beside what is logged, a logger's ``v_num``: nothing here."""
    return {}


def is_overridden(method_name: str, instance: object, parent: type[object] | None = None) -> bool:
    """Whether an object has a method of its own where another class has one.

    Args:
        method_name: Of the method.
        instance: The object.
        parent: That class; by default `LiteModule`, `LiteDataModule` or `Callback`, whichever fits.

    Raises:
        ValueError: There is no such class, or it has no such method.

    >>> is_overridden("on_fit_start", LiteModule())
    False
    """
    kinds = [kind for kind in (LiteModule, LiteDataModule, Callback) if isinstance(instance, kind)]
    parent = parent or next(iter(kinds), None)
    if not hasattr(parent, method_name):
        raise ValueError(f"is_overridden({method_name!r}): {parent} has no such method; give the parent that has it")
    own = inspect.unwrap(getattr(instance, method_name))
    return getattr(own, "__code__", own) is not inspect.unwrap(getattr(parent, method_name)).__code__


def get_filesystem(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """fsspec's file system of a path or URL; torch brings fsspec along.

    Args:
        path: A path, or a URL such as ``memory://runs``.
        kwargs: What the file system takes.
    """
    fsspec = importlib.import_module("fsspec")
    return fsspec.core.url_to_fs(os.fspath(path), **kwargs)[0]


def get_init_args(frame: types.FrameType) -> dict[str, Any]:
    """The arguments that an ``__init__`` was called with, read from its frame; `self` is none of them.

    Args:
        frame: Of the call; that of any other function gives an empty dict.
    """
    names, _, keywords, values = inspect.getargvalues(frame)
    if frame.f_code.co_name != "__init__":
        return {}
    return {name: values[name] for name in names[1:]} | dict(values[keywords] if keywords else {})


def garbage_collection_cuda() -> None:
    """Collect what Python no longer uses, and give unused GPU memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Whatever is drawn inside, the generators of Python, numpy and torch go on afterwards as if nothing had been.

    Args:
        include_cuda: False leaves the GPU's generator out.

    >>> _ = torch.manual_seed(0)
    >>> with isolate_rng():
    ...     first = torch.rand(1)
    >>> torch.equal(first, torch.rand(1))
    True
    """
    before = collect_random_state()
    if not include_cuda:
        before.pop("cuda", None)
    try:
        yield
    finally:
        restore_random_state(before)


@contextmanager
def _jit_is_scripting() -> Iterator[None]:
    """Around ``torch.jit.script``: Lightning forgives attributes then that it would refuse; ours raise none."""
    yield


def _is_local_file_protocol(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file of this machine, and no URL of a store."""
    protocol, found, _ = os.fspath(path).partition("://")
    return not found or protocol == "file"


def package_available(package: str) -> bool:
    """Whether a package, or a module in one, could be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it would be in is not there
        return False


#: Lightning's logger, to which programs add handlers: ours.
_logger = logging.getLogger("espnet3_lite")


def _scan_checkpoints(callback: Any, known: dict[str, float]) -> list[tuple[float, str, Any, str]]:
    """The files of a `ModelCheckpoint` that are new since `known` (a time for each path), which loggers send.

    Returns:
        For each: when it was written (seconds), path, score, and ``latest``, ``best`` or ``best_k``; by time.
    """
    found = {callback.last_model_path: (callback.current_score, "latest")}
    found[callback.best_model_path] = (callback.best_model_score, "best")
    found.update({path: (score, "best_k") for path, score in callback.best_k_models.items()})
    files = [(os.path.getmtime(path), path, *rest) for path, rest in found.items() if os.path.isfile(path)]
    return sorted(
        (file for file in files if known.get(file[1], -1.0) < file[0]), key=lambda file: (file[0], str(file[1]))
    )


def _flatten_dict(params: Mapping[Any, Any], delimiter: str = "/", parent_key: str = "") -> dict[str, Any]:
    """Nested hyper-parameters in one dict, as loggers want them.

    >>> _flatten_dict({"model": {"width": 8}, "parts": [{"a": 1}], "rates": [0.1]})
    {'model/width': 8, 'parts/0/a': 1, 'rates': [0.1]}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent_key}{delimiter}{key}" if parent_key else str(key)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        elif isinstance(value, argparse.Namespace):
            value = vars(value)
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        flat.update(_flatten_dict(value, delimiter, name) if isinstance(value, Mapping) else {name: value})
    return flat


def _sanitize_callable_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with functions and classes by their names."""
    return {key: getattr(value, "__name__", None) if callable(value) else value for key, value in params.items()}


def _sanitize_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as numbers, tensors and texts: what is something else becomes a text."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()}
    kept = (bool, int, float, str, torch.Tensor)
    return {key: value if type(value) in kept else str(value) for key, value in plain.items()}


def _convert_json_serializable(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of which JSON has each: what it has not becomes a text."""
    plain = (type(None), bool, int, float, str, list, dict)
    return {key: value if isinstance(value, plain) else str(value) for key, value in params.items()}


class Interval(str, enum.Enum):
    """Lightning's name for what `Timer` takes as a text."""

    step = "step"
    epoch = "epoch"
