"""What the module is made of, printed before training: `ModelSummary`, `RichModelSummary` and `summarize`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.loaders.transfer import map_tensors

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


_UNITS = ("", "K", "M", "B", "T")


class ModelSummary(Callback):
    """Prints the layers, their types, numbers of parameters and modes on stdout, on rank zero, as a fit begins.

    Where the module has an `example_input_array`, it is run through `forward` and the shapes that go in and out of each
    layer are shown too.

    Args:
        max_depth: How deep to look into nested layers; -1: all the way; 0: print nothing. Default 1.

    Raises:
        ValueError: a `max_depth` below -1.

    Example:
        >>> from espnet3_lite import Trainer
        >>> trainer = Trainer(max_epochs=1, callbacks=ModelSummary(max_depth=-1), logger=False, accelerator="cpu")
    """

    def __init__(self, max_depth: int = 1):
        _check_depth(max_depth)
        self._max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Print it."""
        if self._max_depth != 0:
            summary = summarize(pl_module, self._max_depth)  # all ranks: a sharded module's forward is collective
            if trainer.is_global_zero:
                self.show(trainer, summary)

    def show(self, trainer: Trainer, summary: Summary) -> None:
        """Print `summary`; override it to show it in another way. Rank zero of `trainer` only."""
        trainer.print(summary)


class RichModelSummary(ModelSummary):
    """As `ModelSummary`, drawn with rich (extra ``rich``); where rich is not installed the plain table is printed.

    Args:
        max_depth: As in `ModelSummary`.

    Example:
        >>> RichModelSummary(max_depth=2).state_key
        'RichModelSummary'
    """

    def show(self, trainer: Trainer, summary: Summary) -> None:
        """Print `summary` as a rich table. Rank zero of `trainer` only."""
        if importlib.util.find_spec("rich") is None:
            super().show(trainer, summary)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(header_style="bold magenta")
        for title in summary.columns:
            table.add_column(title, justify="right" if title == "Params" else "left", no_wrap=title == "Name")
        for row in summary.rows():
            table.add_row(*row)
        console = Console()
        console.print(table)
        for title, value in summary.totals().items():
            console.print(f"[bold]{title}[/]: {value}")


class Summary:
    """The layers of a module and their totals; ``str`` of it is the table.

    Args:
        module: What to summarise.
        max_depth: As in `ModelSummary`.

    Attributes:
        layers: Name to layer, in the module's order.
        in_sizes, out_sizes: Shapes a layer, ``"?"`` where the example did not pass it; empty without an example.
    """

    def __init__(self, module: nn.Module, max_depth: int = 1):
        _check_depth(max_depth)
        self.module = module
        self.layers: dict[str, nn.Module] = {
            name: layer
            for name, layer in module.named_modules()
            if name and max_depth and (max_depth == -1 or name.count(".") < max_depth)
        }
        example = getattr(module, "example_input_array", None)
        self.in_sizes, self.out_sizes = ([], []) if example is None else _shapes(module, self.layers, example)

    @property
    def layer_names(self) -> list[str]:
        """Dotted names."""
        return list(self.layers)

    @property
    def layer_types(self) -> list[str]:
        """Class names."""
        return [type(layer).__name__ for layer in self.layers.values()]

    @property
    def param_nums(self) -> list[int]:
        """Parameters of each layer, those of its own layers included."""
        return [_count(layer.parameters()) for layer in self.layers.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each layer is in training mode."""
        return [layer.training for layer in self.layers.values()]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """Layers in training and in evaluation mode, at any depth."""
        modes = [layer.training for layer in self.module.modules()][1:]  # the module itself is none of its layers
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        """All parameters, each counted once."""
        return _count(self.module.parameters())

    @property
    def trainable_parameters(self) -> int:
        """Those that require a gradient."""
        return _count(parameter for parameter in self.module.parameters() if parameter.requires_grad)

    @property
    def model_size(self) -> float:
        """Megabytes (10^6 bytes) that the parameters take."""
        parameters = [p for p in self.module.parameters() if not isinstance(p, UninitializedParameter)]
        return sum(p.numel() * p.element_size() for p in parameters) / 1e6

    @property
    def columns(self) -> list[str]:
        """The table's titles."""
        return ["", "Name", "Type", "Params", "Mode", *(["In sizes", "Out sizes"] if self.in_sizes else [])]

    def rows(self) -> list[list[str]]:
        """The table's cells, a list a layer; parameters that belong to no layer come last."""
        cells = [
            [str(index), name, kind, human_readable_count(count), "train" if training else "eval"]
            for index, (name, kind, count, training) in enumerate(
                zip(self.layer_names, self.layer_types, self.param_nums, self.training_modes, strict=True)
            )
        ]
        for row, *sizes in zip(cells, self.in_sizes, self.out_sizes, strict=False):
            row += map(str, sizes)
        of_layers = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        others = _count(p for p in self.module.parameters() if id(p) not in of_layers)
        if others:
            row = ["", "other params", "n/a", human_readable_count(others), *["n/a"] * (len(self.columns) - 4)]
            cells.append(row)
        return cells

    def totals(self) -> dict[str, str]:
        """What stands below the table."""
        modes = self.total_training_modes
        return {
            "Trainable params": human_readable_count(self.trainable_parameters),
            "Non-trainable params": human_readable_count(self.total_parameters - self.trainable_parameters),
            "Total params": human_readable_count(self.total_parameters),
            "Total estimated model params size (MB)": f"{self.model_size:,.3f}",
            "Modules in train mode": str(modes["train"]),
            "Modules in eval mode": str(modes["eval"]),
        }

    def __str__(self) -> str:
        table = [self.columns, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        ruler = "-" * len(lines[0])
        below = [f"{value:<10}{title}" for title, value in self.totals().items()]
        return "\n".join(line.rstrip() for line in (lines[0], ruler, *lines[1:], ruler, *below))

    __repr__ = __str__


def summarize(module: nn.Module, max_depth: int = 1) -> Summary:
    """The summary of a module.

    Args:
        module: A `LiteModule`, or any other.
        max_depth: As in `ModelSummary`.

    Raises:
        ValueError: a `max_depth` below -1.

    Example:
        >>> print(summarize(nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512))))
          | Name | Type        | Params | Mode
        ---------------------------------------
        0 | 0    | Linear      | 131 K  | train
        1 | 1    | BatchNorm1d | 1.0 K  | train
        ---------------------------------------
        132 K     Trainable params
        0         Non-trainable params
        132 K     Total params
        0.530     Total estimated model params size (MB)
        2         Modules in train mode
        0         Modules in eval mode
    """
    return Summary(module, max_depth)


def human_readable_count(number: int) -> str:
    """A count with at most three digits before its unit, rounded down where it is above 100.

    >>> [human_readable_count(n) for n in (123, 1234, 2_000_000, 123_456_789)]
    ['123', '1.2 K', '2.0 M', '123 M']
    """
    power = min((len(str(number)) - 1) // 3, len(_UNITS) - 1)
    if power == 0:
        return str(number)
    value = number / 1000**power
    return f"{int(value):,d} {_UNITS[power]}" if value >= 100 else f"{value:.1f} {_UNITS[power]}"


def _check_depth(max_depth: int) -> None:
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ValueError(f"`max_depth` can be -1, 0 or > 0, got {max_depth!r}.")


def _count(parameters: Iterable[nn.Parameter]) -> int:
    """Elements in all; a lazy layer's parameters, which have no shape yet, count as none."""
    return sum(0 if isinstance(parameter, UninitializedParameter) else parameter.numel() for parameter in parameters)


def _shapes(module: nn.Module, layers: dict[str, nn.Module], example: Any) -> tuple[list[Any], list[Any]]:
    """The shapes that go in and out of each layer when `example` is run through the module, modes put back."""
    into: dict[nn.Module, Any] = {}
    out_of: dict[nn.Module, Any] = {}

    def note(layer: nn.Module, inputs: tuple, named: dict, output: Any) -> None:
        given = (*inputs, *named.values())
        into.setdefault(layer, _shape(given[0] if len(given) == 1 else given))
        out_of.setdefault(layer, _shape(output))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers.values()]
    modes = {part: part.training for part in module.modules()}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        module.eval()
        with torch.no_grad():
            _call(module, map_tensors(example, lambda tensor: tensor.to(device)))
    finally:
        for part, training in modes.items():
            part.training = training
        for handle in handles:
            handle.remove()
    return [into.get(layer, "?") for layer in layers.values()], [out_of.get(layer, "?") for layer in layers.values()]


def _call(module: nn.Module, example: Any) -> None:
    """``forward`` with a tensor, with a tuple of arguments, or with a dict of named ones."""
    if isinstance(example, dict):
        module(**example)
    elif isinstance(example, (list, tuple)):
        module(*example)
    else:
        module(example)


def _shape(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_shape(part) for part in value]
    return list(value.shape) if hasattr(value, "shape") else "?"
