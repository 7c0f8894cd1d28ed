"""The ``loops`` of a checkpoint: Lightning's way of counting, so that either side goes on with it, and what is ours.

Lightning counts how often a thing was ready, started, processed and completed; all of it follows from our few counters.
What a checkpoint keeps beyond Lightning's keys is in `run_state.py`; here is where it stands, and its layout's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from espnet3_lite.exceptions import CheckpointError

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: The key inside ``loops`` under which what is ours alone stands.
OUR_STATE = "espnet3_lite"
#: The layout that is written and read.
LAYOUT = 2


def own_state(checkpoint: Mapping[str, Any], of_weights: bool = False) -> dict[str, Any]:
    """What of a checkpoint is ours; empty in other people's files.

    Args:
        checkpoint: A whole one, or one of weights alone.
        of_weights: Only what is said of the weights is wanted, which is the same in every layout.

    Raises:
        CheckpointError: another version of this package wrote it, in another layout.
    """
    ours = (checkpoint.get("loops") or {}).get(OUR_STATE) or {}
    layout = ours.get("layout", 1) if ours else LAYOUT
    if layout != LAYOUT and not of_weights:
        number = layout if isinstance(layout, int) else type(layout).__name__  # a forged one may have no end
        raise CheckpointError(
            f"the checkpoint keeps its training state in layout {number}; this version of espnet3_lite reads layout "
            f"{LAYOUT}. Resume with the version that wrote it, or load its weights alone with "
            f"LiteModule.load_from_checkpoint"
        )
    return ours


#: What Lightning counts of a batch; of a step the first two.
_BATCH = ("ready", "completed", "started", "processed")


def _counts(names: tuple[str, ...], total: int, current: int, open_batch: int = 0, **more: bool) -> dict[str, Any]:
    """A count over the whole run and its present part, which Lightning keeps under several names.

    `open_batch`: 1 while the last batch's hooks still run; `more`: `is_last_batch`, where Lightning keeps it.
    """
    counts = {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current)}
    for part in counts.values():
        part["completed"] -= open_batch
    return {**counts, **more}


def dump_loops(trainer: Trainer) -> dict[str, Any]:
    """The four entries that Lightning's own resume reads."""
    loop = trainer.fit_loop
    steps, batches, done = loop.global_step, loop.batches_seen, loop.batches_done
    begun = int(bool(done) or loop.epoch_ended)  # 1 while an epoch is under way
    over = int(loop.epoch_ended)  # 1 while the hooks of its end run
    ready, processed = loop.epoch + begun, loop.epoch + over
    epochs = {"ready": ready, "completed": loop.epoch, "started": ready, "processed": processed}
    open_batch = int(bool(done) and loop.batch_is_open)
    if not begun and loop.epoch and trainer.num_training_batches != math.inf:
        done = int(trainer.num_training_batches)  # between two epochs Lightning keeps the last one's count
    # Under ESPnet3 several optimizers step in manual optimization, where Lightning counts each step.
    named, manual_steps = has_named_optimizers(trainer), 0
    if named or not trainer.plan.automatic_optimization:
        manual_steps, steps = sum(slot.update_step for slot in trainer.plan.slots.values()) if named else steps, 0
    stepped = steps, min(-(-done // trainer.accumulate_grad_batches), steps)  # the last batch closes a window
    counts = (count for count in trainer.num_val_batches if trainer.validation_ran and count != math.inf)
    validated = int(sum(counts))  # a validation is over, or has not begun
    fit_loop = {
        # A training loader's own state, where it has one, and Lightning looks for it: it skips no data by itself.
        "state_dict": {} if (state := trainer.train_data.in_use.state_dict()) is None else {"combined_loader": [state]},
        "epoch_loop.state_dict": {"_batches_that_stepped": loop.batches_stepped},
        "epoch_loop.batch_progress": _counts(_BATCH, batches, done, open_batch, is_last_batch=loop.is_last_batch),
        "epoch_loop.scheduler_progress": _counts(_BATCH[:2], *stepped),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": _counts(_BATCH[:2], *stepped), "zero_grad": _counts(_BATCH[:3], *stepped)}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _counts(_BATCH[:2], manual_steps, manual_steps),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": _counts(_BATCH, validated, validated, is_last_batch=bool(validated)),
        "epoch_progress": {"total": dict(epochs), "current": dict(epochs)},
    }
    zeros = _counts(_BATCH, 0, 0)  # one object, wherever it stands: it is written once
    predict = {"state_dict": {}, "batch_progress": zeros}
    idle = {"state_dict": {}, "batch_progress": {**zeros, "is_last_batch": False}}
    return {"fit_loop": fit_loop, "validate_loop": idle, "test_loop": idle, "predict_loop": predict}


def has_named_optimizers(trainer: Trainer) -> bool:
    """True where the configuration's `optimizers` names them, as opposed to a module that steps several by hand."""
    return trainer.plan.automatic_optimization and bool(trainer.plan.slots) and None not in trainer.plan.slots


def restore_loops(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Go on where a file that Lightning wrote stands: epoch, batch, steps, named optimizers, the loader's own state.

    The epoch goes on with the batch after those that the file counts, in the data too (Lightning begins the data anew,
    unless the loader itself can resume). What an epoch's end still lacks is done: the validation, if the file was
    saved with the last batch, and the hooks. Random numbers and the epoch's means are not in Lightning's files.
    """
    loop = trainer.fit_loop
    fit = checkpoint["loops"]["fit_loop"]
    epochs = fit["epoch_progress"]["current"]
    batches, validation = fit["epoch_loop.batch_progress"], fit["epoch_loop.val_loop.batch_progress"]["total"]
    current = batches["current"]
    within_epoch = epochs["started"] > epochs["processed"]
    batches_done = int(current["processed"]) if within_epoch else 0
    stage = "not begun"
    if batches_done:
        hooks_are_over = current["completed"] == current["processed"]
        is_over = hooks_are_over and validation["completed"] == validation["ready"]
        stage = "batch open" if not is_over else "batches over" if batches["is_last_batch"] else "batches"
    loop.load_state_dict({
        **loop.state_dict(), "epoch": epochs["processed"], "global_step": checkpoint["global_step"],
        "batches_seen": batches["total"]["processed"], "batches_done": batches_done,
        "is_last_batch": batches["is_last_batch"], "stage": stage,
    })  # fmt: skip
    if has_named_optimizers(trainer):
        trainer.lightning_module.restore_named_optimizers(checkpoint)  # Lightning knows none, and counts none
    # On the loggers' axis a batch counts only after its validation, as in Lightning.
    loop.batches_stepped = loop.global_step if trainer.plan.automatic_optimization else loop.batches_seen
    loop.uncounted = int(loop.within_epoch)
    loop.batches_stepped -= loop.uncounted
    states = fit.get("state_dict", {}).get("combined_loader")
    if loop.within_epoch and states:
        trainer.train_data.resume_state = {"loader": [states[0]]}  # all that Lightning's file has of the data
