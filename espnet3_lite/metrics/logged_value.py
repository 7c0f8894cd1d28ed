"""One logged name: its arguments, its last value, its sum over an epoch, here and over all ranks.

Who logs and who reads is `collector.py`'s.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.metrics.metric_objects import place_of_metric

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

#: What tells one logged value from another: the hook, the name, the loader's index.
Key: TypeAlias = tuple[str, str, int | None]

#: A value as it is kept: a tensor ``()`` on another device than the CPU, which is not read, or one with a graph; else
#: a plain number, which costs a twentieth to take and to add up.
Number: TypeAlias = float | torch.Tensor

#: What a sum, minimum or maximum begins with.
STARTS = {"mean": 0.0, "sum": 0.0, "min": math.inf, "max": -math.inf}


class LogArguments(NamedTuple):
    """What `log` was called with, but name, value and weight; see `LiteModule.log` and `normalized`."""

    prog_bar: bool
    logger: bool
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: Any
    enable_graph: bool
    sync_dist: bool
    add_dataloader_idx: bool
    rank_zero_only: bool


class LoggedValue:
    """One name logged in one hook: its arguments, its last value, and its sum over the epoch."""

    def __init__(self, name: str, hook: str, arguments: LogArguments, loader_suffix: str = ""):
        self.hook, self.arguments = hook, arguments
        self.on_step, self.on_epoch = bool(arguments.on_step), bool(arguments.on_epoch)
        #: The arguments as they were given, in whose place others may say the same.
        self.given: tuple[Any, ...] = arguments
        self.reduce: str = arguments.reduce_fx
        suffix = loader_suffix if arguments.add_dataloader_idx else ""
        forked = self.on_step and self.on_epoch
        self.name = name + suffix
        self.step_name = f"{name}_step{suffix}" if forked else self.name
        self.epoch_name = f"{name}_epoch{suffix}" if forked else self.name
        self.metric: Any = None
        #: That of the last value.
        self.dtype = torch.get_default_dtype()
        #: How often it was logged: tells whether it was logged anew.
        self.times = 0
        #: The same, with those that were taken back: no two values have one number.
        self.times_ever = 0
        #: How often of these somebody has been told; where it differs, `last` has not been published.
        self.times_published = 0
        self.reset()

    def reset(self) -> None:
        """Forget the epoch; an object that computed its value forgets it too."""
        self.begin_anew()
        if self.metric is not None:
            self.metric.reset()

    def begin_anew(self) -> None:
        """Its value was published. What an object has computed can still be looked at."""
        self.last: Number | None = None
        self.total: Number | None = None
        self.weight: Any = 0
        self.times_published = self.times

    def update(self, value: Number, weight: Number, dtype: torch.dtype) -> None:
        """Take one batch's value with its weight in a mean; 0: it has no say there.

        Args:
            value: See `as_number`.
            weight: A number, or a tensor ``()``.
            dtype: The value's.
        """
        self.dtype = dtype
        self.times = self.times_ever = self.times_ever + 1
        if self.on_step:
            self.last = value
        if not self.on_epoch:
            return
        total = STARTS[self.reduce] if self.total is None else self.total
        if isinstance(value, torch.Tensor):
            value = value.cpu() if value.is_mps else value
            if not isinstance(total, torch.Tensor):
                total = torch.full((), total, dtype=torch.float64, device=value.device)
        if self.reduce != "mean":
            self.total = self.combined(total, value)
        elif isinstance(weight, torch.Tensor) and not weight.is_cpu:  # it is not read
            weight = wide(weight.detach()).reshape(())
            self.total = total + torch.where(weight == 0, 0.0, wide(value) * weight)
        else:
            weight = weight.item() if isinstance(weight, torch.Tensor) else weight
            if not weight:
                self.total = total
            elif isinstance(value, torch.Tensor) and isinstance(total, torch.Tensor):  # in float64, which `total` is
                self.total = torch.add(total, value, alpha=float(weight))
            else:
                self.total = total + value * weight
        self.weight = self.weight + weight

    def leave_out(self, finite: torch.Tensor, total: Number | None, weight: Any) -> None:
        """Go back to an earlier total and weight unless `finite`, ``()`` bool, which is not read here."""
        finite = finite.cpu() if finite.is_mps else finite  # as `wide` does
        if self.total is not None and self.on_epoch:
            before = wide(STARTS[self.reduce] if total is None else total)
            self.total = torch.where(finite, wide(self.total), before)
            if self.reduce == "mean":
                self.weight = torch.where(finite, torch.as_tensor(self.weight), torch.as_tensor(weight))

    def row(self, module: torch.nn.Module) -> dict[str, Any]:
        """What another rank, or a run that goes on, needs to know of the epoch so far; read from the device here."""
        return {
            "arguments": list(self.arguments), "on_step": self.on_step, "on_epoch": self.on_epoch,
            "total": None if self.total is None else float(self.total), "weight": float(self.weight),
            "metric": None if self.metric is None else place_of_metric(module, self.metric),
        }  # fmt: skip

    @classmethod
    def of_row(cls, key: Key, row: dict[str, Any], loader_suffix: str = "") -> LoggedValue:
        """One that has logged nothing yet, for `add`."""
        arguments = LogArguments(*row["arguments"])._replace(on_step=row["on_step"], on_epoch=row["on_epoch"])
        return cls(key[1], key[0], arguments, loader_suffix)

    def add(self, row: dict[str, Any], module: torch.nn.Module) -> None:
        """Add what `row` gave to what is here."""
        if row.get("metric") is not None:
            self.take_metric(operator.attrgetter(row["metric"])(module) if self.metric is None else self.metric)
        elif row["total"] is not None:
            total = float(row["total"])  # a tensor in files of earlier versions
            self.total = total if self.total is None else self.combined(self.total, total)
            self.weight = self.weight + row["weight"]

    def take_metric(self, metric: Any) -> None:
        """Take an object that computes the epoch's value itself."""
        self.metric, self.last = metric, getattr(metric, "_forward_cache", None)
        self.weight = 1  # it has a value until it is reset
        self.times = self.times_ever = self.times_ever + 1

    def combined(self, first: Number, second: Number) -> Number:
        """Two sums (minima, maxima) as one."""
        if self.reduce in ("mean", "sum"):
            return first + second
        # Unlike Python's own, torch's functions keep a NaN.
        return getattr(torch, f"{self.reduce}imum")(wide(first), wide(second))

    def as_tensor(self, number: Number) -> torch.Tensor:
        """A value as users get it, ``()``."""
        # `torch.tensor` takes three times as long.
        return number if isinstance(number, torch.Tensor) else torch.scalar_tensor(number, dtype=self.dtype)

    def epoch_value(self) -> torch.Tensor | None:
        """The epoch's mean (sum, minimum, maximum) so far on this rank, ``()``, in the logged values' dtype."""
        if self.metric is not None:
            return one_number(self.name, self.metric, self.metric.compute()) if self.weight else None
        if self.total is None:
            return None
        value = wide(self.total) / self.weight if self.reduce == "mean" else wide(self.total)
        return value.to(torch.promote_types(torch.get_default_dtype(), self.dtype))


def reduce_over_ranks(entries: dict[Key, LoggedValue], trainer: Trainer) -> None:
    """Replace each entry's sum and weight by those over all ranks. All ranks reach this, at an epoch's end.

    The ranks may have logged different names (one had no batch, say): each tells what it has, and learns the others'.
    A metric that computes its value itself exchanges it between the ranks then, and so must be there on all of them.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    mine = {}
    for key, entry in entries.items():
        has_value = entry.total is not None if entry.metric is None else entry.weight
        if has_value and entry.on_epoch and not entry.arguments.rank_zero_only:
            mine[key] = entry.row(module)
            entry.total, entry.weight = None, 0
    parts = strategy.gather_objects(mine)  # collective: all ranks
    for key in dict.fromkeys(key for part in parts for key in part):
        rows = [part[key] for part in parts if key in part]
        if rows[0]["metric"] == "" and len(rows) < len(parts):
            raise MisconfigurationException(
                f"`self.log({key[1]!r}, ...)` was given a metric object in `{key[0]}` on {len(rows)} of {len(parts)} "
                f"ranks, and the others do not find it. Make it an attribute of the module: all ranks compute together"
            )
        known = entries.pop(key) if key in entries else None  # to stand in the order in which all ranks compute
        entries[key] = entry = known or LoggedValue.of_row(key, rows[0], trainer.metrics.loader_suffix)
        for row in rows if rows[0]["metric"] is None else rows[:1]:
            entry.add(row, module)
        if entry.total is not None:
            entry.total = wide(entry.total).to(strategy.root_device)


def one_number(name: str, metric: Any, value: Any) -> Any:
    """What a metric object computed, if it is one number.

    Raises:
        ValueError: it is a collection, or a vector.
    """
    if isinstance(value, Mapping):
        found = f"several values, {list(value)}; log the collection with `self.log_dict`"
    elif isinstance(value, torch.Tensor) and value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}; a logged value is one number, such as its mean()"
    else:
        return value
    raise ValueError(f"`self.log({name!r}, ...)`: {type(metric).__name__}.compute() gave {found}")


def as_number(name: str, value: Any, enable_graph: bool, own: bool = True) -> tuple[Number, torch.dtype]:
    """A logged value as it is kept, and its dtype.

    Integers become float64, which holds them to the last digit (up to 2**53); halves become float32.

    Args:
        name: For messages.
        value: A number, or a tensor with one element.
        enable_graph: Keep its graph.
        own: What the user does with theirs afterwards changes nothing in it.

    Raises:
        ValueError: it is not one real number.
    """
    if not isinstance(value, torch.Tensor):
        if type(value) is float:
            return value, torch.get_default_dtype()
        if not hasattr(value, "__float__") or getattr(value, "size", 1) != 1:  # NumPy's arrays have a size
            raise ValueError(
                f"`self.log({name!r}, {value!r})` was called, but {type(value).__name__} values cannot be logged; "
                f"log a number or a tensor with a single element"
            )
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        number = value.item() if hasattr(value, "item") else value
        return float(number), torch.float64 if whole else torch.get_default_dtype()
    if value.numel() != 1:
        raise ValueError(
            f"`self.log({name!r}, value)` was called with a tensor of shape {tuple(value.shape)}, but the tensor must "
            f"have a single element. You can try doing `self.log({name!r}, value.mean())`"
        )
    dtype = value.dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        if value.is_complex():
            raise ValueError(f"`self.log({name!r}, ...)` with {dtype}: log a real number, such as its abs() or real")
        whole = not value.is_floating_point() and dtype != torch.bool and not value.is_mps
        dtype = torch.float64 if whole else torch.get_default_dtype()
    if value.is_cpu and not enable_graph:
        return float(value.item()), dtype
    if not enable_graph:
        value = value.detach().clone() if own else value.detach()
    return (value.reshape(()) if value.dim() else value).to(dtype), dtype


def check_weight(name: str, weight: Any) -> None:
    """Refuse a `batch_size` that is no weight. What lies on another device than the CPU is not read.

    Raises:
        ValueError: it is not one number, or below 0, or not finite.
    """
    is_tensor = isinstance(weight, torch.Tensor)
    single = weight.numel() == 1 if is_tensor else hasattr(weight, "__float__")
    elsewhere = is_tensor and not weight.is_cpu
    if not single or not (elsewhere or 0 <= float(weight) < math.inf):
        raise ValueError(
            f"`self.log({name!r}, ..., batch_size={weight!r})`: it is the value's weight in the epoch's mean, and must "
            f"be one finite number, at least 0"
        )


def wide(number: Number) -> torch.Tensor:
    """A number in the type in which it is summed: float64 or int64; on the CPU where the device knows no float64.

    A mean over a million batches stays right in its last shown digit, and a count in a narrow type does not overflow.
    """
    if not isinstance(number, torch.Tensor):
        return torch.tensor(number, dtype=torch.float64)
    number = number.cpu() if number.is_mps else number
    return number.to(torch.float64 if number.is_floating_point() else torch.int64)


def normalized(name: str, given: tuple[Any, ...], on_step: bool, on_epoch: bool) -> LogArguments:
    """Arguments of `log` with `reduce_fx` as ``mean``, ``sum``, ``min`` or ``max``, which a function may be named too.

    `on_step` and `on_epoch` are the hook's, for those that were not given.

    Raises:
        MisconfigurationException: it is something else.
    """
    arguments = LogArguments(*given)
    reduce = arguments.reduce_fx
    how = reduce.lower() if isinstance(reduce, str) else getattr(reduce, "__name__", str(reduce))
    how = {"avg": "mean", "amin": "min", "amax": "max"}.get(how, how)
    if how not in STARTS:
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., reduce_fx={reduce!r})`: only {{min,max,mean,sum}} are supported"
        )
    on_step = on_step if arguments.on_step is None else bool(arguments.on_step)
    on_epoch = on_epoch if arguments.on_epoch is None else bool(arguments.on_epoch)
    return arguments._replace(reduce_fx=how, on_step=on_step, on_epoch=on_epoch)
