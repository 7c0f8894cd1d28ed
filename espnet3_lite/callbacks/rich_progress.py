"""`RichProgressBar`: the bars of `TQDMProgressBar`, drawn by rich (extra ``rich``)."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.showing.tqdm_bars import Tqdm, bar_for, writable
from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.style import Style

    from espnet3_lite.trainer.trainer import Trainer


@dataclass
class RichProgressBarTheme:
    """How a `RichProgressBar` looks: rich's styles of its parts, such as ``#6206E0`` or ``bold red``.

    Args:
        description: Of what stands before the bar.
        progress_bar: Of the bar.
        progress_bar_finished: Of the bar when it is complete.
        progress_bar_pulse: Of the bar where nobody knows how many batches there are.
        batch_progress: Of the number of batches.
        time: Of the times that have passed and remain.
        processing_speed: Of the batches in a second.
        metrics: Of the values.
        metrics_text_delimiter: What stands between two values.
        metrics_format: As Python's format of a number; empty: four digits.

    Example:
        >>> RichProgressBarTheme(progress_bar="green").progress_bar
        'green'
    """

    description: str | Style = ""
    progress_bar: str | Style = "#6206E0"
    progress_bar_finished: str | Style = "#6206E0"
    progress_bar_pulse: str | Style = "#6206E0"
    batch_progress: str | Style = ""
    time: str | Style = "dim"
    processing_speed: str | Style = "dim"
    metrics: str | Style = "italic"
    metrics_text_delimiter: str = ", "
    metrics_format: str = ""


class RichProgressBar(TQDMProgressBar):
    """Shows progress as `TQDMProgressBar` does, with rich's bars in a terminal.

    In a notebook or a log file it is the same as `TQDMProgressBar`.

    Args:
        refresh_rate: The bar moves each n-th batch; 0: no bar.
        leave: Keep the bar of each finished epoch on the screen. Default False.
        theme: Colours and formats, a `RichProgressBarTheme`.
        console_kwargs: Arguments of rich's ``Console``.

    Raises:
        MisconfigurationException: rich is not installed.

    Example:
        >>> RichProgressBar(leave=True).refresh_rate
        1
    """

    _drawn: Progress | None = None

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
    ):
        if importlib.util.find_spec("rich") is None:
            raise MisconfigurationException('RichProgressBar needs rich: pip install "espnet3_lite[rich]"')
        super().__init__(refresh_rate, leave=leave)
        self.theme, self._console_arguments = theme or RichProgressBarTheme(), console_kwargs or {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no trainer yet, and draws nothing."""
        return {**super().__getstate__(), "_drawn": None}

    def _make_bar(self, description: str, leave: bool, line: int = 0, **arguments: Any) -> Any:
        if self.is_disabled or bar_for(writable(sys.stderr)) is not Tqdm:
            return super()._make_bar(description, leave, line, **arguments)
        if self._drawn is None:
            from rich.console import Console
            from rich.progress import Progress

            console = Console(**{"file": sys.stderr, **self._console_arguments})
            self._drawn = Progress(*self.configure_columns(self.trainer), console=console, expand=True)
            self._drawn.start()
        return _RichBar(self, self._drawn, description, leave)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Rich's columns, from left to right; a task's ``values`` field is the text of the values. Override to change.

        Args:
            trainer: Whose progress is shown.
        """
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        theme = self.theme
        bar = BarColumn(
            None, complete_style=theme.progress_bar, finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        )  # fmt: skip
        speed: Any = TaskProgressColumn()
        speed.render = lambda task: speed.render_speed(task.finished_speed or task.speed)
        return [
            TextColumn("{task.description}", style=theme.description),
            bar,
            _in_style(MofNCompleteColumn(), theme.batch_progress),
            _in_style(TimeElapsedColumn(), theme.time),
            _in_style(TimeRemainingColumn(), theme.time),
            _in_style(speed, theme.processing_speed),
            TextColumn("{task.fields[values]}", style=theme.metrics),
        ]

    def forget(self) -> None:
        """Called by a bar that closes: the last one to close gives the terminal back."""
        if self._drawn is not None and all(bar.disable for bar in self.bars.values()):
            self._drawn.stop()
            self._drawn = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars: rich moves them down."""
        print(*args, **kwargs)


def _in_style(column: ProgressColumn, style: str | Style) -> ProgressColumn:
    """One of rich's columns that take no style of their own."""
    render = column.render

    def styled(task: Any) -> Any:
        text: Any = render(task)
        text.stylize(style)
        return text

    column.render = styled  # type: ignore[method-assign]
    return column


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
        theme, number = self.owner.theme, Tqdm.format_num
        shown = {name: value if isinstance(value, str) else number(value) for name, value in values.items()}
        if theme.metrics_format:
            numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
            shown.update({name: format(value, theme.metrics_format) for name, value in numbers.items()})
        self.postfix = theme.metrics_text_delimiter.join(f"{name}={value}" for name, value in shown.items())

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
