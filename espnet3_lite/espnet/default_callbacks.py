"""`get_default_callbacks`: the six callbacks that every ESPnet3 training has."""

from __future__ import annotations

import os
from collections.abc import Sequence

from espnet3_lite.callbacks.average_checkpoints import AverageCheckpointsCallback
from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.lr_monitor import LearningRateMonitor
from espnet3_lite.callbacks.metrics_logger import MetricsLogger
from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint
from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar
from espnet3_lite.exceptions import MisconfigurationException

#: How many whole states stay: the newest, and one to fall back to.
STATES_KEPT = 2


def get_default_callbacks(
    exp_dir: str | os.PathLike = "./exp",
    log_interval: int = 500,
    best_model_criterion: Sequence[Sequence] | None = None,
    expdir: str | os.PathLike | None = None,
) -> list[Callback]:
    """The callbacks for most trainings, in ESPnet3's order (a trainer calls those that save last, then the average).

    - `ModelCheckpoint` for the whole state: ``step{step}.ckpt`` at each epoch's end, of which the two newest stay, and
      ``last.ckpt``, which is the newest of them;
    - one `ModelCheckpoint` a criterion: weights alone, ``epoch{epoch}_step{step}_{metric}.ckpt`` after a validation;
    - `AverageCheckpointsCallback` over the best of each criterion;
    - `LearningRateMonitor`, `MetricsLogger` and `TQDMProgressBar`.

    Args:
        exp_dir: Where checkpoints and averages go.
        log_interval: Training batches between two log lines, and between two moves of the progress bar, which does
            not stand still for longer than some seconds. 0: no log lines.
        best_model_criterion: ``(metric, how many to keep, "min" or "max")`` each. Default: ``("valid/loss", 3,
            "min")``.
        expdir: An older spelling of `exp_dir`.

    Raises:
        MisconfigurationException: a criterion of another shape, or one that `ModelCheckpoint` does not accept; two of
            one metric; two folders.

    Example:
        >>> criteria = [("valid/loss", 5, "min"), ("valid/acc", 3, "max")]
        >>> callbacks = get_default_callbacks("exp", log_interval=100, best_model_criterion=criteria)
        >>> [type(callback).__name__ for callback in callbacks[3:]]
        ['AverageCheckpointsCallback', 'LearningRateMonitor', 'MetricsLogger', 'TQDMProgressBar']
        >>> callbacks[2].filename
        'epoch{epoch}_step{step}_valid.acc'
    """
    if expdir is not None:
        if exp_dir not in ("./exp", expdir):
            raise MisconfigurationException(f"exp_dir={exp_dir!r} and expdir={expdir!r} are one argument; give one")
        exp_dir = expdir
    last = ModelCheckpoint(
        dirpath=exp_dir,
        filename="step{step}",
        save_last="link",
        auto_insert_metric_name=False,
        save_on_train_epoch_end=True,
        enable_version_counter=False,  # the same step is the same state: write over a damaged one
        keep_newest=STATES_KEPT,
    )
    criteria = (("valid/loss", 3, "min"),) if best_model_criterion is None else best_model_criterion
    best = [_best(exp_dir, criterion) for criterion in criteria]
    names = [callback.filename for callback in best]
    for callback in best:
        if names.count(callback.filename) > 1:  # each would write over the other's files, or remove them
            raise MisconfigurationException(
                f"best_model_criterion: two criteria name their files by {callback.monitor!r}; keep one of them"
            )
    return [
        last,
        *best,
        AverageCheckpointsCallback(exp_dir, best),
        LearningRateMonitor(),
        MetricsLogger(log_every_n_steps=log_interval),
        TQDMProgressBar(refresh_rate=log_interval or 1),
    ]


def _best(exp_dir: str | os.PathLike, criterion: Sequence) -> ModelCheckpoint:
    """The callback that keeps the best checkpoints by one criterion."""
    if isinstance(criterion, str) or len(criterion) != 3:
        raise MisconfigurationException(
            f"best_model_criterion: {criterion!r} is not a criterion; write each as (metric, how many to keep, mode), "
            f"for example ('valid/loss', 3, 'min')"
        )
    monitor, top_k, mode = criterion
    return ModelCheckpoint(
        dirpath=exp_dir,
        filename=f"epoch{{epoch}}_step{{step}}_{monitor.replace('/', '.')}",
        monitor=monitor,
        mode=mode,
        save_top_k=top_k,
        save_weights_only=True,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=False,
        enable_version_counter=False,  # a resumed run writes the same file again
    )
