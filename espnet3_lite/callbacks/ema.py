"""`EMACallback`: ESPnet3's exponential moving average of a model's weights, with a warm-up.

Evaluation uses the average; training, and ``state_dict`` in checkpoints, keep the weights in training. Averages that
end in the module itself are in `weight_averaging.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

from espnet3_lite.callbacks.base import Callback, looks_at_no_outputs
from espnet3_lite.callbacks.weight_averaging import Tensors, is_averaged, swap
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: Where ESPnet3's callback keeps its state in a checkpoint.
STATE = "ema_model_state_dict"


class EMACallback(Callback):
    """Averages the weights over optimizer steps; validation and test run with the average, then training goes on.

    At each `update_every`-th optimizer step ``average = decay * average + (1 - decay) * weights``. Until step
    `update_after_step` the average is a copy of the weights. From then on the decay rises with the number n of further
    steps, ``1 - (1 + n / inv_gamma) ** -power``, and stays between `min_value` and `decay`.

    The average is kept under ``ema_model_state_dict`` in a checkpoint, under the names that ESPnet3 gives it, so that a
    run goes on there or here with the same average. Every rank averages for itself, since their weights are equal;
    while the average is used, rank zero's buffers hold for all. What is averaged is ``module.model``, if there is one.

    Args:
        decay: The largest decay; 1 keeps the average as it is after the warm-up.
        update_after_step: Optimizer steps before the average departs from the weights.
        update_every: Optimizer steps between updates.
        inv_gamma: The larger, the slower the decay rises.
        power: The larger, the quicker the decay rises: 2/3 for a million steps and more, 3/4 for fewer.
        min_value: The smallest decay after the warm-up.

    Raises:
        MisconfigurationException: an argument that is out of its range; at the start of a fit, sharded weights.

    Example:
        >>> ema = EMACallback(decay=0.999, update_after_step=100, power=1.0)
        >>> ema.decay_at(100), round(ema.decay_at(104), 4), round(ema.decay_at(10_000), 4)
        (0.0, 0.8, 0.999)
    """

    def __init__(
        self,
        decay: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
    ):
        for name, value, least in (("update_every", update_every, 1), ("update_after_step", update_after_step, 0)):
            if value < least:
                raise MisconfigurationException(f"EMACallback: {name}={value!r} is below {least}")
        if not 0 <= min_value <= decay <= 1 or inv_gamma <= 0:
            raise MisconfigurationException(
                f"EMACallback: decay={decay!r}, min_value={min_value!r}, inv_gamma={inv_gamma!r}; give "
                f"0 <= min_value <= decay <= 1 and inv_gamma > 0"
            )
        self.decay, self.min_value = decay, min_value
        self.update_after_step, self.update_every = update_after_step, update_every
        self.inv_gamma, self.power = inv_gamma, power
        #: Optimizer steps since the average began.
        self.step = 0
        self._average: AveragedModel | None = None
        self._resumed: dict[str, torch.Tensor] | None = None
        self._last_global_step = 0
        self._swapped = False

    def decay_at(self, step: int) -> float:
        """The decay of the update after optimizer step `step`, in ESPnet3's precision (torch's default dtype)."""
        further = step - self.update_after_step
        if further <= 0:
            return 0.0
        rising = 1 - (1 + torch.tensor(float(further)) / self.inv_gamma) ** -self.power
        return rising.clamp(min=self.min_value, max=self.decay).item()

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Begin anew."""
        if stage != "fit":
            return
        if trainer.strategy.name == "fsdp":
            raise MisconfigurationException(
                "EMACallback does not support sharded models; use strategy='ddp', or average checkpoints "
                "(AverageCheckpointsCallback)"
            )
        self.step, self._average, self._resumed, self._swapped = 0, None, None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Copy the model, which has its final device and dtype here; a resumed run puts its average in."""
        self._average = AveragedModel(_part(pl_module), multi_avg_fn=self._blend, use_buffers=True)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self.step = int(resumed.pop("step"))
            self._average.n_averaged.fill_(int(resumed.pop("initted")))
            self._average.module.load_state_dict({key.removeprefix("ema_model."): v for key, v in resumed.items()})

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Count from where the run goes on."""
        self._last_global_step = trainer.global_step

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: a batch that only accumulates, or was skipped, is none."""
        if trainer.global_step == self._last_global_step:
            return
        self._last_global_step = trainer.global_step
        frozen = self.decay == 1.0 and self.step > self.update_after_step
        assert self._average is not None  # since `on_fit_start`
        if self.step % self.update_every == 0 and not frozen:
            self._average.update_parameters(_part(pl_module))  # the first one copies
        self.step += 1

    @torch.no_grad()
    def _blend(self, average: Tensors, weights: Tensors, n_averaged: torch.Tensor | int) -> None:
        """What `AveragedModel` does with tensors of one dtype; whole numbers stay, as in ESPnet3."""
        if is_averaged(average[0]):
            for mean, current in zip(average, weights, strict=True):
                mean.lerp_(current, 1.0 - self.decay_at(self.step))

    # ---- the average takes the weights' place ----------------------------------------------------------------------

    def _swap(self, trainer: Trainer, pl_module: LiteModule, into: bool) -> None:
        if self._average is not None and self._swapped is not into:
            swap(self._average, _part(pl_module))
            self._swapped = into
            if into:
                trainer.strategy.sync_buffers(pl_module)  # collective: all ranks evaluate

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Validate with the average."""
        self._swap(trainer, pl_module, into=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Back to the weights in training."""
        self._swap(trainer, pl_module, into=False)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """An evaluation that fails must not leave the average in the weights' place."""
        self._swap(trainer, pl_module, into=False)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Nor one that a signal broke off."""
        self._swap(trainer, pl_module, into=False)

    # ---- state -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Put the average beside ``state_dict``, as ESPnet3 does."""
        if self._average is None:
            return
        average = self._average.module.state_dict()
        if self._swapped:  # within a validation
            prefix = "" if next(iter(average)) in checkpoint["state_dict"] else "model."
            training, average = average, {key: checkpoint["state_dict"][prefix + key] for key in average}
            checkpoint["state_dict"].update({prefix + key: value for key, value in training.items()})
        counters = {"initted": torch.tensor(bool(self._average.n_averaged)), "step": torch.tensor(self.step)}
        checkpoint[STATE] = {**counters, **{f"ema_model.{key}": value for key, value in average.items()}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Keep the average until the fit starts."""
        if STATE in checkpoint:
            self._resumed = dict(checkpoint[STATE])
        else:
            rank_zero_warn(f"the checkpoint has no {STATE!r}: EMACallback starts again from the checkpoint's weights")


def _part(pl_module: LiteModule) -> torch.nn.Module:
    """ESPnet3's callback averages the model that its module wraps."""
    model = getattr(pl_module, "model", None)
    return model if isinstance(model, torch.nn.Module) else pl_module
