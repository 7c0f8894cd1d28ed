"""DDP: every rank has the whole model. One optimizer's gradients travel during backward, several ones' after it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from espnet3_lite.distributed.multi import SeveralProcesses, buffers_put_back
from espnet3_lite.distributed.single import training_step_of

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class DDPStrategy(SeveralProcesses):
    """Data parallel training.

    One plain optimizer: torch's `DistributedDataParallel` around the training step, which sends gradients in buckets
    while the backward pass still runs, and only in the batch that closes an accumulation window. Several named
    optimizers, or manual optimization: `average_gradients` once for each update.

    Args:
        device: This process's.
        find_unused_parameters: The model does not use all its parameters in each batch; costs a walk through the graph.
    """

    name = "ddp"

    def __init__(self, device: torch.device, find_unused_parameters: bool = False):
        super().__init__(device)
        self.find_unused_parameters = find_unused_parameters
        self._wrapped: DistributedDataParallel | None = None
        #: The forward pass in work is followed by a backward pass that leaves gradients all ranks share.
        self._synchronizing = False
        self._parameters: list[torch.nn.Parameter] = []
        self._required: list[bool] = []

    def wrap(self, trainer: Trainer, module: torch.nn.Module) -> Callable[[Any, int], Any]:
        """What the loop calls as the training step. Collective."""
        self._step = _TrainingStep(module)
        self._parameters = list(module.parameters())
        self._wrap_anew()
        for slot in trainer.slots.values():
            slot.synchronized = trainer.automatic_optimization  # by hand: averaged when clipped, or stepped
        return self.training_step

    def _wrap_anew(self) -> None:
        """Collective: all ranks freeze and unfreeze the same parameters at the same time."""
        self._required = [parameter.requires_grad for parameter in self._parameters]
        self._wrapped = None  # its hooks go with it
        if self.trainer.automatic_optimization and None in self.trainer.slots and any(self._required):
            self._wrapped = DistributedDataParallel(
                self._step, find_unused_parameters=self.find_unused_parameters, **_no_buffer_broadcasts()
            )

    def before_forward(self, closes: bool) -> None:
        """Gradients are to be shared by this batch's backward pass if it closes the window."""
        if [parameter.requires_grad for parameter in self._parameters] != self._required:
            self._wrap_anew()  # a callback has frozen or unfrozen something
        self._synchronizing = closes and self._wrapped is not None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The module's, through DDP. A rank without data runs it too, and puts the buffers back."""
        local = self._wrapped is not None and not self._synchronizing
        with (
            buffers_put_back(self._step.module if self.trainer.train_data.replaying else None),
            self._wrapped.no_sync() if local else contextlib.nullcontext(),
        ):
            return (self._wrapped or self._step)(batch, batch_idx)

    def empty_steps(self, trainer: Trainer, steps: Sequence, returned: list) -> list:
        """A loss of zero, with a gradient of zero for all that DDP waits for; none at all for named optimizers."""
        if trainer.slots.get(None) is None:
            return [(torch.zeros((), device=self.device, requires_grad=True), slot) for slot in returned]
        if not returned:
            return [(None, slot) for slot in trainer.slots.values()]
        if self.find_unused_parameters:  # DDP has seen in the graph which gradients will come: they must
            return [(loss * 0.0, slot) for loss, slot in steps]
        # Empty slices, not products with zero: an infinite parameter times zero would be NaN.
        zero = torch.stack([p.reshape(-1)[:0].sum() for p in self._parameters if p.requires_grad]).sum()
        return [(zero, slot) for slot in returned]

    def synchronizes(self, slot: Any) -> bool:
        """True when the backward pass that just ran left gradients that all ranks share."""
        return self._synchronizing

    def teardown(self) -> None:
        """Take DDP's hooks off the parameters."""
        self._wrapped = None
        self._parameters = []


class _TrainingStep(torch.nn.Module):
    """Makes the training step a `forward`, which is all that DDP knows to call."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Any, batch_idx: int) -> Any:
        return training_step_of(self.module)(batch, batch_idx)


def _no_buffer_broadcasts() -> dict[str, bool]:
    """Buffers are each rank's own while it trains; rank zero's count in validations and checkpoints."""
    name = "forward_sync_buffers"  # since torch 2.13, for `broadcast_buffers`
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {name: False} if name in known else {"broadcast_buffers": False}
