"""DDP: every rank has the whole model, and gradients travel to the other ranks while the backward pass still runs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from espnet3_lite.distributed.gradients import TravellingGradients
from espnet3_lite.distributed.multi import SeveralProcesses
from espnet3_lite.distributed.vote import Place, Verdict

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.slots import OptimizerSlot, Steps
    from espnet3_lite.trainer.trainer import Trainer

#: Looked at in each batch, since any hook, and the step itself, may have changed it. It takes 0.14 us a parameter, and
#: no less in C++; a GPU computes the forward pass meanwhile.
_REQUIRES_GRAD = operator.attrgetter("requires_grad")


class DDPStrategy(SeveralProcesses):
    """Data parallel training: each process has the whole model, and gradients are averaged.

    One plain optimizer: torch's `DistributedDataParallel` around the training step, which sends gradients in buckets
    while the backward pass still runs, and only in the batch that closes an accumulation window. Several named
    optimizers: `TravellingGradients` does the same for the windows that close. Manual optimization:
    `average_gradients` once for each update. In one process, without torchrun, it is as if no strategy were given.

    Args:
        find_unused_parameters: The model does not use all its parameters in each batch; costs a walk through the graph.
        static_graph: The model uses the same parameters in the same order in every batch.
        bucket_cap_mb: The largest message, in MiB; torch's default (25) for None.
        gradient_as_bucket_view: Gradients are views of the messages: saves the memory of one copy of them.
        timeout: How long a collective waits for the other ranks; None: as ``Trainer(dist_timeout=...)`` says.

    Example:
        >>> DDPStrategy(find_unused_parameters=True).name
        'ddp'
    """

    name = "ddp"

    def __init__(
        self,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        bucket_cap_mb: int | None = None,
        gradient_as_bucket_view: bool = False,
        timeout: timedelta | None = None,
    ):
        super().__init__(timeout)
        self.find_unused_parameters = find_unused_parameters
        self._settings: dict[str, Any] = {
            "find_unused_parameters": find_unused_parameters, "static_graph": static_graph,
            "bucket_cap_mb": bucket_cap_mb, "gradient_as_bucket_view": gradient_as_bucket_view,
        }  # fmt: skip
        self._wrapped: DistributedDataParallel | None = None
        self._travelling: TravellingGradients | None = None
        #: The forward pass in work is followed by a backward pass that leaves gradients all ranks share.
        self._synchronizing = self._arranged = False
        self._parameters: list[torch.nn.Parameter] = []
        #: Which of them were trained when they were wrapped; outdated where that has changed since.
        self._required, self._outdated = list[bool](), False

    def wrap(self, trainer: Trainer, module: LiteModule) -> Callable[[Any, int], Any]:
        """What the loop calls as the training step. Collective."""
        self._step = torch.nn.Module()  # whose `forward` is all that DDP knows to call
        self._step.module, self._step.forward = module, super().wrap(trainer, module)
        self._parameters = list(module.parameters())
        self._wrap_anew()
        for slot in trainer.plan.slots.values():
            slot.synchronized = trainer.plan.automatic_optimization  # by hand: averaged when clipped, or stepped
        return self.training_step

    def _wrap_anew(self) -> None:
        """Collective: all ranks freeze and unfreeze the same parameters at the same time."""
        self._required = list(map(_REQUIRES_GRAD, self._parameters))
        self._forget_parameters()
        self._arranged = self._outdated = False
        slots = self.trainer.plan.slots
        if self.trainer.plan.automatic_optimization and any(self._required):
            if None in slots:
                self._wrapped = DistributedDataParallel(self._step, **_no_buffer_broadcasts(), **self._settings)
                self.model = self._wrapped
            else:
                self._travelling = TravellingGradients({slot.name: slot.parameters for slot in slots.values()})

    def _forget_parameters(self) -> None:
        """Take all hooks off them. The graph of a forward pass may still need DDP's object."""
        if self._wrapped is not None:
            self._wrapped._remove_autograd_hooks()  # type: ignore[no-untyped-call]  # no public name, no types
        self._wrapped, self._synchronizing = None, False
        if self._travelling is not None:
            self._travelling.close()
            self._travelling = None

    def before_forward(self, closes: bool) -> None:
        """Gradients are to be shared by this batch's backward pass if it closes the window."""
        if self._outdated and not self.trainer.plan.pending:
            self._wrap_anew()
        if self._synchronizing and not self._arranged:
            # After the first gradients DDP arranges its buckets, by a message within the next forward pass. Collective:
            # ranks that have parted must find out before it.
            self.cast(Place.BATCH)
            self._arranged = True
        self._synchronizing = closes and self._wrapped is not None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The module's, through DDP."""
        if self._wrapped is None:
            return self._step.forward(batch, batch_idx)
        if self._synchronizing:
            return self._wrapped(batch, batch_idx)
        with self._wrapped.no_sync():
            return self._wrapped(batch, batch_idx)

    def vote(self, trainer: Trainer, steps: Steps, is_last: bool) -> Verdict:
        """As ever; then it is known which named optimizers' windows this batch's backward passes close.

        Gradients travel by the hooks of parameters that were trained when these were set. Where that has changed, the
        windows that are open are averaged after their last backward pass.
        """
        if not self._outdated and list(map(_REQUIRES_GRAD, self._parameters)) != self._required:
            self._forget_parameters()
            self._outdated = True
        verdict = super().vote(trainer, steps, is_last)
        if self._travelling is not None:
            trained = () if verdict.skip else steps if verdict.instead is None else verdict.instead
            closing = {slot.name for _, slot in trained if slot.pending + 1 >= slot.window}
            self._travelling.expect(closing, verdict.apart)
        return verdict

    def empty_steps(self, trainer: Trainer, steps: Steps, returned: list[OptimizerSlot]) -> Steps:
        """A loss of zero, with a gradient of zero for all that DDP waits for; none at all for named optimizers."""
        if trainer.plan.slots.get(None) is None:
            return [(torch.zeros((), device=self.root_device, requires_grad=True), slot) for slot in returned]
        if not returned:  # None from every rank's model; no step at all where nothing is optimized, or by hand
            return [(None, slot) for _, slot in steps]
        if self.find_unused_parameters:  # DDP has seen in the graph which gradients will come: they must
            return super().empty_steps(trainer, steps, returned)
        # Empty slices, not products with zero: an infinite parameter times zero would be NaN.
        zero = torch.stack([p.reshape(-1)[:0].sum() for p in self._parameters if p.requires_grad]).sum()
        return [(zero, slot) for slot in returned]

    def synchronizes(self, slot: OptimizerSlot) -> bool:
        """True when the backward pass that just ran left gradients that all ranks share, or are on their way to."""
        return self._synchronizing or (self._travelling is not None and slot.name in self._travelling.expected)

    def settle_gradients(self) -> None:
        """Before a hook that may look at gradients: wait for what is on its way."""
        if self._travelling is not None:
            self._travelling.settle()

    def share_gradients(self, closing: Collection[OptimizerSlot]) -> None:
        """Wait for what is on its way, and average what is still each rank's own. Collective."""
        if self._travelling is not None:
            self._travelling.finish()
        super().share_gradients(closing)

    def teardown(self) -> None:
        """Take all hooks off the parameters."""
        super().teardown()
        self._forget_parameters()
        self._parameters = []


def _no_buffer_broadcasts() -> dict[str, Any]:
    """Buffers are each rank's own while it trains; rank zero's count in validations and checkpoints."""
    name = "forward_sync_buffers"  # since torch 2.13, for `broadcast_buffers`
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {name: False} if name in known else {"broadcast_buffers": False}
