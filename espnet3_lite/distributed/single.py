"""How processes train together, as the loop sees it. This file: one process, which needs no collective at all.

DDP and FSDP2 are in `ddp.py` and `fsdp.py`; `launch.py` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.savers import FileSaver, Saver
from espnet3_lite.checks.signatures import taking
from espnet3_lite.distributed.rank import local_rank
from espnet3_lite.distributed.vote import GO_ON, LOSS, Verdict, all_sound, batch_weight, describe_bad_losses

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.slots import OptimizerSlot, Steps
    from espnet3_lite.trainer.trainer import Trainer


class Strategy:
    """How processes train together. This base class is for one process; DDP and FSDP override it.

    Users reach it as ``trainer.strategy``: `root_device`, `model`, `is_global_zero`, `global_rank`, `local_rank`,
    `world_size`, `barrier`, `broadcast`, `reduce` and `all_gather` are as in Lightning.

    Args:
        device: Where the module and the batches go; `connect` sets it anew.

    Example:
        >>> Strategy(torch.device("cpu")).world_size
        1
    """

    name = "single"
    #: `validate`, `test` and `predict` may run in `torch.inference_mode`.
    inference_mode = True
    #: There are ranks, be it one: loaders are dealt out to them, and they share gradients.
    deals_out = False
    #: Ranks must run their batches equally often in evaluation too.
    equal_batches = False
    world_size = 1
    #: This process's number over all machines.
    global_rank = 0
    #: The module that trains: with DDP what DDP has wrapped it in; None before a call.
    model: torch.nn.Module | None = None

    def __init__(self, device: torch.device | None = None):
        #: Where the module and the batches are.
        self.root_device = device or torch.device("cpu")
        #: Writes checkpoints; asked by those who wait for one to be on disk.
        self.saver: Saver = FileSaver()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.global_rank} of {self.world_size}, {self.root_device})"

    def connect(self, device: torch.device, timeout: timedelta | None = None) -> None:
        """Begin to work on this device, as the strategy of a trainer.

        Args:
            device: This process's own: the CPU, or the GPU of its local rank.
            timeout: How long a collective waits for the other ranks.
        """
        self.root_device = device

    @property
    def is_global_zero(self) -> bool:
        """True on the process that writes and prints."""
        return self.global_rank == 0

    @property
    def local_rank(self) -> int:
        """This process's number on its machine."""
        return local_rank()

    def begin_call(self, trainer: Trainer) -> None:
        """A call of the trainer begins."""
        self.saver.in_background = trainer.async_save

    # ---- the model -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Put the module where it trains, before the optimizers are made."""
        self.model = module
        module.to(self.root_device)

    def wrap(self, trainer: Trainer, module: LiteModule) -> Callable[[Any, int], Any]:
        """What the loop calls as `module`'s training step, a function of a batch and its index.

        It is compiled as ``Trainer(compile=...)`` says. `trainer` has made the optimizers before.
        """
        step, compile = taking(module.training_step, ("batch", "batch_idx")), trainer.compile
        if not compile:
            return step
        arguments = {"mode": compile} if isinstance(compile, str) else compile if isinstance(compile, dict) else {}
        return module.compiled_step(step, **arguments)

    # ---- the step --------------------------------------------------------------------------------------------------

    def vote(self, trainer: Trainer, steps: Steps, is_last: bool) -> Verdict:
        """What all ranks do with the batch in work.

        Args:
            trainer: Whose loop asks.
            steps: This rank's (loss, optimizer) pairs.
            is_last: This rank's loader has no batch after this one.
        """
        if self.saver.under_way is not None:
            self.saver.poll()
        signal = trainer.stopping.signals.received is not None
        if trainer.detect_anomaly or all_sound(map(LOSS, steps), batch_weight(trainer)):
            return Verdict(signal=True) if signal else GO_ON
        reason = describe_bad_losses(trainer, steps) or f"the weight is {float(batch_weight(trainer))}"
        return Verdict(skip=True, reason=reason, signal=signal)

    def before_forward(self, closes: bool) -> None:
        """The next forward pass comes; it `closes` the plain optimizer's window, or not."""

    def synchronizes(self, slot: OptimizerSlot) -> bool:
        """True when the backward pass that just ran for `slot` left gradients that all ranks share."""
        return True

    def settle_gradients(self) -> None:
        """Before a hook that may look at gradients: none of them is on its way to other ranks."""

    def share_gradients(self, closing: Collection[OptimizerSlot]) -> None:
        """Average the gradients of `closing`, the optimizers that are about to step, that are still each rank's own."""

    def gather_gradients(self, own: dict[str, torch.Tensor], shared: bool) -> list[dict[str, torch.Tensor]]:
        """`own`, this rank's pending gradients, for a checkpoint: each rank's on rank zero; one for all if `shared`."""
        return [{name: gradient.clone() for name, gradient in own.items()}]

    def local_gradient(self, gradient: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """A gradient from a checkpoint, as the parameter holds it."""
        return gradient.to(parameter.device)

    def free_gathered(self) -> None:
        """No backward pass follows the last forward pass; with sharded weights it has left whole ones behind."""

    # ---- values ----------------------------------------------------------------------------------------------------

    def reduce(self, tensor: torch.Tensor, group: ProcessGroup | None = None, reduce_op: str = "mean") -> torch.Tensor:
        """`tensor` reduced over the ranks, or over a `group` of them.

        Args:
            tensor: This rank's; of one shape on all ranks.
            group: Of the ranks; all of them by default.
            reduce_op: ``mean`` (or ``avg``), ``sum``, ``min`` or ``max``.
        """
        return tensor

    def all_gather(
        self, tensor: torch.Tensor, group: ProcessGroup | None = None, sync_grads: bool = False
    ) -> torch.Tensor:
        """Each rank's tensor, of one shape on all ranks, stacked: ``(ranks, ...)``; one process's as it is.

        Args:
            tensor: This rank's.
            group: Of the ranks; all of them by default.
            sync_grads: Gradients go back to the ranks that the tensors came from.
        """
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """Each rank's value, in the order of ranks, on all ranks. Plain values only: they are pickled."""
        return [value]

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """`obj` of the rank `src`, by default rank zero, on all ranks."""
        return obj

    def any(self, flag: bool) -> bool:
        """True where `flag` is true on any rank."""
        return flag

    def agreed_metric(self, value: Any) -> Any:
        """A metric for a decision, equal on all ranks: the mean of all `value`s; None where nobody has one."""
        return value

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks, however long one of them works before; `name` is the place that an error names."""

    def require_same(self, facts: Mapping[str, str], advice: str) -> None:
        """Raise one message on all ranks where their `facts` differ; it ends with `advice`."""

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """Give `module`'s buffers rank zero's values on all ranks."""

    # ---- state -----------------------------------------------------------------------------------------------------

    def load_module_state_dict(self, module: torch.nn.Module, state: dict[str, Any], strict: bool) -> None:
        """Load `state`, a module's weights, into `module`; `strict`: all keys must fit."""
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load `state`, which `optimizer_state_dict` gave, into `optimizer`, which trains `module`."""
        optimizer.load_state_dict(state)

    def load_checkpoint(self, path: Any) -> dict[str, Any]:
        """Read the checkpoint `path`, whatever wrote it, after what is still being written is complete."""
        self.saver.finish()
        return files.load_checkpoint(path)

    def begin_saving(self) -> None:
        """A checkpoint is to be saved: all ranks must have come to it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any) -> None:
        """Write `checkpoint` to `path`, or begin to; all ranks call, rank zero writes."""
        self.saver.save(checkpoint, path)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def fail(self, exception: BaseException) -> BaseException:
        """An exception ends the call: returns what to raise."""
        return exception

    def teardown(self) -> None:
        """The call is over: what is being written is seen through to its end, and later saves are waited for."""
        self.saver.in_background = False
        self.saver.finish()
