"""One logged name: its arguments, its last value, its sum over an epoch. Who logs and who reads is `collector.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from espnet3_lite.exceptions import MisconfigurationException

_STEP_HOOKS = (
    "training_step", "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad", "backward", "optimizer_step", "optimizer_zero_grad",
    "lr_scheduler_step", "configure_gradient_clipping",
)  # fmt: skip
_EVALUATION_HOOKS = tuple(
    f"{prefix}{stage}{suffix}"
    for stage in ("validation", "test")
    for prefix, suffix in (("", "_step"), ("on_", "_batch_start"), ("on_", "_batch_end"))
)
EPOCH_HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start", "on_validation_epoch_start",
    "on_validation_epoch_end", "on_test_start", "on_test_epoch_start", "on_test_epoch_end",
)  # fmt: skip
#: hook -> (on_step, on_epoch) by default, and whether on_step=True is possible. Lightning's table.
DEFAULTS = {
    **{hook: (True, False, True) for hook in _STEP_HOOKS},
    **{hook: (False, True, True) for hook in _EVALUATION_HOOKS},
    **{hook: (False, True, False) for hook in EPOCH_HOOKS},
}
_REDUCTIONS = ("mean", "sum", "min", "max")


class LoggedValue:
    """One name logged in one hook: its arguments, its last value, and its sum over the epoch."""

    __slots__ = (
        "name", "hook", "arguments", "prog_bar", "logger", "on_step", "on_epoch", "reduce", "rank_zero_only",
        "sync_dist", "last", "total", "weight", "dtype", "fresh", "metric", "step_name", "epoch_name",
    )  # fmt: skip

    def __init__(
        self, name: str, hook: str, arguments: tuple, on_step: bool, on_epoch: bool, dataloader_idx: int | None
    ):
        prog_bar, logger, _, _, reduce, _, sync_dist, add_index, rank_zero_only = arguments
        self.hook, self.arguments, self.prog_bar, self.logger = hook, arguments, prog_bar, logger
        self.on_step, self.on_epoch, self.sync_dist = on_step, on_epoch, sync_dist
        self.reduce, self.rank_zero_only = _reduction(name, reduce), rank_zero_only
        suffix = f"/dataloader_idx_{dataloader_idx}" if dataloader_idx is not None and add_index else ""
        forked = on_step and on_epoch
        self.name = name + suffix
        self.step_name = f"{name}_step{suffix}" if forked else self.name
        self.epoch_name = f"{name}_epoch{suffix}" if forked else self.name
        self.metric: Any = None
        #: A mean's: that of the values, at least the default one.
        self.dtype = torch.get_default_dtype()
        self.reset()

    def reset(self) -> None:
        """Forget the epoch; an object that computed its value forgets it too."""
        self.begin_anew()
        if self.metric is not None:
            self.metric.reset()

    def begin_anew(self) -> None:
        """Its value was published. What an object has computed can still be looked at."""
        self.last: torch.Tensor | None = None
        self.total: torch.Tensor | None = None
        self.weight: Any = 0
        self.fresh = False  # `last` has not been published yet

    def update(self, value: torch.Tensor, batch_size: Any) -> None:
        """Take one batch's value, ``()``."""
        self.fresh = True
        if self.on_step:
            self.last = value
        if not self.on_epoch:
            return
        self.dtype = torch.promote_types(torch.get_default_dtype(), value.dtype)
        # Sums are kept in float64: a mean over a million batches stays right in its last shown digit.
        value = value.to(torch.float64) if value.device.type != "mps" else value.float()
        if self.reduce == "mean":
            value = value * batch_size
            self.weight = self.weight + batch_size
        self.total = value if self.total is None else self.combined(self.total, value)

    def take_metric(self, metric: Any) -> None:
        """Take an object that computes the epoch's value itself."""
        self.fresh, self.metric, self.last = True, metric, getattr(metric, "_forward_cache", None)
        self.weight = 1  # it has a value until it is reset

    def combined(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Two sums (minima, maxima) as one, ``()``."""
        return first + second if self.reduce in ("mean", "sum") else getattr(torch, f"{self.reduce}imum")(first, second)

    def epoch_value(self) -> torch.Tensor | None:
        """The epoch's mean (sum, minimum, maximum) so far on this rank, ``()``, in the logged values' dtype."""
        if self.metric is not None:
            return self.metric.compute() if self.weight else None
        if self.total is None:
            return None
        value = self.total / self.weight if self.reduce == "mean" else self.total
        return value.to(self.dtype)


def _reduction(name: str, reduce: str | Callable) -> str:
    """``mean``, ``sum``, ``min`` or ``max``, from the name or from torch's or Python's function of that name."""
    given = reduce.lower() if isinstance(reduce, str) else getattr(reduce, "__name__", str(reduce))
    given = {"avg": "mean", "amin": "min", "amax": "max"}.get(given, given)
    if given not in _REDUCTIONS:
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., reduce_fx={reduce!r})`: only {{min,max,mean,sum}} are supported"
        )
    return given


def comparable(name: str, arguments: tuple) -> list:
    """Arguments of `log` as plain values: ``reduce_fx=torch.mean`` and ``"mean"`` are the same."""
    return [*arguments[:4], _reduction(name, arguments[4]), *arguments[5:]]


def neutral(entry: LoggedValue) -> torch.Tensor:
    """What a sum, minimum or maximum begins with."""
    start = {"min": float("inf"), "max": float("-inf")}.get(entry.reduce, 0.0)
    return torch.full_like(entry.total, start)
