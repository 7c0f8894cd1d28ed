"""`StochasticWeightAveraging`: the mean of the weights over the last epochs, at a rate of its own.

Averages over optimizer steps, or with decay, are in `weight_averaging.py`; averages of files in
`average_checkpoints.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.finetuning import BaseFinetuning
from espnet3_lite.callbacks.weight_averaging import AverageFunction, averaged_model, is_averaged, update_average
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.optim.lr_stepping import LRSchedulerConfig

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


def _running_mean(averaged: torch.Tensor, current: torch.Tensor, num_averaged: torch.Tensor | int) -> torch.Tensor:
    """The mean of `num_averaged` tensors and one more."""
    return averaged + (current - averaged) / (num_averaged + 1)


class StochasticWeightAveraging(Callback):
    """Stochastic weight averaging, with one optimizer (Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization", UAI 2018; https://arxiv.org/abs/1803.05407).

    From `swa_epoch_start` on, the learning rate is annealed to `swa_lrs` by torch's `SWALR`, which replaces the
    module's own scheduler, and the weights with which each epoch begins are averaged. After the last epoch the module
    gets the average. Where it has BatchNorm layers, one more epoch of forward passes follows (hooks, logs and
    validation as ever; nothing is propagated), in which their statistics are computed anew for the averaged weights:
    the plain mean over all batches. ``trainer.max_epochs`` is one larger while such a run lasts. (Lightning counts one
    optimizer step in that epoch, and applies what gradients it finds; here nothing steps.)

    A run that ends before its last epoch keeps its own weights, with a warning. Resuming works at any moment.

    Args:
        swa_lrs: The learning rate to anneal to: a positive float, or a list with one for each of the optimizer's
            parameter groups.
        swa_epoch_start: The first averaged epoch: an int counts from 1; a float is a fraction of `max_epochs`.
        annealing_epochs: Epochs in which the rate is annealed.
        annealing_strategy: ``cos`` or ``linear``.
        avg_fn: ``avg_fn(averaged, current, num_averaged)`` gives the new average; the plain mean by default.
        device: Where the average lies; None: where the module is.

    Raises:
        MisconfigurationException: a value that is not allowed; at the start of a fit: several optimizers or
            schedulers, more or fewer rates than parameter groups, a fraction without `max_epochs`, sharded weights.

    Example:
        >>> swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=3)
        >>> swa.swa_start  # counted from 0, as trainer.current_epoch is
        2
    """

    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: AverageFunction | None = None,
        device: torch.device | str | None = "cpu",
    ):
        _check_arguments(swa_lrs, swa_epoch_start, annealing_strategy, avg_fn, device)
        if not annealing_epochs >= 0:
            raise MisconfigurationException(f"annealing_epochs={annealing_epochs!r} is not a number of at least 0")
        self._swa_lrs, self._given_start = swa_lrs, swa_epoch_start
        self._annealing_epochs, self._annealing_strategy = annealing_epochs, annealing_strategy
        self._avg_fn, self._device = avg_fn or _running_mean, device
        self._forget()

    def _forget(self) -> None:
        """As before the first run."""
        self._swa_epoch_start = self._given_start
        self._average: AveragedModel | None = None
        self._swa_scheduler: SWALR | None = None
        self._latest_update_epoch = -1
        self._max_epochs = -1
        self._adds_epoch = False
        self._momenta: dict[_BatchNorm, float | None] = {}
        self._recomputing = self._ended = False
        self._resumed: dict[str, Any] | None = None

    # ---- when ------------------------------------------------------------------------------------------------------

    @property
    def swa_start(self) -> int:
        """The first averaged epoch, from 0. (A fraction is known as a number once a fit has begun.)"""
        return max(int(self._swa_epoch_start) - 1, 0)

    @property
    def swa_end(self) -> int | float:
        """The last averaged epoch, from 0; infinity without `max_epochs`."""
        return math.inf if self._max_epochs == -1 else self._max_epochs - 1

    @property
    def n_averaged(self) -> torch.Tensor | None:
        """How many epochs' weights are in the average, ``()`` int64; None before a fit."""
        return None if self._average is None else self._average.n_averaged

    @property
    def _begun_average(self) -> AveragedModel:
        """The average; there is one from `on_fit_start` on."""
        assert self._average is not None
        return self._average

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Begin anew."""
        if stage == "fit":
            if trainer.strategy.name == "fsdp":
                raise MisconfigurationException(
                    "StochasticWeightAveraging does not support sharded models; use strategy='ddp', or average "
                    "checkpoints (AverageCheckpointsCallback)"
                )
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Check what the average builds on; make room for it; take up where a resumed run stood."""
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(f"SWA currently works with 1 `optimizer`, got {len(trainer.optimizers)}.")
        if len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                f"SWA currently not supported for more than 1 `lr_scheduler`, got {len(trainer.lr_scheduler_configs)}."
            )
        if isinstance(self._given_start, float):
            if trainer.max_epochs == -1:
                raise MisconfigurationException(
                    f"SWA with `swa_epoch_start` as a float ({self._given_start}) is not supported when "
                    f"`max_epochs=-1`. Please provide `swa_epoch_start` as an integer."
                )
            self._swa_epoch_start = int(trainer.max_epochs * self._given_start)
        if not any(isinstance(callback, BaseFinetuning) for callback in trainer.callbacks):  # which adds groups later
            self._rates(trainer.optimizers[0])
        self._max_epochs = trainer.max_epochs
        self._average = averaged_model(pl_module, self._device, use_buffers=False, avg_fn=self._avg_fn)
        if self.swa_start > self.swa_end:
            rank_zero_warn(
                f"StochasticWeightAveraging(swa_epoch_start={self._given_start!r}) begins after the last of "
                f"max_epochs={trainer.max_epochs} epochs: nothing is averaged, the module keeps its own weights"
            )
        elif trainer.max_epochs != -1 and any(isinstance(module, _BatchNorm) for module in pl_module.modules()):
            if not trainer.plan.automatic_optimization:
                raise MisconfigurationException(
                    f"SWA recomputes BatchNorm statistics in an epoch without optimization, which manual optimization "
                    f"({type(pl_module).__name__}.automatic_optimization=False) does not allow"
                )
            trainer.max_epochs += 1  # the epoch for the statistics
            self._adds_epoch = True
        if self._resumed is not None:
            self._take_up(trainer, self._resumed)

    def _take_up(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """The average; and a scheduler like the one whose state the trainer will load, if it stepped already."""
        average = self._begun_average
        average.module.load_state_dict(state["average_model_state"])
        average.n_averaged.fill_(state["n_averaged"])
        self._latest_update_epoch = state["latest_update_epoch"]
        if state["scheduler_state"] is not None:
            self._swap_scheduler(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run that resumes within the additional epoch goes on with it."""
        within_epoch = trainer.fit_loop.within_epoch and trainer.current_epoch == self.swa_end + 1
        if self._adds_epoch and within_epoch:
            self._recompute_statistics(trainer, pl_module, reset=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Average the weights that this epoch begins with; after the last epoch, begin with the statistics."""
        epoch = trainer.current_epoch
        if self.swa_start <= epoch <= self.swa_end:
            if self._swa_scheduler is None:
                self._swap_scheduler(trainer)
            if epoch > self._latest_update_epoch:
                update_average(self._begun_average, pl_module, type(self).__name__)
                self._latest_update_epoch = epoch
        elif self._adds_epoch and epoch == self.swa_end + 1:
            self._transfer(pl_module)
            self._recompute_statistics(trainer, pl_module)

    def _rates(self, optimizer: Optimizer) -> list[float]:
        """The rate of each parameter group.

        Raises:
            MisconfigurationException: there are more or fewer than groups.
        """
        groups = len(optimizer.param_groups)
        rates = list(self._swa_lrs) if isinstance(self._swa_lrs, Sequence) else [self._swa_lrs] * groups
        if len(rates) != groups:
            raise MisconfigurationException(
                f"StochasticWeightAveraging: `swa_lrs` holds {len(rates)} rates, the optimizer has {groups} parameter "
                f"groups; give one for each, or one float for all"
            )
        return rates

    def _swap_scheduler(self, trainer: Trainer) -> None:
        """`SWALR` in place of the module's scheduler; it steps with each epoch."""
        (slot,) = trainer.plan.slots.values()
        rates = self._rates(slot.optimizer)
        self._swa_scheduler = SWALR(
            slot.optimizer,
            rates,  # type: ignore[arg-type]  # torch takes a list too
            self._annealing_epochs,
            self._annealing_strategy,
        )
        for config in trainer.lr_scheduler_configs:
            if config.interval != "epoch" or config.frequency != 1:
                rank_zero_warn(
                    f"SWA is currently only supported every epoch: its scheduler steps once an epoch, not each "
                    f"{config.frequency} {config.interval}(s) as {type(config.scheduler).__name__} did"
                )
            rank_zero_info("Swapping scheduler `%s` for `SWALR`", type(config.scheduler).__name__)
        trainer.lr_scheduler_configs[:] = [LRSchedulerConfig(self._swa_scheduler, slot=slot)]

    def _transfer(self, pl_module: LiteModule) -> None:
        """The average's floating parameters become the module's."""
        with torch.no_grad():
            for averaged, current in zip(self._begun_average.module.parameters(), pl_module.parameters(), strict=True):
                if is_averaged(current):
                    current.copy_(averaged)

    # ---- the additional epoch --------------------------------------------------------------------------------------

    def _recompute_statistics(self, trainer: Trainer, pl_module: LiteModule, reset: bool = True) -> None:
        """Let this epoch's batches go forward only, and every BatchNorm take the plain mean over them."""
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                self._momenta[module] = module.momentum
                module.momentum = None  # torch: a cumulative mean instead of an exponential one
                if reset and module.track_running_stats:
                    module.reset_running_stats()
        self._recomputing = True
        self._training_step = trainer.plan.training_step
        trainer.plan.training_step = torch.no_grad()(self._training_step)
        trainer.fit_loop.forward_only = True

    def _restore_trainer(self, trainer: Trainer) -> None:
        """All that was changed for the additional epoch, as it was."""
        if self._recomputing:
            trainer.fit_loop.forward_only = False
            trainer.plan.training_step = self._training_step
            for module, momentum in self._momenta.items():
                module.momentum = momentum
            self._recomputing = False
        if self._adds_epoch:
            trainer.max_epochs -= 1
            self._adds_epoch = False

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Without BatchNorm the module gets the average here."""
        if trainer.stopped_by_signal:
            return  # this run will be resumed: what is saved now must be its own weights
        self._ended = True
        ended = trainer.current_epoch - 1  # the epochs' counter has moved on already
        epochs = int(self._begun_average.n_averaged)
        if not self._recomputing:
            if ended == self.swa_end or self._max_epochs == -1:
                if epochs > 0:
                    self._transfer(pl_module)
            elif epochs > 0 and ended < self.swa_end:  # after the additional epoch it has the average
                rank_zero_warn(
                    f"StochasticWeightAveraging: the run ended after epoch {ended}, before its last one "
                    f"({self.swa_end}); the module keeps its own weights, not the average of {epochs} epochs"
                )
        self._restore_trainer(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The same where nothing was left to train: the run was cut after its last checkpoint, and resumed."""
        if not self._ended and trainer.stop_error is None:
            self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """Leave the trainer as it was before."""
        self._restore_trainer(trainer)

    def teardown(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """The same after a signal."""
        self._restore_trainer(trainer)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The average, how many epochs are in it, and the scheduler's state; Lightning's keys."""
        if self._average is None:
            return {}
        scheduler = self._swa_scheduler
        return {
            "n_averaged": int(self._average.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if scheduler is None else LRSchedulerConfig(scheduler).state_dict(),
            "average_model_state": self._average.module.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the fit starts, when there is a model to put it into."""
        self._resumed = state_dict


def _check_arguments(swa_lrs: Any, swa_epoch_start: Any, annealing_strategy: str, avg_fn: Any, device: Any) -> None:
    starts_late = isinstance(swa_epoch_start, int) and swa_epoch_start >= 1
    if not starts_late and not (isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1):
        raise MisconfigurationException(
            f"swa_epoch_start should be a >0 integer or a float between 0 and 1, got {swa_epoch_start!r}."
        )
    rates = swa_lrs if isinstance(swa_lrs, Sequence) else [swa_lrs]
    if not all(isinstance(rate, float) and 0 < rate < math.inf for rate in rates):
        raise MisconfigurationException(
            f"The `swa_lrs` should be a positive float, or a list of positive floats; got {swa_lrs!r} (a plain YAML "
            f"reader takes 1e-3 for a string: write 1.0e-3 there)"
        )
    if annealing_strategy not in ("cos", "linear"):
        raise MisconfigurationException(f"annealing_strategy={annealing_strategy!r} is not 'cos' or 'linear'")
    if avg_fn is not None and not callable(avg_fn):
        raise MisconfigurationException(f"The `avg_fn` should be callable, got {avg_fn!r}.")
    if device is not None and not isinstance(device, (torch.device, str)):
        raise MisconfigurationException(f"device is expected to be a torch.device or a str. Found {device!r}")
