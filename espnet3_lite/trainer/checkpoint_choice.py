"""Which checkpoint a call starts from. Reading it is the task of `checkpoint/`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from espnet3_lite.callbacks.calling.lightning_names import path_for
from espnet3_lite.callbacks.checkpoints.checkpoint_files import newest_checkpoint
from espnet3_lite.distributed.rank import rank_zero_warn, times_restarted

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def choose_checkpoint(trainer: Trainer, ckpt_path: str | os.PathLike[str] | None, model_given: bool) -> str | None:
    """The file that a call starts from, the same on all ranks. Collective.

    Args:
        trainer: In the call, which has its module already.
        ckpt_path: What the user gave: a path, ``"best"``, ``"last"`` or None: what was set on the trainer.
        model_given: The user gave the call a model. Without one it evaluates the best checkpoint there is.

    Returns:
        A path; None to start from nothing.

    Raises:
        ValueError: ``"best"`` where there is none.
    """
    # Rank zero's answer counts, and it gives it after it has written all that it had to write. It may read large files
    # for it, and so the others wait at a barrier, which has no timeout.
    chosen = _choose(trainer, ckpt_path, model_given)
    trainer.strategy.barrier("the choice of a checkpoint")
    return trainer.strategy.broadcast(chosen)


def _choose(trainer: Trainer, ckpt_path: str | os.PathLike[str] | None, model_given: bool) -> str | None:
    fn = str(trainer.state.fn)
    ckpt_path = path_for(trainer, fn, ckpt_path)
    given = None if ckpt_path is None else os.path.expanduser(os.fspath(ckpt_path))
    restarted = fn == "fit" and times_restarted() > 0
    if restarted and (path := newest_checkpoint(trainer)):
        return path
    if fn == "fit" and ckpt_path is None:
        if restarted:
            rank_zero_warn(f"torchrun has started this run anew, and it begins from scratch: it has saved no "
                           f"checkpoint, or in a folder that this machine does not see. {_where(trainer)}")  # fmt: skip
        return newest_checkpoint(trainer) if trainer.auto_resume else None
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if ckpt_path is None:
        if model_given or not best:
            return None
        rank_zero_warn(
            f"`.{fn}(ckpt_path=None)` was called without a model. The best model of the previous `fit` call will be "
            f"used. Pass `ckpt_path='best'` to say so, or the model to use its present weights."
        )
        return str(best)
    if ckpt_path == "best":
        if not best:
            problem = "is not configured" if callback is None else "has saved no best model yet"
            raise ValueError(f'`.{fn}(ckpt_path="best")` is set but `ModelCheckpoint` {problem}.')
        return str(best)
    if ckpt_path != "last":
        return given
    path = newest_checkpoint(trainer)
    if path is None:
        rank_zero_warn(f'.{fn}(ckpt_path="last") is set, but there is no last checkpoint available. No checkpoint '
                       f"will be loaded. {_where(trainer)}")  # fmt: skip
    return path


def _where(trainer: Trainer) -> str:
    """Where checkpoints were looked for, and what would do."""
    folders = [getattr(callback, "dirpath", None) or "a folder of each run's own (version_N)"
               for callback in trainer.checkpoint_callbacks]  # fmt: skip
    return (f"Looked in: {', '.join(map(str, folders)) or 'no folder'}. Name the file, or give all runs one folder: "
            f"ModelCheckpoint(dirpath=..., save_last=True)")  # fmt: skip
