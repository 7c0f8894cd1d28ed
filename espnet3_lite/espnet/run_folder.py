"""A run's folder: its configuration, what an old run left there, the best weights and their averages.

When a checkpoint is written, and which, is decided by `callbacks/`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.average_checkpoints import average_best, told_in_one_message
from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.checkpoints.averaging import average_checkpoints, average_usable
from espnet3_lite.callbacks.checkpoints.checkpoint_files import newest_first
from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.checkpoint.files import load_checkpoint, newest_intact, save_checkpoint
from espnet3_lite.config import Config, load_config
from espnet3_lite.distributed.rank import is_global_zero
from espnet3_lite.espnet.folder_lock import LOCK_FILE
from espnet3_lite.espnet.task_models import write_task_config
from espnet3_lite.exceptions import CheckpointError, CheckpointNotFoundError, MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


logger = logging.getLogger(__name__)


class RunFolder(Callback):
    """Keeps the configuration in the run's folder, and refuses a folder whose old run cannot go on.

    The configuration is written when training begins: one that trained nothing did not make the weights that are there.

    Args:
        exp_dir: The folder.
        config: The configuration.

    Raises:
        CheckpointError: from `setup`, where training would begin anew in an old run's folder.
        MisconfigurationException: from `setup`, if no file can hold the configuration; from `on_train_start`, if the
            folder cannot be written.

    >>> RunFolder(Path("exp"), Config.create({})).exp_dir.name
    'exp'
    """

    def __init__(self, exp_dir: Path, config: Config):
        self.exp_dir, self.config = exp_dir, config
        #: There was something left to train.
        self.began = False

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """The trainer has looked for a state to go on from. All ranks see the same folder, before anything is saved."""
        self.config.to_yaml()  # a lambda from a configuration made in Python is told here, not after a sanity check
        if trainer.ckpt_path is not None or not any(isinstance(c, Checkpoint) for c in trainer.callbacks):
            return
        # A best checkpoint of the first epoch is older than the first state: that run was killed before it, and begins
        # anew.
        pattern = re.compile(r"(last|step\d+|epoch[1-9]\d*_step\d+_.*)\.ckpt")
        files = self.exp_dir.iterdir() if self.exp_dir.exists() else ()
        left = sorted(path for path in files if pattern.fullmatch(path.name))
        if left:
            names = [f"{p.name} (a link to {os.readlink(p)})" if p.is_symlink() else p.name for p in left]
            raise CheckpointError(
                f"{self.exp_dir} holds an old run, but no state that it could go on from is there and intact: "
                f"{', '.join(names)}. Bring one back, name one by +fit.ckpt_path=FILE, or start anew with --fresh, "
                f"which puts the old run aside"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Write ``config.yaml``, where there is something left to train."""
        self.began = True
        if not is_global_zero():
            return
        path, config = self.exp_dir / "config.yaml", self._as_trained(trainer)
        try:
            if config.get("task"):
                write_task_config(config.task, config.to_container(), path)
            else:
                write_text(path, config.to_yaml(resolve=False))
        except OSError as error:
            raise not_writable(self.exp_dir, error) from error

    def _as_trained(self, trainer: Trainer) -> Config:
        """The configuration, but for optimizers and schedulers that go on with other values: these stay as recorded."""
        recorded = Path(trainer.ckpt_path or "").parent / "config.yaml"
        if not trainer.plan.not_taken or not recorded.exists():
            return self.config
        before, config = load_config(recorded), Config.create(self.config.to_container(resolve=False))
        for key in (key for kind in sorted(trainer.plan.not_taken) for key in (kind, f"{kind}s") if key in before):
            config[key] = before[key].to_container()  # without references: what they name may be another now
        return config


def not_writable(exp_dir: Path, error: OSError) -> MisconfigurationException:
    """What to raise where a run's folder refuses a file."""
    return MisconfigurationException(f"exp_dir: {str(exp_dir)!r} cannot be written: {error}")


def put_aside(exp_dir: Path) -> Path | None:
    """Rename a folder with an old run, so that a new one begins; nothing is deleted. Returns the new name.

    Of a symbolic link the folder that it names is renamed, and the link stays: the new run goes to the same disk.

    Raises:
        MisconfigurationException: it is the working folder, or one around it.
    """
    given, exp_dir = exp_dir, exp_dir.resolve()
    if not exp_dir.exists() or all(path.name == LOCK_FILE for path in exp_dir.iterdir()):
        return None
    if Path.cwd().is_relative_to(exp_dir):
        raise MisconfigurationException(
            f"--fresh renames exp_dir, and {str(given)!r} is the working folder or one around it; give the run a "
            f"folder of its own, such as exp_dir=exp"
        )
    stamp = datetime.fromtimestamp(exp_dir.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    aside = exp_dir.with_name(f"{exp_dir.name}.{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = exp_dir.with_name(f"{exp_dir.name}.{stamp}-{number}")
    exp_dir.rename(aside)
    logger.info("the old run was put aside: %s", aside)
    return aside


def best_weights(exp_dir: Path, monitor: str) -> Path:
    """The average by `monitor` in a run's folder, else its last checkpoint.

    Raises:
        CheckpointNotFoundError: the folder has neither.
    """
    candidates = sorted(exp_dir.glob(f"{monitor.replace('/', '.')}.ave_*best.pth"), key=lambda p: p.stat().st_mtime_ns)
    if candidates:
        return candidates[-1]
    if (exp_dir / "last.ckpt").exists():
        return exp_dir / "last.ckpt"
    raise CheckpointNotFoundError(
        f"exp_dir: {exp_dir} has no *.ave_*best.pth and no last.ckpt; train first, or name a checkpoint"
    )


def average_run(exp_dir: Path) -> list[Path]:
    """Average the best-K checkpoints of each criterion that are on disk now.

    Which ones these are is known from the run's newest full state. Where there is none, all that are called as the best
    ones are: those of several runs in one folder cannot be told apart then.

    Raises:
        CheckpointError: there are none, one is damaged, or no average can be written there.
    """
    with told_in_one_message(exp_dir):
        written = [path for path in _average_run(exp_dir) if path is not None]
    if not written:
        raise CheckpointNotFoundError(
            f"{exp_dir}: there are no best checkpoints (epoch*_step*_*.ckpt); name a run's exp_dir"
        )
    return written


def _average_run(exp_dir: Path) -> list[Path | None]:
    states = [path for pattern in ("last*.ckpt", "step*.ckpt") for path in exp_dir.glob(pattern) if path.exists()]
    state = newest_intact(newest_first(states))
    outputs: list[Path | None] = []
    if state is not None:
        for monitor, mode, scores in best_lists(load_checkpoint(state, mmap=True)):
            here = {str(exp_dir / Path(path).name): score for path, score in scores.items()}
            outputs.append(average_best(monitor, mode, here, exp_dir))
    else:
        groups: dict[str, list[Path]] = {}
        for path in sorted(exp_dir.glob("epoch*_step*_*.ckpt")):
            monitor = re.sub(r"-v\d+$", "", path.stem.split("_", 2)[2])
            groups.setdefault(monitor, []).append(path)
        for monitor, paths in groups.items():
            averaged, used = average_usable(paths, exp_dir, leave_out=True)
            output = exp_dir / f"{monitor}.ave_{len(used)}best.pth"
            save_checkpoint(averaged, output)
            outputs.append(output)
    return outputs


def best_lists(checkpoint: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """``(monitor, mode, score by path)`` of each `ModelCheckpoint` in a full state that keeps the best by a metric."""
    lists = []
    for key, state in checkpoint.get("callbacks", {}).items():
        if isinstance(state, Mapping) and state.get("monitor") and state.get("best_k_models"):
            found = re.search(r"'mode': '(min|max)'", key)  # ModelCheckpoint{'monitor': ..., 'mode': ...}
            if found:  # a class of a user's own may have another key
                lists.append((state["monitor"], found[1], state["best_k_models"]))
    return lists


def average_files(paths: Sequence[Path], output: Path) -> Path:
    """Average the files that somebody named; returns `output`.

    Raises:
        CheckpointError: one is missing or damaged, they are of different models, or `output` cannot be written.
    """
    for path in paths:
        if not path.exists():
            raise CheckpointNotFoundError(f"{path}: does not exist; nothing was averaged")
    with told_in_one_message(output.parent):
        average_checkpoints(paths, output)
    return output
