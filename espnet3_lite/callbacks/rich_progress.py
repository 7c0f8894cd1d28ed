"""`RichProgressBar`: the bars of `TQDMProgressBar`, drawn by rich (extra ``rich``)."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.showing.tqdm_bars import Tqdm, bar_for, writable
from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from rich.progress import Progress


class RichProgressBar(TQDMProgressBar):
    """Shows progress as `TQDMProgressBar` does, with rich's bars in a terminal.

    In a notebook or a log file it is the same as `TQDMProgressBar`.

    Args:
        refresh_rate: The bar moves each n-th batch; 0: no bar.
        leave: Keep the bar of each finished epoch on the screen. Default False.

    Raises:
        MisconfigurationException: rich is not installed.

    Example:
        >>> RichProgressBar(leave=True).refresh_rate
        1
    """

    _drawn: Progress | None = None

    def __init__(self, refresh_rate: int = 1, leave: bool = False):
        if importlib.util.find_spec("rich") is None:
            raise MisconfigurationException('RichProgressBar needs rich: pip install "espnet3_lite[rich]"')
        super().__init__(refresh_rate, leave=leave)

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no trainer yet, and draws nothing."""
        return {**super().__getstate__(), "_drawn": None}

    def _make_bar(self, description: str, leave: bool, line: int = 0, **arguments: Any) -> Any:
        if self.is_disabled or bar_for(writable(sys.stderr)) is not Tqdm:
            return super()._make_bar(description, leave, line, **arguments)
        if self._drawn is None:
            self._drawn = _new_progress()
            self._drawn.start()
        return _RichBar(self, self._drawn, description, leave)

    def forget(self) -> None:
        """Called by a bar that closes: the last one to close gives the terminal back."""
        if self._drawn is not None and all(bar.disable for bar in self.bars.values()):
            self._drawn.stop()
            self._drawn = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars: rich moves them down."""
        print(*args, **kwargs)


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=Console(file=sys.stderr), expand=True,
    )  # fmt: skip


class _RichBar:
    """One line of rich's, which is moved as a tqdm bar is."""

    def __init__(self, owner: RichProgressBar, drawn: Progress, description: str, leave: bool):
        self.owner, self.drawn, self.leave = owner, drawn, leave
        self.task = drawn.add_task(description, values="")
        self.disable, self.desc, self.postfix = False, description, ""
        self.n = self.initial = 0
        self.total: float | None = None

    def reset(self) -> None:
        """Begin at zero, with a clock that begins now."""
        self.n = 0
        self.drawn.reset(self.task)

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """What stands before the bar."""
        self.desc = desc
        self.refresh()

    def set_postfix(self, values: dict[str, float | int | str], refresh: bool = True) -> None:
        """The values behind the bar."""
        self.postfix = ", ".join(f"{name}={Tqdm.format_num(value)}" for name, value in values.items())

    def refresh(self) -> None:
        """Draw it."""
        self.drawn.update(
            self.task, description=self.desc, completed=self.n, total=self.total, values=self.postfix, refresh=True
        )

    def close(self) -> None:
        """Leave the line as it is, or take it away."""
        if not self.disable:
            self.disable = True
            if not self.leave:
                self.drawn.remove_task(self.task)
            self.owner.forget()
