"""ESPnet's learning-rate schedules that PyTorch has no equal of, under ESPnet's names and arguments.

All of them are stepped once an optimizer step (``scheduler_interval: step``, the default); ``step`` below is the
number of the coming update, from 1. Each class states its formula and where it comes from. Not here: when a scheduler
steps (the loop), and PyTorch's own schedules (``torch.optim.lr_scheduler``).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from espnet3_lite.exceptions import MisconfigurationException


class _StepScheduler(LRScheduler):
    """A schedule given in closed form: subclasses say which rates the coming update has."""

    def rates(self, step: int) -> list[float]:
        """One learning rate for each parameter group, for the update number ``step`` (1, 2, ...)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        return self.rates(self.last_epoch + 1)



def _require(condition: bool, name: str, value: float, allowed: str) -> None:
    if not condition:
        raise MisconfigurationException(f"{name}={value!r}: it must be {allowed}")


class WarmupLR(_StepScheduler):
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
        _require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        factor = min(step**-0.5, step * self.warmup_steps**-1.5)
        return [base * self.warmup_steps**0.5 * factor for base in self.base_lrs]


class NoamLR(_StepScheduler):
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
        _require(model_size > 0, "model_size", model_size, "above 0")
        _require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        self.model_size = model_size
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        factor = min(step**-0.5, step * self.warmup_steps**-1.5)
        return [base * self.model_size**-0.5 * factor for base in self.base_lrs]


class WarmupStepLR(_StepScheduler):
    """Linear warm-up to the optimizer's rate, then a staircase: ``gamma`` times less every ``step_size`` epochs.

    ``lr = base_lr * step / warmup_steps`` while ``step <= warmup_steps``, after that
    ``lr = base_lr * gamma ** ((epoch - warmup_epochs) // step_size)`` with ``epoch = step // steps_per_epoch`` and
    ``warmup_epochs = warmup_steps // steps_per_epoch`` (ESPnet's documentation of WarmupStepLR).

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
        _require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        _require(steps_per_epoch >= 1, "steps_per_epoch", steps_per_epoch, "at least 1")
        _require(step_size >= 1, "step_size", step_size, "at least 1")
        self.warmup_steps = warmup_steps
        self.steps_per_epoch = steps_per_epoch
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        if step <= self.warmup_steps:
            return [base * self.warmup_steps**-1 * step for base in self.base_lrs]
        epochs = step // self.steps_per_epoch - self.warmup_steps // self.steps_per_epoch
        return [base * self.gamma ** (epochs // self.step_size) for base in self.base_lrs]


class PiecewiseLinearWarmupLR(_StepScheduler):
    """A warm-up along straight lines between given points, then decay as in `WarmupLR`.

    Up to the last point the rate is interpolated between ``(warmup_steps_list[i], warmup_lr_list[i])``, whatever the
    optimizer's own; after it, ``lr = base_lr * warmup_steps_list[-1] ** 0.5 * step ** -0.5`` (ESPnet's documentation
    of PiecewiseLinearWarmupLR).

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
        if len(warmup_steps_list) != len(warmup_lr_list) or list(warmup_steps_list) != sorted(set(warmup_steps_list)):
            raise MisconfigurationException(
                f"warmup_steps_list={list(warmup_steps_list)}, warmup_lr_list={list(warmup_lr_list)}: "
                "there must be one rate for each step, and the steps must rise"
            )
        self.warmup_steps_list = list(warmup_steps_list)
        self.warmup_lr_list = list(warmup_lr_list)
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        last = self.warmup_steps_list[-1]
        # float(): a checkpoint that holds numpy's float64 is refused by `torch.load(weights_only=True)`
        return [
            float(np.interp(step, self.warmup_steps_list, self.warmup_lr_list, right=base * last**0.5 * step**-0.5))
            for base in self.base_lrs
        ]


class TristageLR(_StepScheduler):
    """Warm up linearly, hold, decay exponentially.

    Of ``max_steps``, the first ``warmup_ratio`` rises from ``init_lr_scale * base_lr`` to ``base_lr``, the next
    ``hold_ratio`` stays there, the rest falls to ``final_lr_scale * base_lr``, where it stays (Park et al. 2019,
    "SpecAugment", section 3.2, as ESPnet's documentation of TristageLR puts it).

    Args:
        optimizer: Its ``lr`` is the peak.
        max_steps: Optimizer steps in all.
        warmup_ratio: Share of the warm-up.
        hold_ratio: Share of the plateau.
        decay_ratio: Share of the decay; the three sum to 1.
        init_lr_scale: Where the warm-up begins, in (0, 1].
        final_lr_scale: Where the decay ends, in (0, 1].
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> TristageLR(optimizer, max_steps=20, init_lr_scale=0.5).get_last_lr()
    [0.75]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: float = 25000,
        warmup_ratio: float = 0.1,
        hold_ratio: float = 0.4,
        decay_ratio: float = 0.5,
        init_lr_scale: float = 0.01,
        final_lr_scale: float = 0.01,
        last_epoch: int = -1,
    ):
        total = warmup_ratio + hold_ratio + decay_ratio
        _require(math.isclose(total, 1.0), "warmup_ratio + hold_ratio + decay_ratio", total, "1")
        _require(0 < init_lr_scale <= 1, "init_lr_scale", init_lr_scale, "above 0 and at most 1")
        _require(0 < final_lr_scale <= 1, "final_lr_scale", final_lr_scale, "above 0 and at most 1")
        self.max_steps = int(max_steps)
        self.warmup_steps = int(self.max_steps * warmup_ratio)
        self.hold_steps = int(self.max_steps * hold_ratio)
        self.decay_steps = self.max_steps - self.warmup_steps - self.hold_steps
        self.init_lr_scale = init_lr_scale
        self.final_lr_scale = final_lr_scale
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        step = min(step, self.max_steps)
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return [base * (self.init_lr_scale + (1 - self.init_lr_scale) * share) for base in self.base_lrs]
        decayed = step - self.warmup_steps - self.hold_steps
        if decayed < 0 or self.decay_steps == 0:
            return list(self.base_lrs)
        return [base * self.final_lr_scale ** (decayed / self.decay_steps) for base in self.base_lrs]


class LinearWarmupDecayLR(_StepScheduler):
    """Linear warm-up, then linear decay over a planned number of updates; F5-TTS's schedule.

    The factor on ``base_lr`` rises from ``start_factor`` (the first update) to 1 in ``warmup_steps`` updates, falls to
    ``end_factor`` at ``total_steps`` and stays there (ESPnet3's documentation of LinearWarmupDecayLR).

    Args:
        optimizer: Its ``lr`` is the peak.
        warmup_steps: Updates until the peak.
        total_steps: Updates in all, more than ``warmup_steps``.
        start_factor: In (0, 1].
        end_factor: In [0, 1].
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> LinearWarmupDecayLR(optimizer, warmup_steps=2, total_steps=4, start_factor=0.5).get_last_lr()
    [0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 20000,
        total_steps: float = 600000,
        start_factor: float = 1e-8,
        end_factor: float = 1e-8,
        last_epoch: int = -1,
    ):
        self.warmup_steps = int(warmup_steps)
        self.total_steps = int(total_steps)
        _require(self.warmup_steps >= 0, "warmup_steps", warmup_steps, "at least 0")
        _require(self.total_steps > self.warmup_steps, "total_steps", total_steps, f"above warmup_steps={warmup_steps}")
        _require(0 < start_factor <= 1, "start_factor", start_factor, "above 0 and at most 1")
        _require(0 <= end_factor <= 1, "end_factor", end_factor, "from 0 to 1")
        self.start_factor = start_factor
        self.end_factor = end_factor
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        done = step - 1
        if done < self.warmup_steps:
            factor = self.start_factor + (1 - self.start_factor) * done / self.warmup_steps
        else:
            share = min((done - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
            factor = 1 + (self.end_factor - 1) * share
        return [base * factor for base in self.base_lrs]


class ExponentialDecayWarmup(_StepScheduler):
    """From ``max_lr`` to ``min_lr`` exponentially, after a warm-up; the optimizer's own rate is not used.

    ``lr = max_lr * (min_lr / max_lr) ** ((done - warmup_steps) / (total_steps - warmup_steps))``, ``done`` being the
    updates made; during the warm-up ``max_lr``, or, with ``warm_from_zero``, ``max_lr * (done + 1) / warmup_steps`` after
    a first update at 0 (ESPnet's documentation of ExponentialDecayWarmup; its code has the optimizer's rate in
    the warm-up that is not from zero).

    Args:
        optimizer: The optimizer.
        max_lr: The rate before the decay.
        min_lr: The rate at ``total_steps``; the decay goes on below it afterwards.
        total_steps: Optimizer steps in all, more than ``warmup_steps``.
        warmup_steps: Optimizer steps before the decay.
        warm_from_zero: Whether the warm-up rises from 0.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> ExponentialDecayWarmup(optimizer, max_lr=0.2, min_lr=0.1, total_steps=10).get_last_lr()
    [0.2]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        min_lr: float,
        total_steps: int,
        warmup_steps: int = 0,
        warm_from_zero: bool = False,
        last_epoch: int = -1,
    ):
        _require(0 < min_lr, "min_lr", min_lr, "above 0")
        _require(0 < max_lr, "max_lr", max_lr, "above 0")
        _require(warmup_steps < total_steps, "warmup_steps", warmup_steps, f"below total_steps={total_steps}")
        self.initial_lr = max_lr
        self.final_lr = min_lr
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warm_from_zero = warm_from_zero
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        done = step - 1
        if done == 0:
            rate = 0.0 if self.warm_from_zero else self.initial_lr
        elif done < self.warmup_steps:
            rate = self.initial_lr * (step / self.warmup_steps if self.warm_from_zero else 1)
        else:
            share = (done - self.warmup_steps) / (self.total_steps - self.warmup_steps)
            rate = self.initial_lr * math.exp(math.log(self.final_lr / self.initial_lr) * share)
        return [rate] * len(self.base_lrs)


class CosineAnnealingWarmupRestarts(_StepScheduler):
    """Cosine cycles between ``max_lr`` and ``min_lr``, each with a warm-up; the optimizer's own rate is not used.

    In a cycle of ``n`` steps, ``lr`` rises linearly from ``min_lr`` to ``max_lr`` in ``warmup_steps`` steps, then
    ``lr = min_lr + (max_lr - min_lr) * (1 + cos(pi * (k - warmup_steps) / (n - warmup_steps))) / 2`` at its step ``k``
    (Loshchilov and Hutter 2017, equation 5). The next cycle's decay is ``cycle_mult`` times as long, its peak ``gamma`` times
    as high. The very first update has ``min_lr`` even without a warm-up, as in ESPnet.

    Args:
        optimizer: The optimizer.
        first_cycle_steps: Optimizer steps in the first cycle, more than ``warmup_steps``.
        cycle_mult: How much longer the decay of each next cycle is.
        max_lr: The first cycle's peak.
        min_lr: The lowest rate.
        warmup_steps: Optimizer steps of warm-up in each cycle.
        gamma: The factor on the peak from one cycle to the next.
        last_epoch: The last step that was taken; -1 for none.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> CosineAnnealingWarmupRestarts(optimizer, first_cycle_steps=8, warmup_steps=2).get_last_lr()
    [0.001]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        first_cycle_steps: int,
        cycle_mult: float = 1.0,
        max_lr: float = 0.1,
        min_lr: float = 0.001,
        warmup_steps: int = 0,
        gamma: float = 1.0,
        last_epoch: int = -1,
    ):
        limit = f"below first_cycle_steps={first_cycle_steps}"
        _require(warmup_steps < first_cycle_steps, "warmup_steps", warmup_steps, limit)
        _require(cycle_mult > 0, "cycle_mult", cycle_mult, "above 0")
        self.first_cycle_steps = first_cycle_steps
        self.cycle_mult = cycle_mult
        self.base_max_lr = max_lr
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        place, cycle, length = step - 1, 0, self.first_cycle_steps
        while place >= length:
            place, cycle = place - length, cycle + 1
            length = max(int((length - self.warmup_steps) * self.cycle_mult), 1) + self.warmup_steps
        height = self.base_max_lr * self.gamma**cycle - self.min_lr
        if step == 1:
            share = 0.0
        elif place < self.warmup_steps:
            share = place / self.warmup_steps
        else:
            share = (1 + math.cos(math.pi * (place - self.warmup_steps) / (length - self.warmup_steps))) / 2
        return [self.min_lr + height * share] * len(self.base_lrs)


class WarmupReduceLROnPlateau(LRScheduler):
    """Linear warm-up with each update, and a cut by ``factor`` when a metric stops improving.

    ``step()`` (after an update) gives ``lr = base_lr * n / warmup_steps`` at its n-th call, and does nothing from
    ``n > warmup_steps`` on. ``step(metric)`` (after a validation) is `torch.optim.lr_scheduler.ReduceLROnPlateau`'s. The first
    update has the optimizer's full rate (ESPnet's documentation of WarmupReduceLROnPlateau).

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
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
        verbose: bool = False,
    ):
        # LRScheduler's own constructor is left out, as in PyTorch's ReduceLROnPlateau: it would step once.
        _require(warmup_steps > 0, "warmup_steps", warmup_steps, "above 0")
        self.optimizer = optimizer
        self.plateau = ReduceLROnPlateau(
            optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps
        )
        self.warmup_steps = warmup_steps
        self.step_num = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def step(self, metrics: float | None = None, epoch: int | None = None) -> None:
        """After an update without arguments; after a validation with the metric."""
        if metrics is not None:
            self.plateau.step(metrics, epoch)
            return
        self.step_num += 1
        if self.step_num <= self.warmup_steps:
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * self.warmup_steps**-1 * self.step_num

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        """One flat dict, as ESPnet's is."""
        own = {"warmup_steps": self.warmup_steps, "step_num": self.step_num, "base_lrs": self.base_lrs}
        return {**self.plateau.state_dict(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        own = ("warmup_steps", "step_num", "base_lrs")
        self.__dict__.update({key: state_dict[key] for key in own})
        self.plateau.load_state_dict({key: value for key, value in state_dict.items() if key not in own})
