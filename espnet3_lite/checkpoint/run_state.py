"""A trainer's state as a checkpoint, and back: every key that Lightning's file has, and ours inside ``loops``.

Bytes on disk are `files.py`'s; how Lightning counts its loops is `lightning_format.py`'s; when to save is the
callbacks'.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from espnet3_lite.checkpoint import lightning_format
from espnet3_lite.checkpoint.files import check_state_dict
from espnet3_lite.checkpoint.lightning_format import LAYOUT, OUR_STATE, own_state
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn, times_restarted
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, refuse
from espnet3_lite.seed import collect_random_state
from espnet3_lite.trainer.states import RunningStage
from espnet3_lite.version import CHECKPOINT_FORMAT

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer


def dump_checkpoint(trainer: Trainer, weights_only: bool = False) -> dict[str, Any]:
    """Everything that the next batch depends on, as tensors and plain values. All ranks call it.

    Args:
        trainer: In a fit, or after one.
        weights_only: Leave out optimizers, schedulers and callbacks.

    Returns:
        The checkpoint, ready for `files.save_checkpoint`.
    """
    module, loop = trainer.lightning_module, trainer.fit_loop
    trainer.strategy.sync_buffers(module)
    checkpoint: dict[str, Any] = {
        "epoch": loop.epoch,
        "global_step": loop.global_step,
        "pytorch-lightning_version": CHECKPOINT_FORMAT,
        "state_dict": module.state_dict(),
        "loops": lightning_format.dump_loops(trainer),
    }
    checkpoint["loops"][OUR_STATE] = {"layout": LAYOUT, "wrapper_prefix": getattr(module, "wrapper_prefix", "")}
    if not weights_only:
        checkpoint["callbacks"] = {one.state_key: state for one in trainer.callbacks if (state := one.state_dict())}
        checkpoint["optimizer_states"] = [optimizer.state_dict() for optimizer in trainer.optimizers]
        checkpoint["lr_schedulers"] = [config.state_dict() for config in trainer.lr_scheduler_configs]
        if trainer.precision_plugin.scaler is not None:
            checkpoint["MixedPrecision"] = trainer.precision_plugin.scaler.state_dict()  # Lightning's key
        checkpoint["loops"][OUR_STATE].update(_dump_ours(trainer))
    for owner in (module, trainer.datamodule):
        if owner is not None and owner.hparams:
            owner._store_hparams(checkpoint, "datamodule_" if owner is trainer.datamodule else "")
    if trainer.datamodule is not None and (state := trainer.datamodule.state_dict()):
        checkpoint[type(trainer.datamodule).__qualname__] = state
    if weights_only:
        for callback in trainer.callbacks:
            if callback.changes_saved_weights:  # what else it keeps, it keeps for a run that goes on
                saved = {"state_dict": checkpoint["state_dict"]}
                callback.on_save_checkpoint(trainer, module, saved)
                checkpoint["state_dict"] = saved["state_dict"]
    else:
        trainer.hook_calls.call_callbacks("on_save_checkpoint", checkpoint)
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def _dump_ours(trainer: Trainer) -> dict[str, Any]:
    data = trainer.train_data
    return {
        **trainer.fit_loop.state_dict(),
        "random": trainer.strategy.gather_objects(_random_state(trainer)),  # collective: all ranks
        "train_data": data.state_dict() if data.loader is not None else data.resume_state,
        "metrics": trainer.strategy.gather_objects(trainer.metrics.state_dict(_validates_anew(trainer))),  # collective
        "optimizers": [
            {"name": slot.name, **slot.state_dict(), "gradients": _pending_gradients(trainer, slot)}
            for slot in trainer.plan.slots.values()
        ],
        "configured": trainer.plan.configured,
        "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else {} for logger in trainer.loggers],
        "logger_names": _logger_names(trainer),
        "scheduler_versions": [config.seen_version for config in trainer.lr_scheduler_configs],
        "scheduler_waits": [config.waits for config in trainer.lr_scheduler_configs],
        "scheduler_names": [config.slot.name if config.slot else None for config in trainer.lr_scheduler_configs],
    }


def _random_state(trainer: Trainer) -> dict[str, Any]:
    """From where a run goes on."""
    before = trainer.fit_loop.random_before_validation
    return before if before is not None and _validates_anew(trainer) else collect_random_state(trainer.own_generators)


def _validates_anew(trainer: Trainer) -> bool:
    """A validation in work is run again from its beginning."""
    validating = trainer.state.fn == "fit" and trainer.state.stage == RunningStage.VALIDATING
    return validating and trainer.fit_loop.batch_is_open


def _pending_gradients(trainer: Trainer, slot: Any) -> list[dict[str, torch.Tensor]]:
    """The gradients of an open window, by parameter name: each rank's own, or one for all where they are shared.

    Averaging them now would be cheaper to keep, and would change the last bits of the step to come.
    """
    if not slot.pending:
        return []
    mine = {id(parameter) for parameter in slot.parameters}
    named = trainer.lightning_module.named_parameters()
    own = {name: p.grad.detach() for name, p in named if id(p) in mine and p.grad is not None}
    return trainer.strategy.gather_gradients(own, slot.synchronized)  # collective: all ranks save together


# ---- restoring -----------------------------------------------------------------------------------------------------


def restore_module(trainer: Trainer, checkpoint: dict[str, Any], fitting: bool) -> None:
    """Hooks and states of module, data, loggers and callbacks, then the weights, which all of them may have changed.

    Raises:
        CheckpointError: the weights are another model's.
    """
    module = trainer.lightning_module
    check_state_dict(checkpoint, trainer.ckpt_path)
    module.on_load_checkpoint(checkpoint)
    data = trainer.datamodule
    if data is not None and (state := checkpoint.get(type(data).__qualname__)) is not None:
        data.load_state_dict(state)
    if fitting:
        restore_loggers(trainer, checkpoint)
        restore_callbacks(trainer, checkpoint)
    try:
        trainer.strategy.load_module_state_dict(module, checkpoint["state_dict"], strict=module.strict_loading)
    except RuntimeError as error:
        raise CheckpointError(
            f"{trainer.ckpt_path}: its weights do not fit this run's {type(module).__name__}: {error}\nGo on with the "
            f"configuration that wrote it, or begin a new run in another folder (the command's --fresh puts this one "
            f"aside)"
        ) from error
    if not fitting:  # after the weights, as in Lightning: a callback may keep others there, which an evaluation needs
        restore_callbacks(trainer, dict(checkpoint))


def restore_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """First each callback's `on_load_checkpoint`, then its state."""
    states = checkpoint.get("callbacks")
    if states is None:
        return
    trainer.hook_calls.call_callbacks("on_load_checkpoint", checkpoint)
    if missing := [key for key in states if key not in {callback.state_key for callback in trainer.callbacks}]:
        rank_zero_warn(
            f"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided during "
            f"`Trainer` instantiation. Please add the following callbacks: {missing}."
        )
    for callback in trainer.callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def restore_loggers(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Go on with the logs of the run that was cut. All ranks call it, before anything is logged.

    Only where a run finds its own checkpoint: one that is told where to begin is another run, with logs of its own.
    """
    if trainer.auto_resume or times_restarted():
        ours, here = own_state(checkpoint), _logger_names(trainer)  # files of earlier versions hold no names
        states = dict(zip(ours.get("logger_names", here), ours.get("loggers", ()), strict=False))
        for name, logger in zip(here, trainer.loggers, strict=True):
            if (state := states.get(name)) and hasattr(logger, "load_state_dict"):
                logger.load_state_dict(state)
        trainer.agree_on_log_dir()


def _logger_names(trainer: Trainer) -> list[str]:
    """What tells the loggers apart, whatever their order: class, home, and number among those with the same of both."""
    names = [f"{type(logger).__name__} {getattr(logger, 'log_home', dict)()}" for logger in trainer.loggers]
    return [f"{name} {names[:index].count(name)}" for index, name in enumerate(names)]


def restore_training(trainer: Trainer, checkpoint: dict[str, Any], override_optimizer: bool) -> None:
    """Optimizers, schedulers, counters, random state: the run goes on where the checkpoint stands.

    Args:
        trainer: In a fit, with new optimizers.
        checkpoint: As `dump_checkpoint` made it, or Lightning.
        override_optimizer: The optimizers' configured values replace the checkpoint's.

    Raises:
        MisconfigurationException: the checkpoint holds weights only, or other optimizers.
    """
    if "optimizer_states" not in checkpoint or "lr_schedulers" not in checkpoint:
        raise MisconfigurationException(
            "Trying to restore optimizer state but checkpoint contains only the model. This is probably due to "
            "`ModelCheckpoint.save_weights_only` being set to `True`. Resume from a full checkpoint (last.ckpt), or "
            "load the weights alone with LiteModule.load_from_checkpoint"
        )
    _restore_optimizers(trainer, checkpoint)
    scaler, ours = trainer.precision_plugin.scaler, own_state(checkpoint)
    _compare_configured(trainer, ours.get("configured", []), override_optimizer)
    if scaler is not None and "MixedPrecision" in checkpoint:
        scaler.load_state_dict(checkpoint["MixedPrecision"])
        scaler.scale(torch.zeros((), device=trainer.strategy.root_device))  # it makes its state at the first use
    if "stage" in ours:
        _restore_ours(trainer, ours)
    else:
        lightning_format.restore_loops(trainer, checkpoint)


def _restore_optimizers(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Load optimizers and schedulers; named optimizers, and their schedulers, by name where the checkpoint knows it.

    Raises:
        MisconfigurationException: their numbers or names differ.
    """
    states, schedulers = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    configs = list(trainer.lr_scheduler_configs)
    for kind, saved, here in (("optimizers", states, trainer.optimizers), ("schedulers", schedulers, configs)):
        if len(saved) != len(here):
            raise MisconfigurationException(
                f"the checkpoint holds {len(saved)} {kind}, this run has {len(here)}; resume with its own configuration"
            )
    ours = own_state(checkpoint)
    order = [state["name"] for state in ours.get("optimizers", ())]
    if order and None not in order:  # named ones have their states by name
        there = f"the checkpoint's optimizers are {order}, this run's {[*trainer.plan.slots]}"
        refuse(there, (set(order) != trainer.plan.slots.keys(), "; resume with its own configuration"))
        states = [states[order.index(name)] for name in trainer.plan.slots]
        known = ours.get("configured", [])
        ours["configured"] = known and [known[order.index(name)] for name in trainer.plan.slots]
    held = {state["name"] or index: state.get("held", []) for index, state in enumerate(ours.get("optimizers", ()))}
    for index, (slot, state) in enumerate(zip(trainer.plan.slots.values(), states, strict=True)):
        _load_optimizer(trainer, slot, state, held.get(slot.name or index, []))
    names = ours.get("scheduler_names")
    if names and len(set(names)) == len(names):  # schedulers are matched by optimizer
        by_name = {config.slot.name if config.slot else None: config for config in configs}
        configs = [by_name[name] for name in names]
    for config, state in zip(configs, schedulers, strict=True):
        configured = _numbers_of(config.scheduler)
        config.load_state_dict(state)
        _warn_of_kept(trainer, config.scheduler, _numbers_of(config.scheduler), configured)
    counts = zip(ours.get("scheduler_versions", ()), ours.get("scheduler_waits", ()), strict=True)
    for config, (version, waits) in zip(configs, counts, strict=False):  # Lightning's files hold none
        config.seen_version, config.waits = version, waits


def _load_optimizer(trainer: Trainer, slot: OptimizerSlot, state: Any, held: list[Any]) -> None:
    """Load an optimizer and those that it keeps. The state or groups that they share are shared again afterwards."""
    whole, inner, parts = slot.optimizer, slot.held, ("state", "param_groups")
    shared = [(one, part) for one in inner for part in parts if getattr(one, part) is getattr(whole, part)]
    trainer.strategy.load_optimizer_state_dict(whole, state)
    for one, saved in zip(inner, held, strict=False):  # Lightning's files hold none
        trainer.strategy.load_optimizer_state_dict(one, saved)
    for one, part in shared:
        setattr(one, part, getattr(whole, part))


def _restore_ours(trainer: Trainer, ours: dict[str, Any]) -> None:
    loop, parts = trainer.fit_loop, ours["metrics"]
    loop.load_state_dict(ours)
    loop.resumed_random_states = ours["random"]
    trainer.metrics.put_back(parts[trainer.global_rank % len(parts)])
    if len(parts) == trainer.world_size:
        trainer.metrics.load_objects(parts[trainer.global_rank], loop.epoch_ended)
    elif any(part.get("objects") for part in parts):
        rank_zero_warn(
            f"metric objects ({', '.join(parts[0]['objects'])}) forget what they have seen of this epoch: the states "
            f"of {len(parts)} ranks cannot be divided among {trainer.world_size}"
        )
    if not loop.epoch_ended:
        for part in parts[trainer.global_rank :: trainer.world_size]:  # another number of ranks adds them up
            trainer.metrics.load_epoch(part)
    data = ours["train_data"]
    trainer.train_data.loader, trainer.train_data.resumed_requests = None, (data or {}).get("request", [])
    if loop.within_epoch or (data is not None and data.get("over")):
        trainer.train_data.resume_state = data
    by_name = {state["name"] or index: state for index, state in enumerate(ours["optimizers"])}
    for index, slot in enumerate(trainer.plan.slots.values()):
        if (state := by_name.get(slot.name or index)) is not None:
            slot.load_state_dict(state)
            _restore_gradients(trainer, slot, state["gradients"])
    loop.resume()


def _restore_gradients(trainer: Trainer, slot: Any, parts: list[dict[str, torch.Tensor]]) -> None:
    """Give each rank its own pending gradients again; all of them their mean where the number of ranks changed."""
    slot.synchronized = len(parts) != trainer.world_size or trainer.strategy.synchronizes(slot)
    mine = parts if slot.synchronized else [parts[trainer.global_rank]]
    parameters = dict(trainer.lightning_module.named_parameters())
    for name in dict.fromkeys(name for part in mine for name in part):
        gradients = [part[name] for part in mine if name in part]
        gradient = gradients[0] if len(mine) == 1 else torch.stack(gradients).sum(0) / len(mine)
        parameters[name].grad = trainer.strategy.local_gradient(gradient, parameters[name])


# ---- what is configured, beside what a resumed run goes on with ----------------------------------------------------
#
# A checkpoint holds both: what was configured, and what had become of it. Only where the configuration itself has
# changed is there something to tell: a rate that a scheduler or a callback has changed is none of the user's doing.


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The numbers of each parameter group; of a rate that a scheduler changes, the one that it began with."""
    settings = []
    for group in optimizer.param_groups:
        numbers = {name: value for name, value in group.items() if isinstance(value, (int, float, tuple))}
        if "initial_lr" in numbers:
            numbers["lr"] = numbers.pop("initial_lr")
        settings.append(numbers)
    return settings


def _compare_configured(trainer: Trainer, before: list[list[dict[str, Any]]], override: bool) -> None:
    """After the optimizers were restored: warn of configured values that are not taken, or take them.

    Args:
        trainer: Its plan holds what is configured now.
        before: What was configured when the checkpoint was saved; empty in Lightning's files, where what the optimizers
            hold must do.
        override: Take what is configured now.
    """
    for number, (optimizer, configured) in enumerate(zip(trainer.optimizers, trainer.plan.configured, strict=True)):
        if override:
            for group, now in zip(optimizer.param_groups, configured, strict=False):
                _take(group, now)
            continue
        known = before[number] if before else settings_of(optimizer)
        for index, (group, was, now) in enumerate(zip(optimizer.param_groups, known, configured, strict=False)):
            steered = ("momentum", "betas") if not before and "initial_lr" in group else ()
            now = {name: value for name, value in now.items() if name not in steered}
            _warn_of_kept(trainer, optimizer, was, now, f" in parameter group {index}" if index else "")
        trainer.plan.configured[number] = [*known]
    if override:
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            groups = scheduler.optimizer.param_groups  # it keeps the rates that they began with, and the last ones
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group["initial_lr"] for group in groups]
            scheduler._last_lr = [group["lr"] for group in groups]
        rank_zero_info("The optimizers take their configured values, not the checkpoint's (override_optimizer)")


def _take(group: dict[str, Any], configured: dict[str, Any]) -> None:
    """Give a parameter group its configured values; of a rate that a scheduler has changed, as much of the new one."""
    values = dict(configured)
    if "initial_lr" in group and "lr" in values:
        before, group["initial_lr"] = group["initial_lr"], values.pop("lr")
        group["lr"] = group["lr"] * group["initial_lr"] / before if before else group["initial_lr"]
    group.update(values)


def _numbers_of(scheduler: Any) -> dict[str, int | float]:
    """What a scheduler's constructor was given, as far as its state tells: not what it counts."""
    given = inspect.signature(type(scheduler)).parameters.keys() - {"last_epoch"}
    return {name: v for name, v in scheduler.state_dict().items() if name in given and isinstance(v, (int, float))}


def _warn_of_kept(
    trainer: Trainer, owner: object, kept: Mapping[str, Any], configured: Mapping[str, Any], where: str = ""
) -> None:
    """Say which of the values that are configured for an optimizer or scheduler it does not take."""
    is_optimizer = isinstance(owner, Optimizer)
    for name, value in configured.items():
        if kept.get(name, value) != value:
            trainer.plan.not_taken.add("optimizer" if is_optimizer else "scheduler")
            rank_zero_warn(
                f"{type(owner).__name__} goes on with the checkpoint's {name}={kept[name]}{where}; for the configured "
                f"{name}={value} begin a new run (--fresh)"
                + (", or fit(..., override_optimizer=True) (--override-optimizer)" if is_optimizer else "")
            )
