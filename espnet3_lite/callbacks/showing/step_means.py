"""What the steps of an epoch have logged, and its means so far: of lines and bars.

Nothing is read from a device until somebody wants the means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from espnet3_lite.metrics.collector import Metrics, Touched
    from espnet3_lite.metrics.logged_value import Number

#: Batches whose values wait on the device before they are added up there.
_MAX_WAITING = 100


class StepValues:
    """What training steps have logged, batch by batch: noted with each, and looked at for many batches at once.

    In a loop of its own a look takes a fifth of the time that it takes between two calls of torch.
    """

    def __init__(self) -> None:
        #: `Metrics.touched` of each batch that was noted, and how many values there were in it.
        self._noted: list[tuple[list[Touched], int]] = []
        #: The batch that `anew` gave last.
        self._before: tuple[list[Touched], int] = [], 0

    def __reduce__(self) -> tuple[type[StepValues], tuple[()]]:
        """A copy has noted nothing."""
        return type(self), ()

    def note(self, metrics: Metrics) -> bool:
        """A batch is over.

        Returns:
            Whether `anew` is to be called: many wait, or some have graphs, which must not pile up.
        """
        touched = metrics.touched
        self._noted.append((touched, len(touched)))
        return len(self._noted) >= _MAX_WAITING or metrics.holds_graphs

    def anew(self) -> list[dict[str, Number]]:
        """Of each batch noted since the last call, by name, its last values; as they are kept, and not published.

        What a batch's last hooks logged after it was noted is the next one's.
        """
        found = []
        for batch, known in self._noted:
            before, given = self._before
            values: dict[str, Number] = {}
            for entry, value, _ in chain(before[given:], batch[given if batch is before else 0 : known]):
                if entry.on_step and value is not None:
                    values[entry.name] = values[entry.step_name] = value
            self._before = batch, known
            found.append(values)
        self._noted.clear()
        return found


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
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def take(self, values: Iterable[tuple[str, Any]]) -> None:
        """Take the values of many batches, each with its name; a list's values have their positions in their names."""
        by_name: defaultdict[str, list[Any]] = defaultdict(list)
        for name, value in values:
            if type(value) is list:
                for position, one in enumerate(value):
                    by_name[f"{name}{position}"].append(one)
            else:
                by_name[name].append(value)
        for full_name, taken in by_name.items():
            name = full_name.removeprefix(self._left_out)
            total: torch.Tensor | float
            if isinstance(taken[0], torch.Tensor):
                device = taken[0].device
                stacked = torch.stack([torch.as_tensor(value, device=device) for value in taken]).detach()
                total = stacked.sum(
                    dtype=torch.float32 if device.type == "mps" else torch.float64
                )  # MPS has no float64
            else:
                total = float(sum(map(float, taken)))
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + len(taken)

    def _read(self) -> dict[str, float]:
        """All sums as numbers: one read from each device."""
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
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
