"""What the steps of an epoch have logged, and its means so far: of lines and bars.

Nothing is read from a device until somebody wants the means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from espnet3_lite.metrics.collector import Metrics
    from espnet3_lite.metrics.logged_value import Number

#: Batches whose values wait on the device before they are added up there.
_MAX_WAITING = 100


class StepValues:
    """What training steps have logged since it was last asked: also what other hooks logged after that."""

    def __init__(self) -> None:
        self._batch: list[Any] = []  # `Metrics.touched` of the batch in which it was asked
        self._known = 0  # so many of them it has given

    def __reduce__(self) -> tuple[type[StepValues], tuple[()]]:
        """A copy has been asked nothing."""
        return type(self), ()

    def anew(self, metrics: Metrics) -> dict[str, Number]:
        """By name, the last value of each; as it is kept: to publish it takes longer than to log it."""
        touched = metrics.touched
        rows = touched if touched is not self._batch else []
        if len(self._batch) > self._known:
            rows = [*self._batch[self._known :], *rows]
        self._batch, self._known = touched, len(touched)
        values: dict[str, Number] = {}
        for row in rows:
            entry = row[0]
            if entry.on_step and entry.last is not None:
                values[entry.name] = values[entry.step_name] = entry.last
        return values


class RunningMeans:
    """Means of numbers and of ``()`` tensors by name, each over as many values as it got.

    Tensors wait where they are, are added up on their device in float64, and are read once, for `means`.

    Args:
        left_out: What names may begin with, and are known without.

    Example:
        >>> means = RunningMeans()
        >>> means.take([("loss", torch.tensor(1.0)), ("loss", torch.tensor(2.0)), ("rate", 0.5)])
        >>> means.means()
        {'loss': 1.5, 'rate': 0.5}
    """

    def __init__(self, left_out: str = "") -> None:
        self._left_out = left_out
        self._waiting: list[Sequence[tuple[str, Any]]] = []
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def take(self, values: Sequence[tuple[str, Any]]) -> None:
        """Take a batch's values, each with its name; a list's values have their positions in their names."""
        self._waiting.append(values)
        if len(self._waiting) >= _MAX_WAITING:
            self._add_up()

    def _add_up(self) -> None:
        """Of many batches at once: in a loop of its own this takes a third of the time that it takes between steps."""
        waiting: defaultdict[str, list[Any]] = defaultdict(list)
        for name, value in chain.from_iterable(self._waiting):
            if type(value) is list:
                for position, one in enumerate(value):
                    waiting[f"{name}{position}"].append(one)
            else:
                waiting[name].append(value)
        self._waiting.clear()
        for full_name, values in waiting.items():
            name = full_name.removeprefix(self._left_out)
            total: torch.Tensor | float
            if isinstance(values[0], torch.Tensor):
                device = values[0].device
                stacked = torch.stack([torch.as_tensor(value, device=device) for value in values]).detach()
                total = stacked.sum(
                    dtype=torch.float32 if device.type == "mps" else torch.float64
                )  # MPS has no float64
            else:
                total = float(sum(map(float, values)))
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + len(values)

    def _read(self) -> dict[str, float]:
        """All sums as numbers: one read from each device."""
        self._add_up()
        tensors: dict[torch.device, list[str]] = {}
        for name, total in self._sums.items():
            if isinstance(total, torch.Tensor):
                tensors.setdefault(total.device, []).append(name)
        for names in tensors.values():
            numbers = torch.stack([self._sums[name] for name in names]).tolist()  # the one sync point
            self._sums.update(zip(names, numbers, strict=True))
        return self._sums

    def merge(self, other: RunningMeans) -> None:
        """Take all values of another."""
        for name, total in other._read().items():
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + other._counts[name]

    def means(self) -> dict[str, float]:
        """The mean of each name's values."""
        return {name: total / self._counts[name] for name, total in self._read().items()}

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, as plain numbers."""
        return {"sums": dict(self._read()), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._waiting.clear()
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
