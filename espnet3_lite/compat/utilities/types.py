"""``pl.utilities.types``: names for annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from espnet3_lite.optim.lr_stepping import LRSchedulerConfig

__all__ = [
    "EPOCH_OUTPUT", "EVAL_DATALOADERS", "LRSchedulerConfig", "LRSchedulerConfigType", "LRSchedulerPLType",
    "LRSchedulerTypeTuple", "LRSchedulerTypeUnion", "OptimizerConfig", "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig", "STEP_OUTPUT", "TRAIN_DATALOADERS",
    "_DEVICE", "_EVALUATE_OUTPUT", "_MAP_LOCATION_TYPE", "_OUT_DICT", "_PATH", "_PREDICT_OUTPUT",
]  # fmt: skip

#: A file, and where its tensors go.
_PATH = str | os.PathLike[str]
_MAP_LOCATION_TYPE = torch.device | str | Callable[[Any, str], Any] | dict[Any, str] | None
_DEVICE = torch.device | str | int
#: One loader's results.
_OUT_DICT = dict[str, torch.Tensor]
#: What `Trainer.validate` and `test` return, and `predict`.
_EVALUATE_OUTPUT = list[dict[str, float]]
_PREDICT_OUTPUT = list[Any] | list[list[Any]]
#: What a step returns.
STEP_OUTPUT = torch.Tensor | Mapping[str, Any] | None
#: What Lightning 1's ``..._epoch_end`` hooks were given.
EPOCH_OUTPUT = list[Any]
#: Any loader, or several.
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerPLType = LRSchedulerTypeUnion


class LRSchedulerConfigType(TypedDict, total=False):
    """What stands under ``lr_scheduler``."""

    scheduler: LRSchedulerTypeUnion
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """A dict that `configure_optimizers` may return."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """The same with a scheduler."""

    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType


#: What `configure_optimizers` may return.
OptimizerLRScheduler = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Sequence[Optimizer], Sequence[LRSchedulerTypeUnion | LRSchedulerConfig]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig | OptimizerLRSchedulerConfig]
    | None
)
