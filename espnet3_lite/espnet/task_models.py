"""ESPnet2's tasks, for experiments whose ``task:`` names one: they need espnet2, and nothing else here does.

Here: the model that a task builds, the configuration file that ESPnet's decoding reads, and the contract of ESPnet's
models for recipes that derive from it. Not here: models that are built by their ``_target_`` (`experiment.py`).
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml

from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.checks.value_kinds import plain_containers
from espnet3_lite.config.targets import TargetError, find_target
from espnet3_lite.exceptions import MisconfigurationException


class AbsESPnetModel(torch.nn.Module, ABC):
    """The contract of ESPnet's models: a loss, values to log and a weight; and features to collect statistics of.

    >>> class Model(AbsESPnetModel):
    ...     def forward(self, **batch):
    ...         return torch.tensor(1.0), {"loss": torch.tensor(1.0)}, torch.tensor(2)
    ...     def collect_feats(self, **batch):
    ...         return {"feats": batch["speech"], "feats_lengths": batch["speech_lengths"]}
    >>> Model()()[2]
    tensor(2)
    """

    @abstractmethod
    def forward(self, **batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Return ``(loss, stats, weight)``."""

    @abstractmethod
    def collect_feats(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return features ``(batch, time, ...)`` and their lengths, ``<name>`` and ``<name>_lengths``."""


def build_task_model(task: str, settings: Mapping[str, Any]) -> torch.nn.Module:
    """The model of a task: its defaults, with the configuration's ``model`` block over them, to its ``build_model``.

    Args:
        task: The task class, such as ``espnet2.tasks.asr.ASRTask``.
        settings: The ``model`` block.

    Raises:
        MisconfigurationException: the class cannot be imported, most often because espnet is not installed.
    """
    task_class = _find_task(task)
    return task_class.build_model(Namespace(**{**_defaults(task_class), **settings}))


def write_task_config(task: str, config: Mapping[str, Any], path: Path) -> None:
    """Write the configuration as ESPnet2 reads it: the task's defaults, then `model`'s keys and all others, at the top.

    So decoding by ESPnet finds in ``exp_dir/config.yaml`` what it finds there after ESPnet3's training.

    Args:
        task: As in `build_task_model`.
        config: The whole configuration, resolved.
        path: The file.
    """
    rest = {key: value for key, value in config.items() if key != "model"}
    model = {key: value for key, value in config["model"].items() if key != "_target_"}
    merged = {**_defaults(_find_task(task)), **model}
    dataset = rest.get("dataset")
    if isinstance(dataset, dict) and _is_one_preprocessor(preprocessor := dataset.get("preprocessor")):
        rest["dataset"] = {key: value for key, value in dataset.items() if key != "preprocessor"}
        merged.update({key: value for key, value in preprocessor.items() if key != "_target_"})
    merged.update(rest)
    merged = {key: {} if key.endswith("_conf") and value is None else value for key, value in merged.items()}
    write_text(path, yaml.dump(plain_containers(merged), Dumper=_WithoutAliases, sort_keys=False))


def _find_task(task: str) -> Any:
    try:
        return find_target(task)
    except TargetError as error:
        raise MisconfigurationException(
            f"task: {task} needs espnet, and cannot be imported here ({error}). Install espnet, or leave `task` empty "
            f"and give `model` a `_target_`"
        ) from error


def _defaults(task_class: Any) -> dict[str, Any]:
    with _no_arguments():  # a task reads its defaults with its command line's parser
        return task_class.get_default_config()


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = before


def _is_one_preprocessor(config: Any) -> TypeGuard[dict[str, Any]]:
    """One of ESPnet's for all splits, whose arguments ESPnet2 has at the top of its configuration."""
    if not isinstance(config, dict) or "_target_" not in config:
        return False
    if any(isinstance(config.get(split), dict) for split in ("train", "valid", "test")):
        return False
    bases = getattr(find_target(config["_target_"]), "__mro__", ())
    return any(base.__name__ == "AbsPreprocessor" for base in bases)


class _WithoutAliases(yaml.SafeDumper):
    """Writes a value that stands in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
