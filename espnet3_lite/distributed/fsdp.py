"""FSDP2: every rank holds a part of each parameter, of its gradient and of its optimizer's state (`fully_shard`)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from espnet3_lite.checkpoint import files, sharded
from espnet3_lite.checkpoint.allowed_types import plain
from espnet3_lite.checkpoint.atomic_files import remove_checkpoint
from espnet3_lite.checkpoint.savers import FileSaver, Saver
from espnet3_lite.distributed.multi import SeveralProcesses
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, refuse
from espnet3_lite.loaders.transfer import map_tensors, whole

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer


_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
#: The name under which a sharded module gets a forward pass that goes through none of its parts.
_NOTHING = "_fsdp_nothing"
#: Modules whose last fit ended by an exception while gradients waited in FSDP2, which has no way to drop them.
_LEFT_WITH_GRADIENTS: WeakSet[torch.nn.Module] = WeakSet()


class FSDPStrategy(SeveralProcesses):
    """Sharded training of one optimizer's parameters; checkpoints are folders that all ranks write.

    The module is sharded in `units`: the items of its `ModuleList`s, and all that remains as one. A module that shards
    parts of itself, with `fully_shard` in `configure_model`, is left to decide. Each unit goes to the GPU when it is
    sharded, so that no GPU ever holds the whole module; one that was built on the meta device gets memory only then,
    and its values by its parts' `reset_parameters`. Experimental: only run on CPUs so far.

    Args:
        reshard_after_forward: Free a unit's whole parameters after its forward pass, and gather them again for its
            backward pass; False takes more memory and fewer messages.
        timeout: How long a collective waits for the other ranks; None: as ``Trainer(dist_timeout=...)`` says.
        sync_each_batch: Reduce gradients after every backward pass, also within an accumulation window, so that no
            rank ever holds a whole gradient. False: each rank sums up its own whole gradient (the memory of all
            trained parameters, in float32 with mixed precision; `Parameter.grad` does not show it), and it is reduced
            once, when the window closes. A checkpoint or a validation within a window reduces what is there, and the
            window goes on from that: a run that is resumed from the checkpoint ends with the same bits. Where a
            signal's checkpoint comes within a window, the last bits may differ from those of a run without the signal,
            since the sum has another order.
    """

    name = "fsdp"
    equal_batches = True  # a forward pass gathers parameters, and so needs all ranks
    inference_mode = False  # gathered parameters outlive a forward pass, and training must be able to use them

    def __init__(
        self, reshard_after_forward: bool = True, timeout: timedelta | None = None, sync_each_batch: bool = True
    ):
        super().__init__(timeout)
        self._reshard_after_forward, self._sync_each_batch = reshard_after_forward, sync_each_batch
        self._reducing = True  # the next backward pass reduces gradients
        self._module: torch.nn.Module  # since `setup`

    def setup(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Shard the module. Collective.

        Raises:
            MisconfigurationException: a torch that shards on GPUs alone.
            ValueError: a parameter without a dimension, which torch does not shard.
        """
        if self.root_device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise MisconfigurationException(
                f"strategy='fsdp' on CPUs needs a newer torch than {torch.__version__} (2.13 does it); use 'ddp'"
            )
        if not isinstance(self.saver, ShardedSaver):
            self.saver = ShardedSaver()
        self.saver.in_background = trainer.async_save
        self._module = self.model = module
        if not isinstance(module, FSDPModule):
            self.convert_batchnorm(trainer, module)
            self._shard(module, trainer.precision_plugin.autocast_dtype)
            for name in (name for name in _STEPS if trainer.is_overridden(name, module)):
                original = getattr(module, name)
                register_fsdp_forward_method(module, name)  # parameters are gathered for it
                registered = functools.partial(getattr(module, name))
                setattr(module, name, functools.update_wrapper(registered, original))  # its signature stays readable

    def _shard(self, module: torch.nn.Module, mixed: torch.dtype | None) -> None:
        """Unit by unit: give it memory, rank zero's values, and to each rank its part. Collective.

        Autocast goes on to choose each operation's dtype with mixed precision; what is gathered has that dtype, and
        gradients are reduced in float32.
        """
        policy = MixedPrecisionPolicy(mixed, torch.float32 if mixed else None, cast_forward_inputs=False)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        by_itself = any(isinstance(part, FSDPModule) for part in module.modules())
        for unit in [*(() if by_itself else units(module)), module]:
            materialize(unit)
            if not by_itself:
                self.take_over_from_rank_zero(unit)
            fully_shard(unit, mesh=mesh, reshard_after_forward=self._reshard_after_forward, mp_policy=policy)

    def wrap(self, trainer: Trainer, module: LiteModule) -> Callable[[Any, int], Any]:
        """What the loop calls as the training step.

        Raises:
            MisconfigurationException: several optimizers, LBFGS, steps by hand; a module that holds gradients of a fit
                that failed; a torch too old for ``sync_each_batch=False``.
        """
        plan = trainer.plan
        refuse(
            "strategy='fsdp' ",
            (not plan.automatic_optimization, "does not train with automatic_optimization=False: the steps that a "
             "module makes by hand would not reach the sharded parameters. Use strategy='ddp'"),
            (any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers), "does not train with "
             "LBFGS, which joins whole gradients into one vector. Use strategy='ddp', or another optimizer"),
            (len(plan.slots) > 1, f"trains one optimizer, this run has {len(plan.slots)} "
             f"({', '.join(map(str, plan.slots))}): a backward pass for some of the sharded parameters would leave "
             f"no gradients on them. Use strategy='ddp'"),
            # The end of a backward pass reduces what waits; in torch 2.6, of gathered units alone.
            (not self._sync_each_batch and not hasattr(module, "reset_iter_state"),
             f"with sync_each_batch=False needs a newer torch than {torch.__version__} (2.13 does it)"),
            (module in _LEFT_WITH_GRADIENTS, "cannot train this module again: an exception has ended its last fit "
             "within an accumulation window, and with sync_each_batch=False gradients of that window may still wait in "
             "it. Make the module anew"),
        )  # fmt: skip
        self._reducing = True  # so every fit leaves its module
        return super().wrap(trainer, module)

    # ---- the step --------------------------------------------------------------------------------------------------

    def before_forward(self, closes: bool) -> None:
        """Gradients are to be reduced by this batch's backward pass if it closes the window."""
        if self.trainer.fit_loop.work.index % self.trainer.accumulate_grad_batches == 0:
            # What an earlier window has left, for which no step was made, must not come into this one.
            self.share_gradients(self.trainer.plan.slots.values())
        self._reduce_from_now_on(closes or self._sync_each_batch)

    def free_gathered(self) -> None:
        """Free whole parameters, which the next change of the weights would make stale."""
        for part in self._module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def synchronizes(self, slot: OptimizerSlot) -> bool:
        """True when the backward pass that just ran has reduced gradients."""
        return self._reducing

    def average_gradients(self, slot: OptimizerSlot) -> None:
        """Reduce what earlier backward passes of `slot` left to a later one that never came. Collective.

        FSDP2 reduces all that waits when a backward pass through the module ends, whatever that pass went through.
        """
        self._reduce_from_now_on(True)
        setattr(self._module, _NOTHING, torch.clone)
        register_fsdp_forward_method(self._module, _NOTHING)
        with torch.enable_grad():
            nothing = torch.zeros((), device=self.root_device, requires_grad=True)
            getattr(self._module, _NOTHING)(nothing).backward()

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """As ever; for the checkpoint, validation or end of the fit that follows, gradients are reduced. Collective."""
        super().sync_buffers(module)
        if not self.failed:
            self.share_gradients(self.trainer.plan.slots.values())
            self._reduce_from_now_on(True)

    def _reduce_from_now_on(self, reduce: bool) -> None:
        if reduce is not self._reducing:
            self._reducing = reduce
            cast(FSDPModule, self._module).set_requires_gradient_sync(reduce)

    # ---- state -----------------------------------------------------------------------------------------------------

    def begin_saving(self) -> None:
        """A checkpoint is to be saved. Collective.

        Raises:
            RuntimeError: an exception has ended the call on this rank, and the others may know nothing of it.
        """
        if self.failed:
            raise RuntimeError(
                "no sharded checkpoint can be saved after an exception (in `on_exception`, say): all ranks must write "
                "their parts of it together, and the other ranks may still be training"
            )
        super().begin_saving()

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """A file as it is; of a sharded checkpoint each rank reads its own parts. Collective."""
        if not Path(path).is_dir():
            return super().load_checkpoint(path)
        # Collective: each rank looks through its share of the files, and all refuse what one of them refuses.
        found = self.gather_objects(files.damage(path, self.global_rank, self.world_size))
        if damage := next(filter(None, found), None):
            raise CheckpointError(damage)
        return sharded.load_parts(Path(path), self._module)

    def load_module_state_dict(self, module: torch.nn.Module, state: dict[str, Any], strict: bool) -> None:
        """Whole tensors or parts of them. Collective."""
        own = module.state_dict()
        module.load_state_dict({key: _as(value, own.get(key)) for key, value in state.items()}, strict=strict)

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: Any) -> None:
        """Whole tensors, or a sharded checkpoint's. Collective."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if callable(state):
            state = state(parameters)
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        owners = dict(zip(numbers, parameters, strict=True))
        restored = {
            number: {key: _as(value, owners.get(number)) for key, value in of_one.items()}
            for number, of_one in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": restored})

    def gather_gradients(self, own: dict[str, torch.Tensor], shared: bool) -> list[dict[str, torch.Tensor]]:
        """Pending gradients, whole. Collective."""
        return [{name: whole(gradient).cpu() for name, gradient in own.items()}]

    def local_gradient(self, gradient: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """This rank's part of a whole gradient. Collective."""
        return _as(gradient, parameter)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any) -> None:
        """Write a folder, all ranks together. Collective."""
        self.saver.save(checkpoint, path)

    def teardown(self) -> None:
        """As ever; but what is being written is given up where another rank has gone, which had a part of it."""
        if self.failed:
            self.saver = FileSaver()
            if not (self._reducing and all(slot.synchronized for slot in self.trainer.plan.slots.values())):
                _LEFT_WITH_GRADIENTS.add(self._module)
        super().teardown()


class ShardedSaver(Saver):
    """Writes sharded checkpoints, one at a time. Making one is a collective."""

    def __init__(self) -> None:
        super().__init__()
        # Of its own, and in main memory: what a background thread exchanges must not mix with the training's.
        self.group = dist.new_group(backend="gloo")  # collective: all ranks begin the call together

    def save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write, or begin to. Collective.

        Args:
            checkpoint: Sharded tensors in ``state_dict``, ``optimizer_states``, and what else is keyed by the model's
                names; of all other rank zero's is written, with whole tensors.
            path: The folder; one that is there is replaced.
        """
        self.finish()
        state = sharded.shardable(checkpoint)
        (rest,) = state.pop(sharded.PLAIN_ENTRY)
        rest = {key: map_tensors(plain(value, f"checkpoint[{key!r}]"), whole) for key, value in rest.items()}
        if dist.get_rank() == 0:
            remove_checkpoint(path)
            state[sharded.PLAIN_ENTRY] = (rest,)
        dist.barrier(group=self.group)  # collective: nobody writes into what is being removed
        if self.in_background:
            state = map_tensors(state, lambda tensor: tensor.detach().clone())  # training goes on meanwhile
            under_way = state_dict_saver.async_save(state, checkpoint_id=Path(path), process_group=self.group)
            self.under_way = cast(Future[Any], under_way)  # not where a stager of its own is given
        else:
            state_dict_saver.save(state, checkpoint_id=Path(path), process_group=self.group)


def units(module: torch.nn.Module) -> list[torch.nn.Module]:
    """What is gathered and freed on its own: the items of the outermost `ModuleList`s, which are a network's layers.

    An item that is no more than one layer of torch's stays with the rest, as does one whose parameters are used
    elsewhere too.

    >>> layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3)])
    >>> [type(unit).__name__ for unit in units(torch.nn.Sequential(layers, torch.nn.Linear(2, 2)))]
    ['Sequential', 'Sequential', 'Sequential']
    """
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList)]
    inner = {id(part) for outer in lists for part in outer.modules() if part is not outer}
    items = [item for outer in lists if id(outer) not in inner for item in outer]
    used = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    return [
        item
        for item in dict.fromkeys(items)
        if any(True for _ in item.children()) and {used[id(parameter)] for parameter in item.parameters()} == {1}
    ]


def materialize(unit: torch.nn.Module) -> None:
    """Give parameters and buffers on the meta device memory, and values by `reset_parameters` of their modules.

    Raises:
        MisconfigurationException: a module that holds some has no such method.
    """
    for name, part in unit.named_modules():
        on_meta = [t for t in (*part._parameters.values(), *part._buffers.values()) if t is not None and t.is_meta]
        refuse(
            f"strategy='fsdp': {name or 'the module itself'} ({type(part).__name__}) ",
            (on_meta and not hasattr(part, "reset_parameters"), "has parameters or buffers on the meta device, and no "
             "`reset_parameters()` that gives them values. Define one, or build it on the CPU"),
        )  # fmt: skip
        for tensor in on_meta:  # in place, so that tied weights stay tied
            memory = torch.empty_like(tensor, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                memory = torch.nn.Parameter(memory, tensor.requires_grad)
            torch.utils.swap_tensors(tensor, memory)  # type: ignore[no-untyped-call]  # torch's
        if on_meta:
            cast(Any, part).reset_parameters()


def _as(value: Any, like: Any) -> Any:
    """A whole tensor sharded as `like` is; anything else as it is."""
    if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
