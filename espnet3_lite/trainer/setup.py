"""What a call needs before its first hook: module, callbacks, data, checkpoint, optimizers. No training happens here.

Defaults and what is made once are `defaults.py`'s; bringing a checkpoint's state back is `run_state.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import HOOKS
from espnet3_lite.callbacks.checkpoint_files import newest_first
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.checkpoint import run_state
from espnet3_lite.distributed.rank import local_rank, rank_zero_info, rank_zero_warn, times_restarted
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loops.manual_optimization import ManualOptimizer
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.optim.slots import OptimizerSlot, attach_schedulers, parse_optimizers

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def check_module(model: Any) -> None:
    """Before anything else: what is to run is a `LiteModule`, compiled or not.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(getattr(model, "_orig_mod", model), LiteModule):
        raise TypeError(f"`model` must be a `LiteModule`, got `{type(model).__qualname__}`")


def connect(
    trainer: Trainer, model: Any, given: dict[str, Any], datamodule: Any, ckpt_path: Any
) -> dict[str, Any] | None:
    """Module, callbacks, data, checkpoint, optimizers: all that a call needs before its first hook.

    Returns:
        The checkpoint to resume from, its weights and callback states already restored; or None.
    """
    fitting, stage = trainer.state.fn == "fit", trainer.state.fn.value
    provided, model = model is not None, model if model is not None else trainer.lightning_module
    trainer.lightning_module = model = getattr(model, "_orig_mod", model)
    trainer.agree_on_log_dir()
    # Rank zero's answer for all, which it gives after all that it had to write is written. Collective: all ranks.
    path = trainer.strategy.broadcast_object(select_checkpoint(trainer, ckpt_path, provided))
    trainer.ckpt_path = path
    trainer.given_loaders, trainer.datamodule = given, datamodule if datamodule is not None else trainer.datamodule
    if not fitting or trainer.train_data.loader is not None:
        _forget_loaders(trainer, fitting)
    model.trainer = trainer
    if trainer.datamodule is not None:
        trainer.datamodule.trainer = trainer
    _add_model_callbacks(trainer, model)
    if any(callback.uses_run_history for callback in trainer.callbacks):
        trainer.keep_history()
    _check_steps(trainer, model)
    trainer.metrics.clear()

    data = trainer.datamodule
    if local_rank() == 0:
        for owner in (data, model):
            if owner is not None:
                owner.prepare_data()
    trainer.strategy.barrier()  # all ranks: the data must be there
    find_hooks(trainer, model, data)
    if data is not None:
        data.setup(stage)
    trainer.call("setup", stage)
    model.configure_model()
    trainer.precision_plugin.setup(model, trainer.device)  # before weights are loaded: 64-true must not round them
    trainer.strategy.setup(trainer, model)  # likewise: a sharded model takes only its own parts
    checkpoint = None
    if path is not None:
        checkpoint = trainer.strategy.load_checkpoint(path)
        run_state.restore_module(trainer, checkpoint, fitting)
        rank_zero_info("Restored all states from the checkpoint at %s" if fitting else "Loaded model weights from the "
                       "checkpoint at %s", path)  # fmt: skip
    if fitting:
        configure_optimizers(trainer, model)
        trainer.training_step = trainer._with_override(trainer.strategy.wrap(trainer, model))
        trainer.validates = trainer._validates_in_fit()
    return checkpoint


def select_checkpoint(trainer: Trainer, ckpt_path: Any, model_provided: bool) -> str | None:
    """The file that a call starts from: a path, ``"best"``, ``"last"``; None for none.

    Raises:
        ValueError: ``"best"`` or ``"last"`` where there is none.
    """
    fn = trainer.state.fn.value
    if fn == "fit" and times_restarted():
        return newest_checkpoint(trainer) or ckpt_path  # torchrun started this run anew after a failure
    if fn == "fit" and ckpt_path is None:
        return newest_checkpoint(trainer) if trainer.auto_resume else None
    if ckpt_path is None:
        if model_provided or trainer.lightning_module is None or trainer.checkpoint_callback is None:
            return None
        if not getattr(trainer.checkpoint_callback, "best_model_path", ""):
            return None
        rank_zero_warn(
            f"`.{fn}(ckpt_path=None)` was called without a model. The best model of the previous `fit` call will be "
            f"used. Pass `ckpt_path='best'` to say so, or the model to use its present weights."
        )
        ckpt_path = "best"
    if ckpt_path == "best":
        callback = trainer.checkpoint_callback
        if callback is None:
            raise ValueError(f'`.{fn}(ckpt_path="best")` is set but `ModelCheckpoint` is not configured.')
        if not callback.best_model_path:
            raise ValueError(f'`.{fn}(ckpt_path="best")` is set but `ModelCheckpoint` has saved no best model yet.')
        return callback.best_model_path
    if ckpt_path == "last":
        path = newest_checkpoint(trainer)
        if path is None:
            rank_zero_warn(f'.{fn}(ckpt_path="last") is set, but there is no last checkpoint available. No checkpoint '
                           f"will be loaded.")  # fmt: skip
        return path
    return os.fspath(ckpt_path)


def newest_checkpoint(trainer: Trainer) -> str | None:
    """The newest intact checkpoint that the checkpoint callbacks know of. Rank zero looks and tells the others."""
    if not trainer.is_global_zero:
        return None
    candidates: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        finder: Callable | None = getattr(callback, "resume_candidates", None)
        candidates += finder(trainer) if finder is not None else []
    found = checkpoint_io.newest_intact(newest_first(candidates))
    return None if found is None else os.fspath(found)


def _forget_loaders(trainer: Trainer, fitting: bool) -> None:
    """Each call asks for its loaders anew."""
    if fitting:
        trainer.train_data.loader = None
        trainer.evaluation_loops["val"].loaders = []


def _add_model_callbacks(trainer: Trainer, model: Any) -> None:
    """`configure_callbacks`: one of a type replaces the trainer's of that type."""
    wanted = model.configure_callbacks()
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if wanted:
        types = {type(callback) for callback in wanted}
        kept = [callback for callback in trainer.callbacks if type(callback) not in types]
        replaced = [type(callback).__name__ for callback in trainer.callbacks if type(callback) in types]
        if replaced:
            rank_zero_info("callbacks of the model replace the trainer's: %s", ", ".join(replaced))
        trainer.callbacks = [*kept, *wanted]


def _check_steps(trainer: Trainer, model: Any) -> None:
    """The methods that this call needs are there.

    Raises:
        MisconfigurationException: one is not.
    """
    name, fn = type(model).__name__, trainer.state.fn
    needed = {
        "fit": ("training_step", "configure_optimizers"),
        "validate": ("validation_step",),
        "test": ("test_step",),
    }
    for method in needed.get(fn.value, ()):
        if not trainer.is_overridden(method, model):
            if method == "configure_optimizers" and not model.automatic_optimization:
                continue
            raise MisconfigurationException(f"No `{method}()` method defined on {name}, which Trainer.{fn}() needs")
    if fn == "fit" and not model.automatic_optimization and trainer.gradient_clip_val:
        raise MisconfigurationException(
            f"Automatic gradient clipping is not supported for manual optimization. Remove `Trainer(gradient_clip_val="
            f"{trainer.gradient_clip_val})` and call `self.clip_gradients(optimizer, ...)` in {name}.training_step"
        )
    if fn == "fit" and not model.automatic_optimization and trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"Automatic gradient accumulation is not supported for manual optimization. Remove `Trainer("
            f"accumulate_grad_batches={trainer.accumulate_grad_batches})` and accumulate in {name}.training_step"
        )


def find_hooks(trainer: Trainer, model: Any, data: Any) -> None:
    """Look once which hooks the module really has, so that the others cost nothing in the loop."""
    trainer.module_hooks = {hook: getattr(model, hook) for hook in HOOKS if trainer.is_overridden(hook, model)}
    for hook in ("on_save_checkpoint", "on_load_checkpoint"):
        trainer.module_hooks.pop(hook, None)  # called with the checkpoint in `resume`
    trainer.prepare_hooks()
    trainer.automatic_optimization = model.automatic_optimization
    trainer.clips_by_itself = trainer.is_overridden("configure_gradient_clipping", model)
    device = trainer.device
    trainer.transfer_hooks = []
    for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        owner = next((o for o in (data, model) if o is not None and trainer.is_overridden(name, o)), None)
        if name == "transfer_batch_to_device":
            if owner is None and device.type == "cpu":
                continue  # everything is there already
            move = (owner or model).transfer_batch_to_device
            trainer.transfer_hooks.append(lambda batch, index, move=move: move(batch, device, index))
        elif owner is not None:
            trainer.transfer_hooks.append(getattr(owner, name))
    trainer.transfers_batches = bool(trainer.transfer_hooks) or trainer.precision_plugin.name == "64-true"


def configure_optimizers(trainer: Trainer, model: Any) -> None:
    """Make the optimizers, their slots and schedulers.

    Raises:
        MisconfigurationException: several optimizers that nobody names, or clipping that is said twice.
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
        if trainer.gradient_clip_val is not None or trainer.gradient_clip_algorithm is not None:
            raise MisconfigurationException(
                "trainer.gradient_clip_val / gradient_clip_algorithm: with several optimizers set "
                "`gradient_clip_val` in each of `optimizers`"
            )
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: with several optimizers set "
                f"`accum_grad_steps` in each of `optimizers`"
            )
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
        slots = {None: OptimizerSlot(_NoOptimizer())}
    else:
        slots = {None: OptimizerSlot(optimizers[0])}
    for slot in slots.values():
        slot.manual = ManualOptimizer(slot.optimizer, trainer)
    attach_schedulers(schedulers, slots.values())
    trainer.slots, trainer.lr_scheduler_configs = slots, schedulers
    _check_lbfgs(trainer, named)
    clipped = [trainer.gradient_clip_val, *(slot.gradient_clip_val for slot in slots.values())]
    scaled = trainer.precision_plugin.scaler is not None
    trainer.checks_gradients = any(clipped) or trainer.check_grad_finite or scaled or trainer.clips_by_itself
    needs_closure = any(isinstance(slot.optimizer, torch.optim.LBFGS) for slot in slots.values())
    parts_of_a_step = ("backward", "optimizer_zero_grad", "optimizer_step", "lr_scheduler_step")
    trainer.overridden_methods = {name for name in parts_of_a_step if trainer.is_overridden(name, model)}
    trainer.closure_wanted = not named and (needs_closure or "optimizer_step" in trainer.overridden_methods)


def _check_lbfgs(trainer: Trainer, named: Any) -> None:
    for slot in trainer.slots.values():
        if not isinstance(slot.optimizer, torch.optim.LBFGS):
            continue
        if named:
            raise MisconfigurationException(
                f"optimizers.{slot.name}: LBFGS evaluates its loss several times a step, which several optimizers with "
                f"losses from one forward pass cannot do; take another optimizer"
            )
        if trainer.precision_plugin.scaler is not None:
            raise MisconfigurationException(
                "LBFGS with precision='16-mixed': AMP and the LBFGS optimizer are not compatible; use '32-true' or "
                "'bf16-mixed'"
            )


class _NoOptimizer(torch.optim.Optimizer):
    """Stands where a module wants none: steps nothing."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(0))], {})
        self.param_groups.clear()

    def step(self, closure: Any = None) -> Any:
        return closure() if closure is not None else None


class ValidationIntervalError(MisconfigurationException, ValueError):
    """`val_check_interval` does not fit the data. A ValueError too, which is what Lightning raises."""


def check_intervals(trainer: Trainer) -> None:
    """After how many training batches to validate, now that their number is known.

    Raises:
        ValidationIntervalError: more than there are.
        MisconfigurationException: a fraction of a number that is not known.
    """
    batches, interval = trainer.num_training_batches, trainer.val_check_interval
    if isinstance(interval, int):
        trainer.val_check_batch = interval
        if interval > batches and trainer.check_val_every_n_epoch is not None and trainer.validates:
            raise ValidationIntervalError(
                f"`val_check_interval` ({interval}) must be less than or equal to the number of the training batches "
                f"({batches}). If you want to disable validation set `limit_val_batches` to 0.0 instead. If you want "
                f"to validate based on the total training batches, set `check_val_every_n_epoch=None`."
            )
    elif batches == float("inf"):
        if interval != 1.0:
            raise MisconfigurationException(
                "When using an IterableDataset for `train_dataloader`, `Trainer(val_check_interval)` must be `1.0` or "
                "an int. An int k specifies checking validation every k training batches."
            )
        trainer.val_check_batch = float("inf")
    else:
        trainer.val_check_batch = max(1, int(batches * interval))
    if trainer.loggers and 0 < batches < trainer.log_every_n_steps and not trainer.fast_dev_run:
        rank_zero_warn(
            f"The number of training batches ({batches}) is smaller than the logging interval "
            f"Trainer(log_every_n_steps={trainer.log_every_n_steps}). Set a lower value for log_every_n_steps if you "
            f"want to see logs for the training epoch."
        )
