"""An epoch's sums over all ranks: one exchange at its end."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.metrics.logged_value import Key, LogArguments, LoggedValue
from espnet3_lite.metrics.metric_objects import place_of_metric

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def reduce_over_ranks(entries: dict[Key, LoggedValue], trainer: Trainer) -> None:
    """Replace each entry's sum and weight by those over all ranks. All ranks reach this, at an epoch's end.

    The ranks may have logged different names (one had no batch, say): each tells what it has, and learns the others'.
    A metric that computes its value itself exchanges it between the ranks then, and so must be there on all of them.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    mine: dict[Key, tuple[float, float, LogArguments, bool, str | None]] = {}
    for key, entry in entries.items():
        if not entry.on_epoch or entry.arguments.rank_zero_only:
            continue
        if entry.metric is not None and entry.weight:
            mine[key] = (0.0, 0.0, entry.arguments, entry.on_step, place_of_metric(module, entry.metric))
        elif entry.total is not None:
            mine[key] = (float(entry.total), float(entry.weight), entry.arguments, entry.on_step, None)
    parts = strategy.gather_objects(mine)  # collective: all ranks
    for key in dict.fromkeys(key for part in parts for key in part):
        found = [part[key] for part in parts if key in part]
        _, _, arguments, on_step, place = found[0]
        hook, name, _ = key
        if place == "" and len(found) < len(parts):
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` was given a metric object in `{hook}` on {len(found)} of {len(parts)} "
                f"ranks, and the others do not find it. Make it an attribute of the module: all ranks compute together"
            )
        suffix = trainer.metrics.loader_suffix
        known = entries.pop(key) if key in entries else None
        # In the order in which all ranks compute.
        entries[key] = entry = known or LoggedValue(name, hook, arguments, on_step, True, suffix)
        if place is not None:
            entry.take_metric(operator.attrgetter(place)(module) if entry.metric is None else entry.metric)
            continue
        totals = torch.tensor([total for total, *_ in found], dtype=torch.float64)
        entry.total = getattr(totals, entry.reduce if entry.reduce in ("min", "max") else "sum")().to(strategy.device)
        entry.weight = sum(weight for _, weight, *_ in found)
