"""How processes train together, as the loop sees it. This file: one process, which needs no collective at all.

DDP and FSDP2 are in `ddp.py` and `fsdp.py`; `launch.py` chooses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.distributed.vote import GO_ON, Verdict, all_sound, batch_weight, vote_alone

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer


class Strategy:
    """One process. The others override what they do otherwise.

    Args:
        device: Where the module and the batches go.

    Example:
        >>> Strategy(torch.device("cpu")).world_size
        1
    """

    name = "single"
    #: `validate`, `test` and `predict` may run in `torch.inference_mode`.
    inference_mode = True
    #: Loaders are dealt out to the ranks, of which there may be one.
    deals_out = False
    #: Ranks must run their batches equally often in evaluation too.
    equal_batches = False
    world_size = 1
    rank = 0

    def __init__(self, device: torch.device):
        self.device = device

    # ---- the model -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Put the module where it trains, before the optimizers are made."""
        module.to(self.device)

    def wrap(self, trainer: Trainer, module: torch.nn.Module) -> Callable[[Any, int], Any]:
        """After the optimizers are made: what the loop calls as the training step."""
        return training_step_of(module)

    # ---- the step --------------------------------------------------------------------------------------------------

    def vote(self, trainer: Trainer, steps: list, is_last: bool) -> Verdict:
        """What all ranks do with this batch. One process: are losses and weight sound, did a signal arrive?"""
        if trainer.stopping.signals.received is None and not trainer.detect_anomaly:
            if all_sound(steps, batch_weight(trainer)):
                return GO_ON
        return vote_alone(trainer, steps)

    def before_forward(self, closes: bool) -> None:
        """The next forward pass comes; it `closes` the plain optimizer's window, or not."""

    def synchronizes(self, slot: OptimizerSlot) -> bool:
        """True when the backward pass that just ran left gradients that all ranks share."""
        return True

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their means over the ranks."""

    def share_gradients(self, closing: Iterable) -> None:
        """Average what is about to be stepped and is still each rank's own."""

    def gather_gradients(self, own: dict[str, torch.Tensor], shared: bool) -> list[dict[str, torch.Tensor]]:
        """Pending gradients for a checkpoint: each rank's on rank zero, or one for all where they are `shared`."""
        return [{name: gradient.clone() for name, gradient in own.items()}]

    def local_gradient(self, gradient: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A gradient from a checkpoint, as the parameter holds it."""
        return gradient.to(parameter.device)

    # ---- values ----------------------------------------------------------------------------------------------------

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        """``mean``, ``sum``, ``min`` or ``max`` over the ranks."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """Each rank's value, in the order of ranks, on all ranks. Plain values only: they are pickled."""
        return [value]

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """One rank's value, rank zero's by default."""
        return value

    def any(self, flag: bool) -> bool:
        """True where it is true on any rank."""
        return flag

    def agreed_metric(self, name: str, value: Any) -> Any:
        """One number for a decision, equal on all ranks: the mean of those that have one; None where nobody has."""
        return value

    def barrier(self) -> None:
        """Wait for all ranks."""

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """Give all ranks rank zero's buffers."""

    # ---- state -----------------------------------------------------------------------------------------------------

    def module_state_dict(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The weights, as a checkpoint holds them."""
        return module.state_dict()

    def optimizer_state_dict(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state, as a checkpoint holds it."""
        return optimizer.state_dict()

    def load_module_state_dict(self, module: torch.nn.Module, state: dict[str, Any], strict: bool) -> None:
        """Load what `module_state_dict` gave."""
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Load what `optimizer_state_dict` gave."""
        optimizer.load_state_dict(state)

    def load_checkpoint(self, path: Any) -> dict[str, Any]:
        """Read it, whatever wrote it."""
        return checkpoint_io.load_checkpoint(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any) -> None:
        """Write it; all ranks call, rank zero writes."""
        checkpoint_io.save_checkpoint(checkpoint, path)

    def when_saved(self, action: Callable[[], None]) -> None:
        """Do what needs the checkpoints handed over so far safely on disk; at once, unless they are still written."""
        action()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def fail(self, exception: BaseException) -> BaseException:
        """An exception ends the call: returns what to raise."""
        return exception

    def teardown(self) -> None:
        """The call is over."""


def training_step_of(module: torch.nn.Module) -> Callable[[Any, int], Any]:
    """A module's training step; one that takes the batch alone is not given its index."""
    step = module.training_step
    if len(inspect.signature(step).parameters) == 1:
        return lambda batch, batch_idx: step(batch)
    return step
