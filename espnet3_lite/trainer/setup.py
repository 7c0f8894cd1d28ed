"""What a call needs before its first hook, as one value: the `RunPlan`. No training happens here.

Which checkpoint is taken is in `checkpoint_choice.py`, and how its state comes back in `checkpoint/run_state.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.calling.default_callbacks import add_model_callbacks
from espnet3_lite.callbacks.optimizer_modes import warn_of_modes
from espnet3_lite.callbacks.showing.screen import tell_if_over, warn_at_begin
from espnet3_lite.checkpoint import run_state
from espnet3_lite.checks.calls import check_steps
from espnet3_lite.checks.hooks import check_hooks
from espnet3_lite.checks.optimizers import check_optimizers
from espnet3_lite.distributed.rank import local_rank, rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, wrong_class
from espnet3_lite.loaders.transfer import OnItsWay, side_stream
from espnet3_lite.loops.closure_step import may_use_closure
from espnet3_lite.loops.evaluation import ValidationSchedule, sanity_check
from espnet3_lite.metrics.collector import keep_out_of_graphs
from espnet3_lite.module.data_module import LiteDataModule
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.optim.lr_stepping import LRSchedulerConfig, attach_schedulers
from espnet3_lite.optim.manual_optimization import ManualOptimizer
from espnet3_lite.optim.slots import OptimizerSlot, parse_optimizers
from espnet3_lite.trainer import rank_comparison
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.states import TrainerFn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def _no_training_step(batch: Any, batch_idx: int) -> Any:
    raise RuntimeError("no fit has been set up")


@dataclass(slots=True)
class RunPlan:
    """What a call has prepared. The loops read it; `trainer.optimizers` and the like are views of it.

    An evaluation leaves the optimizers and schedulers of the fit before it where they are.

    Attributes:
        trainer: Whose plan it is.
        validation: When the fit validates.
        automatic_optimization: The loop steps the optimizers; False: the module does.
        transfer: (batch, dataloader_idx) to the batch on its device; None where it is there already.
        copy: Begins to copy a batch that `transfer` will be given; None where that waits for the batch's turn.
        slots: The optimizers with their windows, by name; one plain optimizer has the name None.
        schedulers: What ``trainer.lr_scheduler_configs`` shows.
        accumulates_by_weight: A window's gradient is the mean by weight over its batches (the module's attribute
            `accumulate_by_weight`).
        module_step: (batch, batch_idx) to its output: the module's training step, by way of the strategy.
        training_step: The same in the trainer's precision: what the loop calls.
        closure_wanted: The one optimizer may step by closure (LBFGS, SAM), or the module has its own `optimizer_step`.
        configured: Of each optimizer the numbers of each parameter group that this run was configured with.
        built: The parameters that the module had when its optimizers were made.
        not_taken: What goes on with a checkpoint's values although it is configured otherwise now: ``optimizer``,
            ``scheduler``.
    """

    trainer: Trainer
    validation: ValidationSchedule
    automatic_optimization: bool = True
    transfer: Callable[[Any, int], Any] | None = None
    copy: Callable[[Any], OnItsWay] | None = None
    slots: dict[Any, OptimizerSlot] = field(default_factory=dict)
    schedulers: list[LRSchedulerConfig] = field(default_factory=list)
    module_step: Callable[[Any, int], Any] = _no_training_step
    training_step: Callable[[Any, int], Any] = _no_training_step
    closure_wanted: bool = False
    accumulates_by_weight: bool = False
    configured: list[list[dict[str, Any]]] = field(default_factory=list)
    built: set[torch.nn.Parameter] = field(default_factory=set)
    not_taken: set[str] = field(default_factory=set)

    # ---- how it is made --------------------------------------------------------------------------------------------

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """For a copy: each call makes its functions anew, and on a GPU its stream."""
        kept = {one.name: getattr(self, one.name) for one in fields(self)}
        steps = dict.fromkeys(("module_step", "training_step"), _no_training_step)
        return None, {**kept, **steps, "transfer": None, "copy": None}

    def begin(self) -> None:
        """What can be known of a call before any hook: what the module defines. The last fit's optimizers stay."""
        trainer, module = self.trainer, self.trainer.lightning_module
        trainer.hook_calls.find(module)
        self.validation, self.automatic_optimization = ValidationSchedule(trainer), module.automatic_optimization
        self.transfer, self.copy = _compose_transfer(trainer, module)

    def plan_training(self) -> None:
        """Complete the plan of a fit: optimizers and schedulers, the training step, whether there is validation."""
        trainer, module, precision = self.trainer, self.trainer.lightning_module, self.trainer.precision_plugin
        self.slots, self.schedulers = configure_optimizers(trainer, module)
        check_optimizers(trainer)
        warn_of_modes(trainer)
        self.configured, self.not_taken = [run_state.settings_of(optimizer) for optimizer in trainer.optimizers], set()
        self.built = set(module.parameters())
        rank_comparison.compare_optimizers(trainer)  # collective: all ranks
        by_closure = any(map(may_use_closure, trainer.optimizers)) or "optimizer_step" in trainer.hook_calls.of_module
        self.closure_wanted = None in self.slots and by_closure
        self.accumulates_by_weight = bool(getattr(module, "accumulate_by_weight", False))
        if trainer.compile:
            keep_out_of_graphs()
        self.module_step = trainer.strategy.wrap(trainer, module)
        overridden = type(trainer).calculate_train_batch_loss is not TrainerProperties.calculate_train_batch_loss
        step = (lambda batch, _: trainer.calculate_train_batch_loss(batch)) if overridden else self.module_step
        self.training_step = precision.wrap(step, cache=self.automatic_optimization)
        self.validation.prepare()

    def prepare_loaders(self) -> None:
        """Before a fit trains: try validation out, ask for the loaders, find out when to validate."""
        trainer = self.trainer
        if self.validation.enabled and trainer.num_sanity_val_steps and not trainer.fit_loop.within_epoch:
            sanity_check(trainer)
        if trainer.limit_train_batches != 0:
            trainer.train_data.setup_if_due()
            if self.validation.enabled and self.validation.epoch_validates:
                trainer.evaluation_loops["val"].setup_if_due()
            self.check_intervals()

    def check_intervals(self) -> None:
        """Relate the settings to the number of training batches, now that it is known.

        Raises:
            MisconfigurationException: see `ValidationSchedule.count_batches`.
        """
        trainer, batches = self.trainer, self.trainer.num_training_batches
        self.validation.count_batches()
        if trainer.loggers and 0 < batches < trainer.log_every_n_steps and not trainer.fast_dev_run:
            rank_zero_warn(
                f"The number of training batches ({batches}) is smaller than the logging interval "
                f"Trainer(log_every_n_steps={trainer.log_every_n_steps}). Set a lower value for log_every_n_steps if "
                f"you want to see logs for the training epoch."
            )

    # ---- what is asked of it ---------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Gradients wait in a window, and must not be cleared. (By hand, a validation clears them, as in Lightning.)"""
        return self.automatic_optimization and any(slot.pending for slot in self.slots.values())

    def slot_of(self, optimizer: torch.optim.Optimizer | ManualOptimizer) -> OptimizerSlot:
        """The slot of an optimizer, or of what stands for one."""
        optimizer = optimizer.optimizer if isinstance(optimizer, ManualOptimizer) else optimizer
        return next(slot for slot in self.slots.values() if slot.optimizer is optimizer)


def check_module(model: Any) -> LiteModule:
    """What is to run, without the shell of ``torch.compile``.

    Raises:
        TypeError: it is no `LiteModule`.
        MisconfigurationException: it has hooks of Lightning 1, or hooks with arguments that do not fit.
    """
    if "_orig_mod" in getattr(model, "_modules", ()):
        rank_zero_warn(
            "torch.compile(module) is ignored: the module inside of it runs, not compiled. Use Trainer(compile=...)"
        )
        model = model._orig_mod
    if not isinstance(model, LiteModule):
        steps = ", a module without steps: make it a part of a LiteModule, whose training_step computes the loss"
        hint = steps if isinstance(model, torch.nn.Module) else ""
        raise TypeError(wrong_class("model", model, "LiteModule", "LightningModule", hint))
    check_hooks(model)
    return model


def check_data(data: object) -> None:
    """A data module is one of ours: Lightning's own lack what ours have, and loaders have a place of their own.

    Raises:
        TypeError: it is no `LiteDataModule`, nor None.
        MisconfigurationException: its hooks have arguments that do not fit.
    """
    if data is None:
        return
    if not isinstance(data, LiteDataModule):
        instead = "; give loaders by the arguments of their names, or as the second one"
        raise TypeError(wrong_class("datamodule", data, "LiteDataModule", "LightningDataModule", instead))
    check_hooks(data)


def prepare(trainer: Trainer) -> dict[str, Any] | None:
    """Let module, data and trainer know one another; data, hooks, device and weights; last the optimizers of a fit.

    Returns:
        The checkpoint to start from, its weights and callback states already restored; or None.
    """
    module, data, fn = trainer.lightning_module, trainer.datamodule, str(trainer.state.fn)
    fitting, checkpoint = fn == TrainerFn.FITTING, None
    for owner in trainer.owners:
        owner.trainer = trainer
    add_model_callbacks(trainer)
    rank_comparison.compare_settings(trainer)  # collective: all ranks
    trainer.callback_handler.begin_call(trainer)
    check_steps(trainer)
    trainer.metrics.clear()
    if local_rank() == 0:
        for owner in trainer.owners:
            owner.prepare_data()
    trainer.strategy.barrier("prepare_data")  # all ranks wait until the data are there
    trainer.plan.begin()
    if fitting:
        warn_at_begin(trainer)
    if data is not None:
        data.setup(fn)
    trainer.call("setup", fn)
    module.configure_model()
    trainer.precision_plugin.setup(module, trainer.device)  # before loading: 64-true must not round the weights
    trainer.strategy.setup(trainer, module)  # before loading: a rank of a sharded model loads its part only
    if trainer.ckpt_path is not None:
        checkpoint = trainer.strategy.load_checkpoint(trainer.ckpt_path)
        run_state.restore_module(trainer, checkpoint, fitting)
        rank_zero_info("Restored all states from the checkpoint at %s" if fitting else "Loaded model weights from the "
                       "checkpoint at %s", trainer.ckpt_path)  # fmt: skip
        if fitting:
            tell_if_over(trainer, checkpoint)
    if fitting:
        trainer.plan.plan_training()
    return checkpoint


def _compose_transfer(trainer: Trainer, module: LiteModule) -> tuple[Callable[..., Any] | None, ...]:
    """A batch's way to the device: the data module's three hooks, or the module's where it has none.

    Returns:
        The plan's `transfer`, and its `copy`: none where a hook is overridden, since it must see a batch in its turn.
    """
    device, convert = trainer.device, trainer.precision_plugin.convert_batch
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    before, move, after = map(trainer.provider_of, hooks)
    as_ever = before is move is after is None
    if as_ever and device.type == "cpu" and trainer.precision_plugin.true_dtype is None:
        return None, None  # the batch is on its device already
    stream = side_stream(device) if as_ever and trainer.prefetch_to_device else None
    mover = module if move is None else move

    def transfer(batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, OnItsWay):
            return convert(batch.arrive())
        batch = convert(batch)
        trainer.metrics.hook = "transfer_batch_to_device"
        if before is not None:
            batch = before.on_before_batch_transfer(batch, dataloader_idx)
        batch = mover.transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if after is None else after.on_after_batch_transfer(batch, dataloader_idx)

    return transfer, None if stream is None else functools.partial(OnItsWay, device, stream)


def configure_optimizers(
    trainer: Trainer, model: LiteModule
) -> tuple[dict[Any, OptimizerSlot], list[LRSchedulerConfig]]:
    """Make the optimizers, their slots and schedulers.

    Raises:
        MisconfigurationException: several optimizers that nobody names.
    """
    optimizers, schedulers = parse_optimizers(
        model.configure_optimizers() if trainer.is_overridden("configure_optimizers", model) else None,
        type(model).__name__,
        steps_by_hand=not model.automatic_optimization,
        steps_its_way=trainer.is_overridden("lr_scheduler_step", model),
    )
    named = getattr(model, "named_optimizers", None)
    if named:
        slots = {n: OptimizerSlot(o, name=n, **named[n]) for n, o in zip(named, optimizers, strict=True)}
    elif not model.automatic_optimization:
        slots = dict(enumerate(map(OptimizerSlot, optimizers)))
    elif len(optimizers) > 1:
        raise MisconfigurationException(
            f"{type(model).__name__}.configure_optimizers() returned {len(optimizers)} optimizers. Training with "
            f"multiple optimizers is only supported with manual optimization (`self.automatic_optimization = False`), "
            f"or with named `optimizers` in an ESPnetModule's configuration"
        )
    elif not optimizers:
        rank_zero_warn("`configure_optimizers` returned `None`, this fit will run with no optimizer")
        none = torch.optim.SGD([torch.nn.Parameter(torch.zeros(0))], lr=0.0)
        none.param_groups.clear()  # it stands where the module wants none, and steps nothing
        slots = {None: OptimizerSlot(none)}
    else:
        slots = {None: OptimizerSlot(optimizers[0])}
    for slot in slots.values():
        if slot.name is None:  # a named one is clipped by its own settings
            slot.clip_settings = trainer
            if "configure_gradient_clipping" in trainer.hook_calls.of_module and model.automatic_optimization:
                slot.clips_by = functools.partial(trainer.hook_calls.call_module, "configure_gradient_clipping")
        slot.checks_gradients = trainer.check_grad_finite or trainer.precision_plugin.scaler is not None
        slot.own_backward = "backward" in trainer.hook_calls.of_module
    attach_schedulers(schedulers, slots.values(), type(model).__name__)
    return slots, schedulers
