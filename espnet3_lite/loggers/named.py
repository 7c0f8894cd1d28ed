"""Which loggers `Trainer(logger=...)` means: True and False, a name, an object, or a list of these."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from espnet3_lite.exceptions import MisconfigurationException, parentheses_missing
from espnet3_lite.loggers.base import Logger, is_logger
from espnet3_lite.loggers.csv_logs import CSVLogger
from espnet3_lite.loggers.mlflow import MLFlowLogger
from espnet3_lite.loggers.tensorboard import TensorBoardLogger
from espnet3_lite.loggers.wandb import WandbLogger
from espnet3_lite.trainer.settings import LOGGER_NAMES

#: What a name stands for (`LOGGER_NAMES` in `trainer/settings.py` lists them), made for the folder where it writes.
_MAKERS: dict[str, Callable[[str], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": lambda folder: WandbLogger(save_dir=folder),
    "mlflow": lambda folder: MLFlowLogger(save_dir=os.path.join(folder, "mlruns")),
}


def make_loggers(given: Any, folder: str) -> list[Logger]:
    """The loggers; a `CSVLogger` by default.

    Args:
        given: True or False, a logger, its name, or a list of these.
        folder: Where those that are named write.

    Raises:
        MisconfigurationException: something that is none.
    """
    if given is False:
        return []
    several = isinstance(given, (list, tuple))
    loggers: list[Logger] = []
    for index, one in enumerate(given if several else [given]):
        name = "csv" if one is True else one
        logger = _MAKERS[name](folder) if isinstance(name, str) and name in _MAKERS else one
        if not is_logger(logger):
            hint = parentheses_missing(logger)
            raise MisconfigurationException(
                f"Trainer: logger{f'[{index}]' if several else ''} must be a logger, an object with `log_metrics` and "
                f"`log_hyperparams`, or one of {', '.join(LOGGER_NAMES)}; got {logger!r} "
                f"({type(logger).__name__}){hint}"
            )
        if any(logger is other for other in loggers):
            raise MisconfigurationException(
                f"Trainer: {logger!r} is among the loggers twice: it would write each value twice"
            )
        loggers.append(logger)
    return loggers
