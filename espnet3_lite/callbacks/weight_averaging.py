"""`WeightAveraging` and `EMAWeightAveraging`: a second set of weights that follows the trained one.

They average over optimizer steps or epochs of one run. Averages over the last epochs with a learning rate of their own
are in `stochastic_weight_averaging.py`, averages of saved files in `average_checkpoints.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.callbacks.pruning import ModelPruning
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

AverageFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]
Tensors: TypeAlias = tuple[torch.Tensor, ...] | list[torch.Tensor]
MultiAverageFunction: TypeAlias = Callable[[Tensors, Tensors, torch.Tensor | int], None]


def pairs_of(average: AveragedModel, module: torch.nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each floating parameter and buffer of the average with the module's own."""
    pairs = zip(tensors_of(average.module), tensors_of(module), strict=True)
    return (pair for pair in pairs if is_averaged(pair[0]))


@torch.no_grad()
def swap(average: AveragedModel, module: torch.nn.Module) -> None:
    """Exchange the values; the tensors stay where they are, so that the optimizer does not notice."""
    for averaged, current in pairs_of(average, module):
        held = averaged.clone()
        averaged.copy_(current)
        current.copy_(held)


class WeightAveraging(Callback):
    """Keeps an average of the weights (torch's `AveragedModel`), validates with it, leaves it in the module at the end.

    While a fit validates, the module's weights and the average are swapped. In a checkpoint ``state_dict`` is the
    average (so that a loaded model is the averaged one), ``current_model_state`` the weights in training and
    ``averaging_state`` the number of averaged models; a resumed run goes on with all three. Override `should_update`
    to choose when the average takes the weights in. Until it has done so for the first time there is no average: the
    weights in training are validated, saved, and left in the module.

    Floating (and complex) tensors are averaged. Everything else, such as a counter, a table of indices, a mask or a
    float8, is always the module's own.

    Every rank averages for itself: their weights are equal. Buffers may differ between ranks (BatchNorm); whenever the
    average is used, rank zero's holds for all.

    Args:
        device: Where the average lies; None: where the module is.
        use_buffers: Average buffers too; False: the average takes the module's latest ones.
        kwargs: Further arguments of ``torch.optim.swa_utils.AveragedModel``: ``avg_fn`` or ``multi_avg_fn``. The
            plain mean over all updates by default.

    Raises:
        MisconfigurationException: at the start of a fit, with sharded weights or with `ModelPruning`; at an update,
            where parameters or buffers were replaced since the fit began.

    Example:
        >>> class EveryTenthStep(WeightAveraging):
        ...     def should_update(self, step_idx=None, epoch_idx=None):
        ...         return step_idx is not None and (step_idx + 1) % 10 == 0
        >>> EveryTenthStep().should_update(step_idx=9)
        True
    """

    changes_saved_weights = True

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any):
        self._device = torch.device(device) if isinstance(device, str) else device
        self._use_buffers, self._kwargs = use_buffers, kwargs
        if not kwargs.keys() & {"avg_fn", "multi_avg_fn"}:
            self._kwargs = {**kwargs, "avg_fn": get_swa_avg_fn()}
        self._average_model: AveragedModel | None = None
        self._resumed: dict[str, Any] | None = None
        self._swapped = self._handed_over = False
        self._latest_update_step, self._latest_update_epoch = 0, -1

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to average now; asked after each optimizer step and after each epoch. Every step by default.

        Args:
            step_idx: The last optimizer step, from 0; None after an epoch.
            epoch_idx: The last epoch, from 0; None after a step.
        """
        return step_idx is not None

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Begin anew."""
        if stage == "fit":
            if trainer.strategy.name == "fsdp":
                raise MisconfigurationException(
                    f"{type(self).__name__} does not support sharded models; use strategy='ddp', or average "
                    f"checkpoints (AverageCheckpointsCallback)"
                )
            if any(isinstance(callback, ModelPruning) for callback in trainer.callbacks):
                raise MisconfigurationException(
                    f"{type(self).__name__} with ModelPruning: pruning replaces parameters by others while the average "
                    f"is made, so that they no longer match. Leave one of the two out"
                )
            self._average_model = self._resumed = None
            self._handed_over = False
            self._latest_update_step, self._latest_update_epoch = trainer.global_step, -1

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Copy the module, which has its final device and dtype here; a resumed run puts its average in."""
        average = averaged_model(pl_module, self._device, self._use_buffers, **self._kwargs)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            average.module.load_state_dict(resumed["module"], strict=pl_module.strict_loading)
            average.load_state_dict(resumed["averaging_state"], strict=False)  # the other keys are the module's
        self._average_model = average

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: a batch that only accumulates, or was skipped, is none."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            update_average(self._average, pl_module, type(self).__name__)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """After an epoch."""
        epoch = trainer.current_epoch
        if epoch > self._latest_update_epoch and self.should_update(epoch_idx=epoch):
            update_average(self._average, pl_module, type(self).__name__)
            self._latest_update_epoch = epoch

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Validate with the average, if there is one. (A validation outside a fit takes the module as it is.)"""
        if trainer.state.fn == "fit" and self._begun:
            self._swap(pl_module)
            trainer.strategy.sync_buffers(pl_module)  # collective: all ranks validate

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Back to the weights in training."""
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """A validation that fails must not leave the average in the place of the weights in training."""
        if self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The average becomes the module's, unless a signal ends this run: it will be resumed."""
        if self._swapped:  # a validation was broken off
            self._swap(pl_module)
        if trainer.stopped_by_signal:
            return
        self._handed_over = True
        with torch.no_grad():
            for average, current in pairs_of(self._average, pl_module) if self._begun else ():
                current.copy_(average)
        trainer.strategy.sync_buffers(pl_module)  # collective: all ranks end

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The same where nothing was left to train: the run was cut after its last checkpoint, and resumed."""
        if not self._handed_over and trainer.stop_error is None:
            self.on_train_end(trainer, pl_module)

    @property
    def _average(self) -> AveragedModel:
        """The average; there is one from `on_fit_start` on."""
        assert self._average_model is not None
        return self._average_model

    @property
    def _begun(self) -> bool:
        """The average has taken weights in."""
        return int(self._average.n_averaged) > 0

    def _swap(self, pl_module: LiteModule) -> None:
        swap(self._average, pl_module)
        self._swapped = not self._swapped

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """When the average was last updated; the average itself stands in the checkpoint's ``state_dict``."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave, here or in Lightning."""
        self._latest_update_step = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into ``state_dict`` and the weights in training beside it, as Lightning does."""
        if self._average_model is None:
            rank_zero_info("%s: a checkpoint saved outside a fit holds the module alone", type(self).__name__)
            return
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        if self._begun:
            self._save_average(trainer, pl_module, checkpoint)
        checkpoint["averaging_state"] = dict(self._average_model.named_buffers(recurse=False))

    def _save_average(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        average = self._average.module
        with torch.no_grad():
            for kept, current in zip(tensors_of(average), tensors_of(pl_module), strict=True):
                if not is_averaged(kept):
                    kept.copy_(current)
        checkpoint["state_dict"] = average.state_dict()
        if self._swapped:  # within a validation, or where one was broken off
            states = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Keep the average until the fit starts, and let the trainer load the weights in training."""
        if trainer.state.fn != "fit":
            return  # an evaluation has the average, which is the file's state_dict
        if "current_model_state" not in checkpoint:
            rank_zero_warn(
                f"The checkpoint was not created with {type(self).__name__}. Both the current and the average model "
                f"will be initialized with its state_dict."
            )
            return
        self._resumed = {"module": checkpoint["state_dict"], "averaging_state": checkpoint["averaging_state"]}
        checkpoint["state_dict"] = checkpoint["current_model_state"]  # what is loaded next


class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average of the weights: ``average = decay * average + (1 - decay) * weights``.

    The first update takes the weights as they are.

    Args:
        device: As in `WeightAveraging`.
        use_buffers: As in `WeightAveraging`.
        decay: How much of the average stays at each update.
        update_every_n_steps: Update at each n-th optimizer step, the first one included.
        update_starting_at_step: Not before this step, from 0.
        update_starting_at_epoch: Also update at the end of each epoch from this one on, from 0.
        kwargs: Further arguments of ``AveragedModel``.

    Raises:
        MisconfigurationException: `decay` is not between 0 and 1.

    Example:
        >>> ema = EMAWeightAveraging(decay=0.99, update_every_n_steps=2, update_starting_at_step=4)
        >>> [step for step in range(8) if ema.should_update(step_idx=step)]
        [4, 6]
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ):
        if not 0 <= decay <= 1:  # NaN, too, which torch would take
            raise MisconfigurationException(f"EMAWeightAveraging: decay={decay!r} is not between 0 and 1")
        super().__init__(device=device, use_buffers=use_buffers, **kwargs, avg_fn=get_ema_avg_fn(decay=decay))
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """By step, by epoch, or both; see the class."""
        if step_idx is not None:
            begun = self.update_starting_at_step is None or step_idx >= self.update_starting_at_step
            return begun and self.update_every_n_steps > 0 and step_idx % self.update_every_n_steps == 0
        first = self.update_starting_at_epoch
        return epoch_idx is not None and first is not None and epoch_idx >= first


# ---- torch's AveragedModel, for tensors of every kind ----------------------------------------------------------------


def averaged_model(
    module: torch.nn.Module,
    device: torch.device | str | int | None,
    use_buffers: bool,
    avg_fn: AverageFunction | None = None,
    multi_avg_fn: MultiAverageFunction | None = None,
    **kwargs: Any,
) -> AveragedModel:
    """torch's `AveragedModel`, whose function is asked about floating tensors only; others are copied.

    Args:
        module: What is averaged.
        device: Where the average lies; None: where the module is.
        use_buffers: Average buffers too.
        avg_fn: ``avg_fn(averaged, current, num_averaged)`` gives the new average.
        multi_avg_fn: The same for lists of tensors, in place.
        kwargs: Further arguments of `AveragedModel`.
    """
    place = torch.device(device) if isinstance(device, str) else device
    one = None if avg_fn is None else partial(_average_one, avg_fn)
    many = None if multi_avg_fn is None else partial(_average_many, multi_avg_fn)
    return AveragedModel(module, place, one, many, use_buffers=use_buffers, **kwargs)


def _average_one(
    avg_fn: AverageFunction, averaged: torch.Tensor, current: torch.Tensor, count: torch.Tensor | int
) -> torch.Tensor:
    return avg_fn(averaged, current, count) if is_averaged(averaged) else current


def _average_many(
    multi_avg_fn: MultiAverageFunction, averaged: Tensors, current: Tensors, count: torch.Tensor | int
) -> None:
    if is_averaged(averaged[0]):  # torch groups them by dtype
        multi_avg_fn(averaged, current, count)
    else:
        torch._foreach_copy_(averaged, current)  # as torch's optimizers do; it has no public name


def update_average(average: AveragedModel, module: torch.nn.Module, owner: str) -> None:
    """Take a module's weights in, after a look whether it still has the parameters and buffers that it began with.

    Raises:
        MisconfigurationException: they were replaced: tied, parametrised, pruned.
    """
    held, now = ({name: tensor.shape for name, tensor in _named_tensors(m)} for m in (average.module, module))
    if list(held.items()) != list(now.items()):
        gone, new = ([n for n in a if b.get(n) != a[n]] for a, b in ((held, now), (now, held)))
        raise MisconfigurationException(
            f"{owner}: the module's parameters and buffers were replaced while they are averaged (before: {gone}, now: "
            f"{new}). Tie, parametrise or prune weights before the fit begins: in __init__, configure_model or setup"
        )
    average.update_parameters(module)


def _named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """All parameters, then all buffers."""
    return itertools.chain(module.parameters(), module.buffers())


def is_averaged(tensor: torch.Tensor) -> bool:
    """A floating or complex tensor, but for formats of 8 bits and fewer: torch has no arithmetic for these."""
    return (tensor.is_floating_point() and tensor.dtype.itemsize > 1) or tensor.is_complex()
