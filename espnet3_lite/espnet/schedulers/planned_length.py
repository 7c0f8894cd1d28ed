"""Schedules with a planned length: stages, cycles, and a last step."""

import math

from torch.optim import Optimizer

from espnet3_lite.espnet.schedulers.base import ClosedFormScheduler, Rates, require


class TristageLR(ClosedFormScheduler):
    """Warm up linearly, hold, decay exponentially.

    Of ``max_steps``, the first ``warmup_ratio`` rises from ``init_lr_scale * base_lr`` to ``base_lr``, the
    next ``hold_ratio`` stays there, the rest falls to ``final_lr_scale * base_lr``, where it stays (Park et
    al. 2019, "SpecAugment", section 3.2, as ESPnet's documentation of TristageLR puts it).

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
        require(1 <= max_steps < math.inf, "max_steps", max_steps, "a number of at least 1")
        require(math.isclose(total, 1.0), "warmup_ratio + hold_ratio + decay_ratio", total, "1")
        require(0 < init_lr_scale <= 1, "init_lr_scale", init_lr_scale, "above 0 and at most 1")
        require(0 < final_lr_scale <= 1, "final_lr_scale", final_lr_scale, "above 0 and at most 1")
        self.max_steps = int(max_steps)
        self.warmup_steps = int(self.max_steps * warmup_ratio)
        self.hold_steps = int(self.max_steps * hold_ratio)
        self.decay_steps = self.max_steps - self.warmup_steps - self.hold_steps
        self.init_lr_scale = init_lr_scale
        self.final_lr_scale = final_lr_scale
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """Rising, holding, then falling exponentially."""
        step = min(step, self.max_steps)
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return [base * (self.init_lr_scale + (1 - self.init_lr_scale) * share) for base in self.base_lrs]
        decayed = step - self.warmup_steps - self.hold_steps
        if decayed < 0 or self.decay_steps == 0:
            return list(self.base_lrs)
        return [base * self.final_lr_scale ** (decayed / self.decay_steps) for base in self.base_lrs]


class LinearWarmupDecayLR(ClosedFormScheduler):
    """Linear warm-up, then linear decay over a planned number of updates; F5-TTS's schedule.

    The factor on ``base_lr`` rises from ``start_factor`` (the first update) to 1 in ``warmup_steps`` updates,
    falls to ``end_factor`` at ``total_steps`` and stays there (ESPnet3's documentation of
    LinearWarmupDecayLR).

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
        require(0 <= warmup_steps < math.inf, "warmup_steps", warmup_steps, "at least 0")
        require(math.isfinite(total_steps), "total_steps", total_steps, "finite")
        self.warmup_steps = int(warmup_steps)
        self.total_steps = int(total_steps)
        require(
            self.total_steps > self.warmup_steps,
            "total_steps",
            total_steps,
            f"above warmup_steps={warmup_steps}",
        )
        require(0 < start_factor <= 1, "start_factor", start_factor, "above 0 and at most 1")
        require(0 <= end_factor <= 1, "end_factor", end_factor, "from 0 to 1")
        self.start_factor = start_factor
        self.end_factor = end_factor
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """Rising to 1 times the optimizer's rate, then falling, both linearly."""
        done = step - 1
        if done < self.warmup_steps:
            factor = self.start_factor + (1 - self.start_factor) * done / self.warmup_steps
        else:
            share = min((done - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
            factor = 1 - share + self.end_factor * share
        return [base * factor for base in self.base_lrs]


class ExponentialDecayWarmup(ClosedFormScheduler):
    """From ``max_lr`` to ``min_lr`` exponentially, after a warm-up; the optimizer's own rate is not used.

    ``lr = max_lr * (min_lr / max_lr) ** ((done - warmup_steps) / (total_steps - warmup_steps))``, ``done``
    being the updates made; during the warm-up ``max_lr``, or, with ``warm_from_zero``, ``max_lr * (done + 1)
    / warmup_steps`` after a first update at 0 (ESPnet's documentation of ExponentialDecayWarmup; its code has
    the optimizer's rate in the warm-up that is not from zero).

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
        require(0 < min_lr, "min_lr", min_lr, "above 0")
        require(0 < max_lr < math.inf, "max_lr", max_lr, "above 0 and finite")
        require(warmup_steps < total_steps, "warmup_steps", warmup_steps, f"below total_steps={total_steps}")
        self.initial_lr = max_lr
        self.final_lr = min_lr
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warm_from_zero = warm_from_zero
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """One rate for all groups: the warm-up's, then the exponential decay's."""
        done = step - 1
        if done == 0:
            rate = 0.0 if self.warm_from_zero else self.initial_lr
        elif done < self.warmup_steps:
            rate = self.initial_lr * (step / self.warmup_steps if self.warm_from_zero else 1)
        else:
            share = (done - self.warmup_steps) / (self.total_steps - self.warmup_steps)
            rate = self.initial_lr * math.exp(math.log(self.final_lr / self.initial_lr) * share)
        return [rate] * len(self.base_lrs)


class CosineAnnealingWarmupRestarts(ClosedFormScheduler):
    """Cosine cycles between ``max_lr`` and ``min_lr``, each with a warm-up; the optimizer's rate is not used.

    In a cycle of ``n`` steps, ``lr`` rises linearly from ``min_lr`` to ``max_lr`` in ``warmup_steps`` steps,
    then ``lr = min_lr + (max_lr - min_lr) * (1 + cos(pi * (k - warmup_steps) / (n - warmup_steps))) / 2`` at
    its step ``k`` (Loshchilov and Hutter 2017, equation 5). The next cycle's decay is ``cycle_mult`` times as
    long, its peak ``gamma`` times as high. The very first update has ``min_lr`` even without a warm-up, as in
    ESPnet.

    Args:
        optimizer: The optimizer.
        first_cycle_steps: Optimizer steps in the first cycle, more than ``warmup_steps``.
        cycle_mult: How much longer the decay of each next cycle is. Below 1 it shrinks, at last to nothing: then a
            cycle is its warm-up alone, as in ESPnet (or, without a warm-up, where ESPnet divides by zero, one step).
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
        require(warmup_steps >= 0, "warmup_steps", warmup_steps, "at least 0")
        require(math.isfinite(max_lr), "max_lr", max_lr, "finite")
        require(warmup_steps < first_cycle_steps, "warmup_steps", warmup_steps, limit)
        require(cycle_mult > 0, "cycle_mult", cycle_mult, "above 0")
        self.first_cycle_steps = first_cycle_steps
        self.cycle_mult = cycle_mult
        self.base_max_lr = max_lr
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """One rate for all groups, by the place of the step in its cycle."""
        place, cycle, length = step - 1, 0, self.first_cycle_steps
        while place >= length:
            place, cycle = place - length, cycle + 1
            length = max(int((length - self.warmup_steps) * self.cycle_mult) + self.warmup_steps, 1)
        height = self.base_max_lr * self.gamma**cycle - self.min_lr
        if step == 1:
            share = 0.0
        elif place < self.warmup_steps:
            share = place / self.warmup_steps
        else:
            share = (1 + math.cos(math.pi * (place - self.warmup_steps) / (length - self.warmup_steps))) / 2
        return [self.min_lr + height * share] * len(self.base_lrs)
