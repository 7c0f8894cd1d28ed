"""Which bar suits the place where progress is shown: a terminal, a notebook, or a log file; and how wide its line is.

What a bar counts is for those who use it to know: the training's callback, `collect_stats`.
"""

from __future__ import annotations

import html
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len

#: Seconds between two drawings of a bar, and between two lines in a log file.
DRAW_EVERY = 0.1
LINE_EVERY = 30.0
#: A bar that moves each n-th batch is not left standing for longer than these seconds.
STANDS_STILL = 5.0
#: The drawn bar itself has at least this many columns.
SMALLEST_BAR = 5


class Tqdm(tqdm):
    """A tqdm bar whose line fits its terminal: numbers have four digits, and what has no room is left out whole.

    >>> Tqdm.format_num(0.5), Tqdm.format_num(3), Tqdm.format_num(1.5e-9)
    ('0.5000', '3', '1.500e-09')
    """

    @staticmethod
    def format_num(n: float | int | str) -> str:
        """A number with four significant digits, zeros included, so that the line keeps its width."""
        return f"{n:#.4g}".rstrip(".") if isinstance(n, float) else str(n)

    @staticmethod
    def format_meter(  # type: ignore[override]  # tqdm's has a name for each of the parts
        n: float, total: float, elapsed: float, ncols: int | None = None, bar_format: str | None = None,
        postfix: Any = None, **parts: Any,
    ) -> str:  # fmt: skip
        """The line as tqdm makes it. In a narrow terminal it has no percentage, and ``...`` for values without room."""

        def line(columns: int | None, form: str | None, values: Any) -> str:
            return tqdm.format_meter(n, total, elapsed, columns, bar_format=form, postfix=values, **parts)

        ncols = ncols if ncols is not None and ncols > 0 else None  # a terminal of no columns: the whole line
        if ncols and bar_format and isinstance(postfix, str):
            shown, narrow = postfix.split(", "), bar_format.replace("{l_bar}", "{desc}|")
            forms = [(bar_format, postfix), (narrow, postfix)]
            forms += [(narrow, ", ".join([*shown[:count], "..."])) for count in range(len(shown) - 1, 0, -1)]
            for bar_format, postfix in [*forms, (narrow, None)]:
                if disp_len(line(None, bar_format.replace("{bar}", "-" * SMALLEST_BAR), postfix)) <= ncols:
                    break
        return line(ncols, bar_format, postfix)


class LogLines(Tqdm):
    """A tqdm bar for a log file: it never moves the cursor; `print_line` writes where it stands, as one line."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]  # tqdm's returns True
        """Nothing: there is no cursor to move."""
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing was drawn that could be cleared."""

    def moveto(self, n: int) -> None:
        """There is no other line to move to."""

    def close(self) -> None:
        """Forget the bar, writing nothing."""
        self.leave = False
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # typeshed leaves it out

    def print_line(self) -> None:
        """Write one line."""
        if not self.disable:
            print(str(self), file=self.fp, flush=True)


class NotebookBar(LogLines):
    """A tqdm bar for a notebook: a table with one line an epoch, and the bar below it while it moves.

    It is text and HTML in the cell's output, no widget, so a saved notebook shows what the screen showed.
    """

    _output: Any = None
    #: The output of a bar that has gone, and its cell's number: the next bar of that cell takes it, so that a long run
    #: does not leave one empty output for each validation.
    _spare: tuple[Any, int] | None = None

    def __init__(self, *arguments: Any, **keywords: Any):
        self.rows: list[dict[str, str]] = []
        super().__init__(*arguments, **keywords)

    def add_row(self, values: Mapping[str, float | str]) -> None:
        """Add a line to the table."""
        self.rows.append({name: self.format_num(value) for name, value in values.items()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """Show the table and the bar, in the place where they were shown before."""
        self._show(str(self))
        return True

    def close(self) -> None:
        """Leave the table, or the bar where there is none; show nothing more of a bar that shall not stay."""
        if not self.disable:
            self._show("" if self.rows or not self.leave else str(self))
            if not self.rows and not self.leave:
                NotebookBar._spare = (self._output, _cell())
        super().close()

    def print_line(self) -> None:
        """A bar that is shown needs no line."""

    def _show(self, bar: str) -> None:
        from IPython.display import display

        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = [columns, *([row.get(name, "") for name in columns] for row in self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table]
        page = "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>" if cells else ""
        page += f"<pre>{html.escape(bar)}</pre>" if bar else ""
        output = {"text/plain": "\n".join([*lines, *([bar] if bar else [])]), "text/html": page}
        if self._output is None and NotebookBar._spare is not None and NotebookBar._spare[1] == _cell():
            self._output, NotebookBar._spare = NotebookBar._spare[0], None
        if self._output is None:
            self._output = display(output, raw=True, display_id=True)
        else:
            self._output.update(output, raw=True)


def _cell() -> int:
    """The number of the notebook's cell that runs."""
    return int(sys.modules["IPython"].get_ipython().execution_count)


def bar_for(stream: Any) -> type[tqdm]:
    """What suits the place: a table and a bar in a notebook, a drawn bar in a terminal, else lines for a log."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and "IPKernelApp" in shell.config:
        return NotebookBar
    return Tqdm if stream.isatty() and _has_width(stream) else LogLines


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def writable(stream: Any) -> Any:
    """The stream, or one that leads nowhere: a program without a console (a service, ``pythonw``, ``2>&-``) has None.

    >>> writable(None).isatty(), writable(sys.stdout) is sys.stdout
    (False, True)
    """
    return _Nowhere() if stream is None else stream


def takes_colours(stream: Any) -> bool:
    """Whether text on this stream may be coloured: a terminal, unless ``NO_COLOR`` or ``TERM=dumb`` says otherwise."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _has_width(stream: Any) -> bool:
    """False for a terminal that says it has no columns (as under ``docker exec -t``), where a bar is cut to nothing."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # it does not say
        return True
