"""The best checkpoints by a metric: which they are, which is the next to go, and their part in a checkpoint's state.

When something is saved or removed is decided in `model_checkpoint.py`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from espnet3_lite.callbacks.checkpoint_files import CheckpointFiles
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class CheckpointRanking(CheckpointFiles):
    """A callback's files by score: the part of `ModelCheckpoint` that remembers.

    Args:
        monitor: As in `ModelCheckpoint`; so are the others.
        mode: ``min`` or ``max``.
        save_top_k: How many stay.
        files: The arguments of `CheckpointFiles`.

    Raises:
        MisconfigurationException: another mode.
    """

    def __init__(self, monitor: str | None, mode: str, save_top_k: int, *files: Any):
        super().__init__(*files)
        if mode not in ("min", "max"):
            raise MisconfigurationException(f"ModelCheckpoint: `mode` can be min, max but got {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        #: The metric at the last save; of each file that stays, by path; the best; and the worst of those that stay.
        self.current_score: torch.Tensor | None = None
        self.best_k_models: dict[str, torch.Tensor] = {}
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(float("inf" if mode == "min" else "-inf"))
        self.last_model_path = ""

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Would `current`, ``()``, be among the best `save_top_k`? A tie is not better."""
        if current is None or self.save_top_k == 0:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        worst = self.best_k_models[self._worst()]
        return bool(current < worst if self.mode == "min" else current > worst)

    @property
    def _k(self) -> int:
        return len(self.best_k_models) if self.save_top_k == -1 else self.save_top_k

    def _rank(self, path: str, current: torch.Tensor) -> None:
        """Take a file and its score among the best."""
        self.current_score = self.best_k_models[path] = current
        if len(self.best_k_models) == self._k:
            self.kth_best_model_path = self._worst()
            self.kth_value = self.best_k_models[self.kth_best_model_path]
        best = min if self.mode == "min" else max
        self.best_model_path = best(self.best_k_models, key=self.best_k_models.get)
        self.best_model_score = self.best_k_models[self.best_model_path]

    def _worst(self) -> str:
        """Of the files that stay, the one to go next; the first of several that are equal."""
        worst = max if self.mode == "min" else min
        return worst(self.best_k_models, key=self.best_k_models.get)

    def to_yaml(self, filepath: str | os.PathLike | None = None) -> None:
        """Write `best_k_models`, path to score, to a YAML file; by default ``best_k_models.yaml`` in `dirpath`."""
        scores = {path: float(score) for path, score in self.best_k_models.items()}
        path = Path(filepath) if filepath is not None else Path(self.dirpath) / "best_k_models.yaml"
        path.write_text(yaml.safe_dump(scores), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Lightning's nine entries."""
        names = (
            "monitor", "best_model_score", "best_model_path", "current_score", "dirpath", "best_k_models",
            "kth_best_model_path", "kth_value", "last_model_path",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "best_k_models": dict(self.best_k_models)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files of the folder, also where it moved; in another one only `best_model_path` is known."""
        state_dict = self.relocated(state_dict)
        saved_dirpath = state_dict.get("dirpath", self.dirpath)
        if saved_dirpath == self.dirpath:
            self.best_model_score = state_dict["best_model_score"]
            for name in ("current_score", "kth_best_model_path", "kth_value", "best_k_models", "last_model_path"):
                setattr(self, name, state_dict.get(name, getattr(self, name)))
        else:
            warnings.warn(
                f"The dirpath has changed from {saved_dirpath!r} to {self.dirpath!r}, therefore `best_model_score`, "
                f"`kth_best_model_path`, `kth_value`, `last_model_path` and `best_k_models` won't be reloaded. Only "
                f"`best_model_path` will be reloaded.",
                stacklevel=2,
            )
        self.best_model_path = state_dict["best_model_path"]

    def relocated(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state for the folder's new place, if the files it speaks of are there: the folder was moved or copied.

        Of the best files those that are not there are left out.
        """
        before = state_dict.get("dirpath")
        if before in (None, self.dirpath) or self.dirpath is None:
            return state_dict

        def moved(path: str) -> str:
            inside = os.path.relpath(path, before)
            return path if inside.startswith(os.pardir) else os.path.join(self.dirpath, inside)

        state = dict(state_dict)
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        state.update({name: moved(state[name]) for name in names if state.get(name)})
        best = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
        state["best_k_models"] = {path: score for path, score in best.items() if os.path.exists(path)}
        if not state["best_k_models"] and not any(os.path.exists(state.get(name) or "") for name in names):
            return state_dict
        if len(state["best_k_models"]) < len(best):
            state.update(self._summary_of(state["best_k_models"]))
        return {**state, "dirpath": self.dirpath}

    def _summary_of(self, best_k_models: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What a state says of the best files, where only some of them are left."""
        best, worst = (min, max) if self.mode == "min" else (max, min)
        summary: dict[str, Any] = {"kth_best_model_path": "", "best_model_path": "", "best_model_score": None}
        summary["kth_value"] = torch.tensor(float("inf" if self.mode == "min" else "-inf"))
        if best_k_models:
            path = best(best_k_models, key=best_k_models.get)
            summary.update(best_model_path=path, best_model_score=best_k_models[path])
        if best_k_models and len(best_k_models) == self.save_top_k:
            path = worst(best_k_models, key=best_k_models.get)
            summary.update(kth_best_model_path=path, kth_value=best_k_models[path])
        return summary


def check_arguments(callback: Any) -> None:
    """What the arguments of a `ModelCheckpoint` may be, alone and together.

    Raises:
        MisconfigurationException: naming each argument, its value and what would do.
    """
    if callback.save_last not in (None, True, False, "link"):
        raise MisconfigurationException(
            f"ModelCheckpoint(save_last={callback.save_last!r}): use True, False, None or 'link'"
        )
    for name, least in (("save_top_k", -1), ("every_n_train_steps", 0), ("every_n_epochs", 0), ("keep_newest", 1)):
        if getattr(callback, name) < least:
            raise MisconfigurationException(
                f"Invalid value for {name}={getattr(callback, name)}. Must be >= {least} (ModelCheckpoint)"
            )
    if (
        bool(callback.every_n_train_steps) + bool(callback.every_n_epochs) + (callback.train_time_interval is not None)
        > 1
    ):
        raise MisconfigurationException(
            f"Combination of parameters every_n_train_steps={callback.every_n_train_steps}, every_n_epochs="
            f"{callback.every_n_epochs} and train_time_interval={callback.train_time_interval} should be mutually "
            f"exclusive; use one ModelCheckpoint for each"
        )
    if callback.monitor is None and callback.save_top_k not in (-1, 0, 1):
        raise MisconfigurationException(
            f"ModelCheckpoint(save_top_k={callback.save_top_k}, monitor=None) is not a valid configuration. No "
            f"quantity for top_k to track; give `monitor`, or `keep_newest={callback.save_top_k}` for the newest ones"
        )
    if callback.keep_newest > 1 and (callback.monitor is not None or callback.save_top_k != 1):
        raise MisconfigurationException(
            f"ModelCheckpoint(keep_newest={callback.keep_newest}) goes with monitor=None and save_top_k=1, got monitor="
            f"{callback.monitor!r} and save_top_k={callback.save_top_k}"
        )
