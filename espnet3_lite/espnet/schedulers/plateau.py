"""The one schedule that also looks at a metric."""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from espnet3_lite.espnet.schedulers.base import Rates, require


class WarmupReduceLROnPlateau(LRScheduler):
    """Linear warm-up with each update, and a cut by ``factor`` when a metric stops improving.

    ``step()`` (after an update) gives ``lr = base_lr * n / warmup_steps`` at its n-th call, and does nothing
    from ``n > warmup_steps`` on. ``step(metric)`` (after a validation) is
    `torch.optim.lr_scheduler.ReduceLROnPlateau`'s. The first update has the optimizer's full rate (ESPnet's
    documentation of WarmupReduceLROnPlateau).

    Args:
        optimizer: Its ``lr`` is the peak.
        warmup_steps: Optimizer steps until the peak.
        mode: ``min`` or ``max``: which way the metric improves.
        factor: What the rate is multiplied with, below 1.
        patience: Validations without improvement before that.
        threshold: How much is an improvement.
        threshold_mode: ``rel`` or ``abs``.
        cooldown: Validations to wait after a cut.
        min_lr: The lowest rate; one, or one for each parameter group.
        eps: A smaller change of the rate is not made.
        verbose: Accepted for ESPnet's configurations, without effect.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = WarmupReduceLROnPlateau(optimizer, warmup_steps=4)
    >>> scheduler.step()
    >>> optimizer.param_groups[0]["lr"]
    0.25
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 25000,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
        verbose: bool = False,
    ):
        # LRScheduler's own constructor is left out, as in PyTorch's ReduceLROnPlateau: it would step once.
        require(0 < warmup_steps < math.inf, "warmup_steps", warmup_steps, "above 0 and finite")
        require(factor < 1, "factor", factor, "below 1")
        require(mode in ("min", "max"), "mode", mode, "'min' or 'max'")
        groups = len(optimizer.param_groups)
        one_each = not isinstance(min_lr, (list, tuple)) or len(min_lr) == groups
        require(one_each, "min_lr", min_lr, f"one number, or one for each of the {groups} parameter groups")
        self.optimizer = optimizer
        self.plateau = ReduceLROnPlateau(
            optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps
        )
        self.warmup_steps = warmup_steps
        self.step_num = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def step(  # type: ignore[override]  # as torch's own ReduceLROnPlateau
        self, metrics: float | None = None, epoch: int | None = None
    ) -> None:
        """After an update without arguments; after a validation with the metric."""
        if metrics is not None:
            self.plateau.step(metrics, epoch)
            return
        self.step_num += 1
        if self.step_num <= self.warmup_steps:
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * self.warmup_steps**-1 * self.step_num

    def get_last_lr(self) -> Rates:
        """The rates as they are, one for each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        """One flat dict, as ESPnet's is."""
        own = {"warmup_steps": self.warmup_steps, "step_num": self.step_num, "base_lrs": self.base_lrs}
        return {**self.plateau.state_dict(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` gave, or ESPnet's."""
        own = ("warmup_steps", "step_num", "base_lrs")
        self.__dict__.update({key: state_dict[key] for key in own})
        self.plateau.load_state_dict({key: value for key, value in state_dict.items() if key not in own})
