"""What a checkpoint keeps beyond Lightning's keys: where it stands in the file, and the number of its layout.

What it holds, and how a run goes on from it, is in `run_state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espnet3_lite.exceptions import CheckpointError

#: The key inside ``loops`` under which what is ours alone stands.
OUR_STATE = "espnet3_lite"
#: The layout that is written. Layout 1, which had no number, kept flags where 2 has the ``stage``.
LAYOUT = 2


def own_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint is ours, in the present layout, whichever it was written in; empty in other people's files.

    Raises:
        CheckpointError: a later version of this package wrote it.
    """
    ours = dict((checkpoint.get("loops") or {}).get(OUR_STATE) or {})
    layout = ours.get("layout", 1)
    if layout not in (1, LAYOUT):
        number = layout if isinstance(layout, int) else type(layout).__name__  # a forged one may have no end
        raise CheckpointError(
            f"the checkpoint keeps its training state in layout {number}; this version of espnet3_lite reads layouts "
            f"1 to {LAYOUT}. Resume with the version that wrote it, or load its weights alone with "
            f"LiteModule.load_from_checkpoint"
        )
    if layout == 1 and "batches_done" in ours:  # a file with weights alone has no counters
        ours["stage"] = _stage_of_layout_1(ours)
        ours.setdefault("gradient_failed", False)
        ours["train_data"] = _position_of_layout_1(ours["train_data"])
    return ours


def _stage_of_layout_1(ours: Mapping[str, Any]) -> str:
    if ours["epoch_ended"]:
        return "schedulers due" if ours["schedulers_due"] else "end hooks"
    if not ours["epoch_begun"]:
        return "not begun"
    if ours["batches_done"] and not ours["validated"]:
        return "batch open"
    return "batches over" if ours["is_last_batch"] else "batches"


def _position_of_layout_1(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """One random state, that of rank zero, and one generator: the loader's or its sampler's."""
    if data is None or "generator" not in data:
        return data
    generator = data["generator"]
    names = () if generator is None else ("loader.generator", "sampler.generator")
    return {**data, "random": [data["random"]], "generators": dict.fromkeys(names, generator), "ahead": [None]}
