"""`LearningRateFinder`: tries growing learning rates before a fit, and takes that at which the loss falls fastest.

The range test is Smith's (2015, https://arxiv.org/abs/1506.01186). The slope is that of the smoothed curve over the
logarithm of the rate, as it is drawn. Lightning's slope is over the rate itself, which is so small at first that the
noise of the loss, divided by it, is the steepest fall of all; and its curve is a running mean, which follows the loss
so late that it falls fastest where the loss rises already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.trials.trial_run import Trial
from espnet3_lite.callbacks.trials.tuned_attribute import TunedAttribute
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.seed import isolated_random_state

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: How much the running mean, by which a search stops early, keeps of its past at each step.
SMOOTHING = 0.98
#: How far the losses around a rate count in the smoothed curve: a standard deviation of half a power of ten.
WIDTH = 0.5


class Found:
    """What a search found: ``results["lr"]`` and ``results["loss"]`` (as measured), one entry a step.

    >>> found = Found({"lr": [0.001, 0.01, 0.1, 1.0], "loss": [4.0, 3.9, 1.0, 1.1]})
    >>> found.suggestion(skip_begin=0, skip_end=0)
    0.01
    """

    def __init__(self, results: dict[str, list[float]]):
        self.results = results

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the smoothed loss falls fastest; None, with a warning, for too few steps.

        Args:
            skip_begin: So many of the first steps are not looked at.
            skip_end: So many of the last ones.
        """
        rates, _, slopes = self._lines(skip_begin, skip_end)
        if len(rates) < 2:
            rank_zero_warn(
                "Failed to compute suggestion for learning rate because there are not enough points. Increase "
                "num_training_steps, or give more data."
            )
            return None
        return rates[int(slopes.argmin())]

    def smoothed(self) -> list[tuple[float, float]]:
        """The smoothed curve, as (rate, loss); steps whose loss was not finite are left out."""
        rates, losses, _ = self._lines()
        return list(zip(rates, losses.tolist(), strict=True))

    def _lines(self, skip_begin: int = 0, skip_end: int = 0) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        """At each rate the height and slope of the line that fits the losses around it best, weighted by a Gaussian.

        The line looks to both sides, and so the curve follows the loss without delay. A loss that explodes behind the
        lowest one counts as no higher than those before that: it would tilt the lines far away from it, too.
        """
        pairs = list(zip(self.results["lr"], self.results["loss"], strict=True))
        kept = [(rate, loss) for rate, loss in pairs[skip_begin : len(pairs) - skip_end] if math.isfinite(loss)]
        if not kept:
            return [], torch.empty(0), torch.empty(0)
        places, losses = (torch.tensor(values, dtype=torch.float64) for values in zip(*kept, strict=True))
        lowest = int(losses.argmin()) + 1
        losses[lowest:].clamp_(max=float(losses[:lowest].max()))
        places = places.log10()
        apart = places - places[:, None]
        weights = torch.softmax(-0.5 * (apart / WIDTH) ** 2, dim=1)
        from_middle = apart - (weights * apart).sum(1, keepdim=True)
        slopes = (weights * from_middle * losses).sum(1) / (weights * from_middle**2).sum(1)
        return [rate for rate, _ in kept], weights @ losses - slopes * (weights * apart).sum(1), slopes


class LearningRateFinder(Callback):
    """Trains a copy of the module with a learning rate that grows at each step, then sets the suggested one.

    The trial runs without other callbacks, loggers and validations; weights and random states stay as they were. A
    resumed run keeps the first one's rate. The rate is set in the optimizers and their schedulers, and in the module's
    attribute or hyperparameter.

    Args:
        min_lr: The first rate.
        max_lr: The last one.
        num_training_steps: How many steps the search takes.
        mode: ``exponential``: the rate is multiplied at each step; ``linear``: it is added to.
        early_stop_threshold: Stop where the running mean of the loss is so many times its lowest value; None: never.
        update_attr: Set the rate. False: `optimal_lr` alone tells what was found.
        attr_name: The attribute or hyperparameter; by default ``lr`` or ``learning_rate``.

    Raises:
        ValueError: an unknown `mode`.
        MisconfigurationException: not ``0 < min_lr < max_lr``, or no steps; at the start of a fit, several
            processes or optimizers, or no such attribute.

    Example:
        >>> LearningRateFinder(num_training_steps=50).optimal_lr is None
        True
    """

    SUPPORTED_MODES = ("linear", "exponential")

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: Literal["linear", "exponential"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ):
        if mode not in self.SUPPORTED_MODES:
            hint = nearest(mode, self.SUPPORTED_MODES)
            raise ValueError(f"`mode` should be either of {self.SUPPORTED_MODES}, got {mode!r}{hint}")
        if not 0 < min_lr < max_lr < math.inf or not num_training_steps >= 1:
            raise MisconfigurationException(
                f"LearningRateFinder: min_lr={min_lr!r}, max_lr={max_lr!r}, num_training_steps={num_training_steps!r}; "
                f"give 0 < min_lr < max_lr and at least one step"
            )
        #: What was found; None before a search.
        self.optimal_lr: Found | None = None
        self._ramp = min_lr, max_lr, num_training_steps, mode, early_stop_threshold
        self._update_attr, self._attr_name = update_attr, attr_name

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search before the training; not in a run that goes on."""
        if trainer.ckpt_path is None:
            self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search with a copy of `pl_module`; set the rate that was found in `trainer`'s optimizer and in the module."""
        if trainer.fast_dev_run:
            rank_zero_warn("Skipping learning rate finder since `fast_dev_run` is enabled.")
            return
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"LearningRateFinder takes one process and one optimizer, but there are {trainer.world_size} and "
                f"{len(trainer.optimizers)}; search on one process, and name the rate in the configuration"
            )
        attribute = self._attribute(trainer, pl_module) if self._update_attr else None
        ramp = self.make_ramp()
        with isolated_random_state(trainer.own_generators):
            trial = Trial(trainer)
            ramp.prepare(trial.trainer)
            trial.trainer.callback_handler.add_callbacks([ramp])
            trial.trainer.hook_calls.fill()
            try:
                trial.run(ramp.steps)
            finally:
                trial.close()
        self.optimal_lr = ramp.found()
        rate = self.optimal_lr.suggestion()
        if rate is not None and attribute is not None:
            rank_zero_info("Learning rate set to %s", rate)
            attribute.set(rate)
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = rate
                if "initial_lr" in group:
                    group["initial_lr"] = rate
            for config in trainer.lr_scheduler_configs:
                if hasattr(config.scheduler, "base_lrs"):
                    config.scheduler.base_lrs = [rate for _ in config.scheduler.base_lrs]

    def make_ramp(self) -> Ramp:
        """What sets the rates of a search."""
        return Ramp(*self._ramp)

    def _attribute(self, trainer: Trainer, module: LiteModule) -> TunedAttribute:
        """Where the rate stands."""
        names = [self._attr_name] if self._attr_name else ["lr", "learning_rate"]
        attribute = TunedAttribute(trainer, module, names)
        if not attribute.holders:
            raise MisconfigurationException(
                f"LearningRateFinder: neither the module nor its hparams have {' or '.join(map(repr, names))}"
                f"; name the attribute in attr_name, or set update_attr=False{attribute.hint}"
            )
        return attribute


class Ramp(Callback):
    """Sets each step's rate, and notes the loss.

    Attributes:
        results: ``lr`` and ``loss`` of each step.
        means: The running mean of the loss at each step, by which the search stops early.
    """

    #: The mean is corrected for its start as if so many steps more had been.
    behind = 0

    def __init__(self, first: float, last: float, steps: int, mode: str, threshold: float | None):
        self.first, self.last, self.steps, self.mode, self.threshold = first, last, steps, mode, threshold
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}
        self.means: list[float] = []
        self._mean, self._best = 0.0, math.inf

    def prepare(self, trial: Trainer) -> None:
        """Before a trial's plan is made: it validates nothing."""
        trial.limit_val_batches = 0

    def found(self) -> Found:
        """What the trial found."""
        return Found(self.results)

    def rate_of(self, step: int) -> float:
        """The rate of a step, from 0; as Lightning's, which begins with the first rate and leaves out the next."""
        share = (step + 1) / self.steps if step else 0.0
        if self.mode == "exponential":
            return self.first * (self.last / self.first) ** share
        return self.first + share * (self.last - self.first)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """Whatever a scheduler has set, this is the rate."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate_of(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One loss a step."""
        step, loss = trainer.global_step, outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None or step == len(self.results["lr"]):
            return  # the batch made no step
        self.results["lr"].append(self.rate_of(step - 1))
        self.results["loss"].append(float(loss))
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * float(loss)
        smoothed = self._mean / (1 - SMOOTHING ** (step + self.behind))  # `step` counts this one
        self.means.append(smoothed)
        if self.threshold is not None and step > 1 and smoothed > self.threshold * self._best:
            trainer.should_stop = True
        if smoothed < self._best or step == 1:
            self._best = smoothed
