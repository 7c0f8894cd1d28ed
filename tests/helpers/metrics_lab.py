"""`Metrics` by itself, without a trainer."""

from types import SimpleNamespace

import torch

from espnet3_lite.metrics.collector import Metrics
from espnet3_lite.metrics.logged_value import LogArguments

STRATEGY = SimpleNamespace(world_size=1, reduce=lambda value, how: value)
ARGUMENTS = LogArguments(
    prog_bar=False, logger=True, on_step=None, on_epoch=None, reduce_fx="mean", enable_graph=False, sync_dist=False,
    add_dataloader_idx=True, rank_zero_only=False,
)  # fmt: skip


def metrics_in(hook="training_step", batch=None):
    metrics = Metrics(SimpleNamespace(strategy=STRATEGY, is_global_zero=True, lightning_module=None))
    metrics.hook = hook
    metrics.start_batch(torch.ones(2, 1) if batch is None else batch)
    return metrics


def log(metrics, name, value, batch_size=None, **arguments):
    metrics.log(name, value, ARGUMENTS._replace(**arguments), batch_size)
