"""The best checkpoints by a metric: which stay, which goes when a better one comes, and their part in a state.

When to look is decided in `model_checkpoint.py`, which also says how a file is saved.
"""

from __future__ import annotations

import os
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from espnet3_lite.callbacks.checkpoints.checkpoint_files import CheckpointFiles
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class CheckpointRanking(CheckpointFiles):
    """A callback's files by score: the part of `ModelCheckpoint` that remembers.

    Args:
        monitor: As in `ModelCheckpoint`; so are the others.
        mode: ``min`` or ``max``.
        save_top_k: How many stay.
        keep_newest: Without `monitor`, how many of the newest.
        files: The arguments of `CheckpointFiles`.

    Raises:
        MisconfigurationException: another mode.
    """

    verbose: bool

    def __init__(self, monitor: str | None, mode: str, save_top_k: int, keep_newest: int, *files: Any):
        super().__init__(*files)
        if mode not in ("min", "max"):
            raise MisconfigurationException(f"ModelCheckpoint: `mode` can be min, max but got {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self._keeps_all = save_top_k == -1
        self.keep_newest = keep_newest
        self._older: list[str] = []  # what `keep_newest` keeps beside the newest, the oldest first
        #: The metric at the last save; of each file that stays, by path; the best; and the worst of those that stay.
        self.current_score: torch.Tensor | None = None
        self.best_k_models: dict[str, torch.Tensor] = {}
        self.best_model_path = ""
        self.best_model_score: torch.Tensor | None = None
        self.kth_best_model_path = ""
        self.kth_value = self._worst_value()
        self.last_model_path = ""
        self._on_disk: set[str] = set()  # a file that is still being written in the background is not missing
        self._replaced: list[str] = []  # whose place the last one took: a run that dies may leave them undone

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        raise NotImplementedError

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Would `current`, ``()``, be among the best `save_top_k`? A tie is not better."""
        if current is None or self.save_top_k == 0:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        worst = self.best_k_models[self._worst()]
        return bool(current < worst if self.mode == "min" else current > worst)

    def _save_monitor_checkpoint(self, trainer: Trainer, candidates: dict[str, Any]) -> None:
        assert self.monitor is not None  # the caller's condition
        self._follow_files(trainer)
        current = torch.as_tensor(candidates[self.monitor]).detach().cpu()
        if self.check_monitor_top_k(trainer, current):
            self._update_best_and_save(current, trainer, candidates)
        elif self.verbose:
            rank_zero_info("%s was not in top %d", self._moment(candidates), self.save_top_k)

    def _moment(self, candidates: dict[str, Any]) -> str:
        return f"Epoch {int(candidates['epoch'])}, global step {int(candidates['step'])}: {self.monitor!r}"

    def _follow_files(self, trainer: Trainer) -> None:
        """Forget the best files that somebody removed meanwhile: another may take their place.

        A subclass with its own `_remove_checkpoint` may keep something else in place of a file, as scvi-tools' does.
        """
        if type(self)._remove_checkpoint is not CheckpointFiles._remove_checkpoint:
            return
        gone = [path for path in self.best_k_models if path in self._on_disk and not os.path.exists(path)]
        gone = trainer.strategy.broadcast(gone)  # collective: rank zero knows what is on its disk
        self._forget(gone)

    def _update_best_and_save(self, current: torch.Tensor, trainer: Trainer, candidates: dict[str, Any]) -> None:
        candidates[str(self.monitor)] = current  # a file's name tells what was logged, NaN too
        if current.isnan():  # the worst there is, so that it is the first to go
            current = torch.full_like(current, float("inf" if self.mode == "min" else "-inf"))
        doomed = []
        while 0 < self.save_top_k <= len(self.best_k_models):  # several, where a resumed run wants fewer
            doomed.append(self._worst())
            self.best_k_models.pop(doomed[-1])
        path = self._free_path(trainer, candidates, self.filename, reuse=doomed)
        self._replaced = [other for other in doomed if other != path]  # set before saving: a part of the state
        self._rank(path, current)
        if self.verbose:
            rank_zero_info(
                "%s reached %.5f (best %.5f), saving model to %r as top %d",
                self._moment(candidates), current, self.best_model_score, path, self._k,
            )  # fmt: skip
        self._save_checkpoint(trainer, path)
        self._remove(trainer, doomed, path)

    @property
    def _surplus(self) -> int:
        """How many of the older ones go."""
        return max(0, len(self._older) - (self.keep_newest - 1))

    def _keep_newest(self, trainer: Trainer) -> None:
        """Remove all but the newest `keep_newest`."""
        surplus = self._surplus
        self._remove(trainer, self._older[:surplus], self.best_model_path)
        self._older = self._older[surplus:]

    def _remove_replaced(self, trainer: Trainer) -> None:
        """A run that died between a save and the removal that follows it left a file whose place was taken."""
        if os.path.dirname(self.best_model_path) == self.dirpath:  # else the names are not this folder's
            left = [path for path in self._replaced if path not in self.best_k_models and os.path.exists(path)]
            self._remove(trainer, left, self.best_model_path)

    def save_what_was_due(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The run goes on from a state that another callback saved in a hook, before this one's turn came there."""
        loop = trainer.fit_loop
        last_batch = loop.batches_done - 1
        if loop.epoch_ended:
            self.on_train_epoch_end(trainer, pl_module)
        elif loop.stage == "batch open":
            self.on_train_batch_end(trainer, pl_module, None, None, last_batch)
        elif not loop.batch_is_open and loop.batches_done:
            if trainer.plan.validation.is_due(last_batch, loop.is_last_batch):
                self.on_validation_end(trainer, pl_module)

    def _forget(self, gone: list[str]) -> None:
        if gone:
            rank_zero_warn(f"ModelCheckpoint: no longer there and left out of the best files: {', '.join(gone)}")
            self.best_k_models = {path: score for path, score in self.best_k_models.items() if path not in gone}
            self._summarize()

    @property
    def _k(self) -> int:
        return len(self.best_k_models) if self.save_top_k == -1 else self.save_top_k

    def _rank(self, path: str, current: torch.Tensor) -> None:
        """Take a file and its score among the best."""
        self.current_score = self.best_k_models[path] = current
        self._summarize()

    def _summarize(self) -> None:
        """Say anew which of the files is the best, and which the worst where there are as many as may stay."""
        best = min if self.mode == "min" else max
        self.best_model_path = best(self.best_k_models, key=self._score, default="")
        self.best_model_score = self.best_k_models.get(self.best_model_path)
        full = bool(self.best_k_models) and len(self.best_k_models) == self._k
        self.kth_best_model_path = self._worst() if full else ""
        self.kth_value = self.best_k_models[self.kth_best_model_path] if full else self._worst_value()

    def _worst_value(self) -> torch.Tensor:
        return torch.tensor(float("inf" if self.mode == "min" else "-inf"))

    def _worst(self) -> str:
        """Of the files that stay, the one to go next; the first of several that are equal."""
        worst = max if self.mode == "min" else min
        return worst(self.best_k_models, key=self._score)

    def _score(self, path: str) -> float:
        return float(self.best_k_models[path])

    def to_yaml(self, filepath: str | os.PathLike | None = None) -> None:
        """Write `best_k_models`, path to score, to a YAML file; by default ``best_k_models.yaml`` in `dirpath`."""
        scores = {path: float(score) for path, score in self.best_k_models.items()}
        path = Path(filepath) if filepath is not None else self._own_folder / "best_k_models.yaml"
        path.write_text(yaml.safe_dump(scores), encoding="utf-8")

    @property
    def known_files(self) -> set[str]:
        """The files of which its state speaks."""
        return {*self.best_k_models, self.best_model_path, self.last_model_path}

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
            rank_zero_warn(
                f"The dirpath has changed from {saved_dirpath!r} to {self.dirpath!r}, therefore `best_model_score`, "
                f"`kth_best_model_path`, `kth_value`, `last_model_path` and `best_k_models` won't be reloaded. Only "
                f"`best_model_path` will be reloaded."
            )
        self.best_model_path = state_dict["best_model_path"]
        self._forget([path for path in self.best_k_models if not os.path.exists(path)])
        self._on_disk = set(self.best_k_models)

    def relocated(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state for the folder's new place, if a file it speaks of is there: the folder was moved or copied."""
        before = state_dict.get("dirpath")
        folder = self.dirpath
        if before in (None, folder) or folder is None:
            return state_dict

        def moved(path: str) -> str:
            inside = os.path.relpath(path, before)
            return path if inside.startswith(os.pardir) else os.path.join(folder, inside)

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        state = {**state_dict, **{name: moved(state_dict[name]) for name in names if state_dict.get(name)}}
        state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
        if not any(os.path.exists(path) for path in (*state["best_k_models"], *(state.get(n) or "" for n in names))):
            return state_dict
        return {**state, "dirpath": self.dirpath}


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
        value = getattr(callback, name)
        if not isinstance(value, Real) or float(value) < least or float(value) % 1:
            raise MisconfigurationException(
                f"Invalid value for {name}={value!r}. Must be >= {least}, a whole number (ModelCheckpoint)"
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
