"""Named optimizers' counters as ESPnet3 keeps them in a checkpoint, and what of ours follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: Where ESPnet3 looks for them.
RUNTIME_STATE = "espnet3_optimizer_runtime_state"


def dump_counters(trainer: Trainer) -> dict[str, dict[str, int]]:
    """Of each named optimizer, as ESPnet3 has them."""
    return {
        str(name): {"accum_counter": slot.pending, "update_step": slot.update_step}
        for name, slot in trainer.plan.slots.items()
    }


def restore_counters(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Named optimizers' counters, and our `global_step`: ESPnet3 counts the updates of all of them.

    A window that is open stays so, with its count: ESPnet3 saves no gradients, and its next update, like ours, has
    those of the window's remaining passes alone.

    Raises:
        MisconfigurationException: the file names other optimizers.
    """
    loop, slots, counters = trainer.fit_loop, trainer.plan.slots, checkpoint.get(RUNTIME_STATE) or {}
    if set(counters) != set(slots):
        raise MisconfigurationException(
            f"the checkpoint has counters of the optimizers {sorted(counters)}, this run has {sorted(slots)}; resume "
            f"with the configuration that wrote it"
        )
    for name, slot in slots.items():
        slot.load_state_dict({"update_step": counters[name]["update_step"], "pending": counters[name]["accum_counter"]})
        if slot.pending:
            rank_zero_warn(
                f"optimizers.{name}: the checkpoint was saved after {slot.pending} of the {slot.window} backward "
                f"passes of an update, and does not hold their gradients (ESPnet3 saves none): this update lacks them"
            )
    loop.global_step = batches_that_stepped(
        loop.batches_seen, [(slot.window, slot.update_step, slot.pending) for slot in slots.values()]
    )


def batches_that_stepped(batches: int, optimizers: list[tuple[int, int, int]]) -> int:
    """In how many batches at least one named optimizer stepped, from each one's count of updates.

    Exact where each batch trains all of them, and where each trains one; else, which no count can tell, the most that
    is possible.

    Args:
        batches: Training batches so far.
        optimizers: Of each: its window, its updates, the passes in its open window.

    >>> batches_that_stepped(6, [(1, 6, 0), (1, 6, 0)])  # both in each batch
    6
    >>> batches_that_stepped(6, [(2, 3, 0), (3, 2, 0)])  # both in each batch; steps in batches 2, 3, 4 and 6
    4
    >>> batches_that_stepped(8, [(2, 2, 0), (2, 2, 0)])  # taking turns
    4
    """
    updates = [update_step for _, update_step, _ in optimizers]
    if all(window * steps + pending == batches for window, steps, pending in optimizers):
        windows = {window for window, _, _ in optimizers}
        return batches if 1 in windows else sum(any(n % w == 0 for w in windows) for n in range(1, batches + 1))
    return min(sum(updates), batches)
