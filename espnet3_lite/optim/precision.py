"""Number formats: which dtype the module and its batches have, autocast, and the gradient scaler.

Knows nothing of loops; the loop asks for `wrap`, `scaler` and `convert_batch`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.loaders.transfer import map_tensors

#: The modes in which the module itself and its batches have another dtype, and those of autocast.
_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SHORT = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}

#: Where even this is too large, no scale helps: batch after batch is left out, until the run ends by it.
_SMALLEST_SCALE = 2.0**-24

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot


class Precision:
    """One of ``32-true`` (default), ``64-true``, ``bf16-true``, ``16-true``, ``bf16-mixed``, ``16-mixed``.

    Args:
        name: The mode, which `trainer/settings.py` has checked; ``32`` and ``64`` are short for the first two, ``bf16``
            and ``16`` for the last two.

    Example:
        >>> Precision("64-true").convert_batch({"x": torch.zeros(1), "n": torch.zeros(1, dtype=torch.int64)})
        {'x': tensor([0.], dtype=torch.float64), 'n': tensor([0])}
    """

    def __init__(self, name: str | int = "32-true"):
        self.name = _SHORT.get(str(name), str(name))
        self.autocast_dtype = _MIXED.get(self.name)
        #: What the module's and the batches' floating tensors are converted to; None: they stay.
        self.true_dtype = _TRUE.get(self.name)
        #: Created with the device, in `setup`; None except for 16-mixed.
        self.scaler: torch.amp.GradScaler | None = None
        self.device_type = "cpu"

    def setup(self, module: torch.nn.Module, device: torch.device) -> None:
        """Convert the module in place and, for ``16-mixed``, make the one scaler that all optimizers share."""
        self.device_type = device.type
        if self.true_dtype is not None:
            getattr(module, {"64-true": "double", "bf16-true": "bfloat16", "16-true": "half"}[self.name])()
        if self.name == "16-mixed" and self.scaler is None:
            self.scaler = torch.amp.GradScaler(device.type)

    def wrap(self, step: Callable[..., Any], cache: bool) -> Callable[..., Any]:
        """A training, validation, test or predict step, in this format.

        Args:
            step: In ``32-true`` it is left as it is, which spares it a few microseconds.
            cache: Mixed precision casts each weight once in a step, however often it is used. Not where a step may
                forward again with weights that it has just updated.
        """
        if self.autocast_dtype is not None:
            return torch.autocast(self.device_type, dtype=self.autocast_dtype, cache_enabled=cache)(step)
        return step if self.true_dtype is None else _default_dtype(self.true_dtype)(step)

    def unscale(self, slot: OptimizerSlot, slots: Iterable[OptimizerSlot]) -> None:
        """Give a slot's gradients their true size: once, whoever asks first (clipping or the step)."""
        if self.scaler is None:
            return
        if slot.scaling == "stepped":
            self.update_scaler(slots, failed=True)  # by hand: a second step of one optimizer in one batch
        if slot.scaling == "scaled" and any(parameter.grad is not None for parameter in slot.parameters):
            self.scaler.unscale_(slot.optimizer)
            slot.scaling = "true"

    def update_scaler(self, slots: Iterable[OptimizerSlot], failed: bool) -> None:
        """After the steps of a batch: adapt the scale, and with it all gradients that still wait for their step.

        Not sooner: what one optimizer's overflow does to the scale must not change another's gradients. The scale is
        read from the device only where gradients wait, or where it may have become too small.

        Args:
            slots: All optimizers'.
            failed: A step may have been left out, which lowers the scale.
        """
        slots = list(slots)
        if self.scaler is None or all(slot.scaling == "scaled" for slot in slots):
            return
        waiting = [slot for slot in slots if slot.scaling == "true" or slot.pending]
        before = self.scaler.get_scale() if waiting else 1.0
        self.scaler.update()
        if failed and self.scaler.get_scale() < _SMALLEST_SCALE:
            self.scaler.update(_SMALLEST_SCALE)  # by 0 nothing can be divided
        after = self.scaler.get_scale() if waiting else 1.0
        for slot in waiting:
            factor = after if slot.scaling == "true" else after / before
            for parameter in slot.parameters if factor != 1.0 else ():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        for slot in slots:
            slot.scaling = "scaled"

    def convert_batch(self, batch: Any) -> Any:
        """Floating tensors of the batch in the module's dtype (``64-true``, ``bf16-true`` and ``16-true``)."""
        dtype = self.true_dtype
        if dtype is None:
            return batch
        return map_tensors(batch, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
