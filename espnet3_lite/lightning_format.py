"""Lightning's way of counting, written and read: the ``loops`` of a checkpoint, so that either side goes on with it.

Lightning counts how often a thing was ready, started, processed and completed; all of it follows from our few counters.
"""

from __future__ import annotations

from typing import Any

from espnet3_lite.exceptions import MisconfigurationException


def _progress(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "completed": completed, "started": started, "processed": processed}


def _two(ready: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "completed": completed}


def _batch_progress(total: int, current: int, is_last: bool | None, open_batch: int = 0) -> dict[str, Any]:
    """`open_batch`: 1 while the hooks of the last batch still run."""
    progress = {
        "total": _progress(total, total, total, total - open_batch),
        "current": _progress(current, current, current, current - open_batch),
    }
    return progress if is_last is None else {**progress, "is_last_batch": is_last}


def dump_loops(trainer: Any) -> dict[str, Any]:
    """The four entries that Lightning's own resume reads."""
    loop = trainer.fit_loop
    steps, batches, done = loop.global_step, loop.batches_seen, loop.batches_done
    begun = 1 if done or loop.epoch_ended else 0  # an epoch is in work
    over = 1 if loop.epoch_ended else 0  # its hooks are running
    epochs = {"ready": loop.epoch + begun, "completed": loop.epoch, "started": loop.epoch + begun}
    epochs["processed"] = loop.epoch + over
    open_batch = 1 if done and not loop.validated and not over else 0
    manual = not trainer.automatic_optimization
    automatic_steps = 0 if manual else steps
    steps_here = min(done, automatic_steps)
    val_batches = sum(count for count in trainer.num_val_batches if count != float("inf"))
    fit_loop = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": loop.batches_stepped},
        "epoch_loop.batch_progress": _batch_progress(batches, done, loop.is_last_batch, open_batch),
        "epoch_loop.scheduler_progress": {"total": _two(steps, steps), "current": _two(steps_here, steps_here)},
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": {
                    "total": _two(automatic_steps, automatic_steps),
                    "current": _two(steps_here, steps_here),
                },
                "zero_grad": {
                    "total": {"ready": automatic_steps, "completed": automatic_steps, "started": automatic_steps},
                    "current": {"ready": steps_here, "completed": steps_here, "started": steps_here},
                },
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": {
            "total": _two(steps if manual else 0, steps if manual else 0),
            "current": _two(0, 0),
        },
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": _batch_progress(val_batches, val_batches, True),
        "epoch_progress": {"total": dict(epochs), "current": dict(epochs)},
    }
    idle = {"state_dict": {}, "batch_progress": _batch_progress(0, 0, False)}
    predict = {"state_dict": {}, "batch_progress": _batch_progress(0, 0, None)}
    return {"fit_loop": fit_loop, "validate_loop": idle, "test_loop": dict(idle), "predict_loop": predict}


def restore_optimizers(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Load optimizers and schedulers; the schedulers of named optimizers by name where the checkpoint knows it.

    Raises:
        MisconfigurationException: their numbers differ.
    """
    states = checkpoint["optimizer_states"]
    if len(states) != len(trainer.optimizers):
        raise MisconfigurationException(
            f"the checkpoint holds {len(states)} optimizers, this run has {len(trainer.optimizers)}; resume with the "
            f"configuration that wrote it"
        )
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        trainer.strategy.load_optimizer_state_dict(trainer.lightning_module, optimizer, state)
    schedulers = checkpoint["lr_schedulers"]
    configs = list(trainer.lr_scheduler_configs)
    if len(schedulers) != len(configs):
        raise MisconfigurationException(
            f"the checkpoint holds {len(schedulers)} schedulers, this run has {len(configs)}; resume with the "
            f"configuration that wrote it"
        )
    names = checkpoint.get("loops", {}).get("espnet3_lite", {}).get("scheduler_names")
    if names and len(set(names)) == len(names):  # written by us: each belongs to its optimizer by name
        by_name = {config.slot.name if config.slot else None: config for config in configs}
        configs = [by_name[name] for name in names]
    for config, state in zip(configs, schedulers, strict=True):
        config.scheduler.load_state_dict(state)


def restore_loops(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Read the counters of a file that Lightning wrote.

    Lightning's ``global_step`` counts optimizer steps. One step a batch with one optimizer; ESPnet3's several named
    optimizers step by themselves, and each step counts: then the batches that stepped are the closest to our count.
    """
    loop = trainer.fit_loop
    fit = checkpoint["loops"]["fit_loop"]
    epochs = fit["epoch_progress"]["current"]
    batches = fit["epoch_loop.batch_progress"]
    total, current = batches["total"], batches["current"]
    loop.batches_seen = int(total["processed"])
    loop.global_step = int(checkpoint["global_step"])
    if len(trainer.slots) > 1:
        loop.global_step = loop.batches_seen
    loop.epoch = int(epochs["processed"])
    over = epochs["processed"] > epochs["completed"] or epochs["ready"] == epochs["processed"]
    loop.is_last_batch = bool(batches["is_last_batch"])
    loop.batches_done = 0 if over else int(current["processed"])
    if loop.is_last_batch and not over and epochs["started"] > epochs["processed"]:
        # saved within the last batch's validation: the epoch's end is still to come
        loop.validated = True
    stepped = int(fit["epoch_loop.state_dict"].get("_batches_that_stepped", loop.global_step))
    loop.batches_stepped = max(stepped, loop.global_step if len(trainer.slots) == 1 else stepped)
    loop.resumed_within_epoch = loop.batches_done > 0
    loop.validated = loop.validated or current["completed"] == current["processed"]
