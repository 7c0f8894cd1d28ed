"""Schedules that warm up to the optimizer's own rate and go down from there."""

from collections.abc import Sequence

import numpy as np
from torch.optim import Optimizer

from espnet3_lite.espnet.schedulers.base import ClosedFormScheduler, Rates, require
from espnet3_lite.exceptions import MisconfigurationException


class WarmupLR(ClosedFormScheduler):
    """Linear warm-up to the optimizer's rate, then decay with the inverse square root of the step.

    ``lr = base_lr * warmup_steps ** 0.5 * min(step ** -0.5, step * warmup_steps ** -1.5)``

    The shape is that of Vaswani et al. 2017, equation 3, scaled so that the highest rate, reached at
    ``step == warmup_steps``, is the optimizer's own (ESPnet's documentation of WarmupLR).

    Args:
        optimizer: Its ``lr`` is the peak.
        warmup_steps: Optimizer steps until the peak.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = WarmupLR(optimizer, warmup_steps=4)
    >>> round(optimizer.param_groups[0]["lr"], 6)
    0.025
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: float = 25000, last_epoch: int = -1):
        require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """The base rate at the end of the warm-up, falling with the inverse square root of the step."""
        factor = min(step**-0.5, step * self.warmup_steps**-1.5)
        return [base * self.warmup_steps**0.5 * factor for base in self.base_lrs]


class NoamLR(ClosedFormScheduler):
    """The schedule of Vaswani et al. 2017, equation 3, times the optimizer's rate. ESPnet prefers `WarmupLR`.

    ``lr = base_lr * model_size ** -0.5 * min(step ** -0.5, step * warmup_steps ** -1.5)``

    Args:
        optimizer: Its ``lr`` scales the whole.
        model_size: The model's width in the formula.
        warmup_steps: Optimizer steps until the peak.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = NoamLR(optimizer, model_size=4, warmup_steps=4)
    >>> optimizer.param_groups[0]["lr"]
    0.0625
    """

    def __init__(
        self, optimizer: Optimizer, model_size: float = 320, warmup_steps: float = 25000, last_epoch: int = -1
    ):
        require(model_size > 0, "model_size", model_size, "above 0")
        require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        self.model_size = model_size
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """The same curve, scaled by the model's size."""
        factor = min(step**-0.5, step * self.warmup_steps**-1.5)
        return [base * self.model_size**-0.5 * factor for base in self.base_lrs]


class WarmupStepLR(ClosedFormScheduler):
    """Linear warm-up to the optimizer's rate, then a staircase: times ``gamma`` every ``step_size`` epochs.

    ``lr = base_lr * step / warmup_steps`` while ``step <= warmup_steps``, after that
    ``lr = base_lr * gamma ** ((epoch - warmup_epochs) // step_size)`` with ``epoch = step //
    steps_per_epoch`` and ``warmup_epochs = warmup_steps // steps_per_epoch`` (ESPnet's documentation of
    WarmupStepLR).

    Args:
        optimizer: Its ``lr`` is the peak.
        warmup_steps: Optimizer steps until the peak.
        steps_per_epoch: Optimizer steps that count as one epoch.
        step_size: Epochs on one stair.
        gamma: The factor from one stair to the next.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> WarmupStepLR(optimizer, warmup_steps=2, steps_per_epoch=2).get_last_lr()
    [0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 25000,
        steps_per_epoch: int = 10000,
        step_size: int = 1,
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        require(steps_per_epoch >= 1, "steps_per_epoch", steps_per_epoch, "at least 1")
        require(step_size >= 1, "step_size", step_size, "at least 1")
        self.warmup_steps = warmup_steps
        self.steps_per_epoch = steps_per_epoch
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """The warm-up's straight line, then the staircase."""
        if step <= self.warmup_steps:
            return [base * self.warmup_steps**-1 * step for base in self.base_lrs]
        epochs = step // self.steps_per_epoch - self.warmup_steps // self.steps_per_epoch
        return [base * self.gamma ** (epochs // self.step_size) for base in self.base_lrs]


class PiecewiseLinearWarmupLR(ClosedFormScheduler):
    """A warm-up along straight lines between given points, then decay as in `WarmupLR`.

    Up to the last point the rate is interpolated between ``(warmup_steps_list[i], warmup_lr_list[i])``,
    whatever the optimizer's own; after it, ``lr = base_lr * warmup_steps_list[-1] ** 0.5 * step ** -0.5``
    (ESPnet's documentation of PiecewiseLinearWarmupLR).

    Args:
        optimizer: Its ``lr`` is used after the last point.
        warmup_steps_list: Rising step numbers.
        warmup_lr_list: A rate for each of them.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    >>> PiecewiseLinearWarmupLR(optimizer, [0, 4], [0.0, 0.4]).get_last_lr()
    [0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps_list: Sequence[float] = (0, 25000),
        warmup_lr_list: Sequence[float] = (0.0, 0.001),
        last_epoch: int = -1,
    ):
        if (
            len(warmup_steps_list) != len(warmup_lr_list)
            or not len(warmup_lr_list)
            or list(warmup_steps_list) != sorted(set(warmup_steps_list))
        ):
            raise MisconfigurationException(
                f"warmup_steps_list={list(warmup_steps_list)}, warmup_lr_list={list(warmup_lr_list)}: "
                "there must be one rate for each step, and the steps must rise"
            )
        self.warmup_steps_list = list(warmup_steps_list)
        self.warmup_lr_list = list(warmup_lr_list)
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """Between the given points, then falling with the inverse square root of the step."""
        last = self.warmup_steps_list[-1]
        # float(): a checkpoint that holds numpy's float64 is refused by `torch.load(weights_only=True)`
        return [
            float(np.interp(step, self.warmup_steps_list, self.warmup_lr_list, right=base * last**0.5 * step**-0.5))
            for base in self.base_lrs
        ]
