"""Which bar suits the place where progress is shown: drawn in a terminal or a notebook, plain lines in a log file.

What a bar counts is for those who use it to know: the training's callback, `collect_stats`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from tqdm import tqdm

#: Seconds between two drawings of a bar, and between two lines in a log file.
DRAW_EVERY = 0.1
LINE_EVERY = 30.0


class Tqdm(tqdm):
    """A tqdm bar whose numbers keep their width, so that the line does not jump.

    >>> Tqdm.format_num(0.5), Tqdm.format_num(3), Tqdm.format_num(1.5e-9)
    ('0.500', '3', '1.5e-9')
    """

    @staticmethod
    def format_num(n: float | int | str) -> str:
        """A number with three significant digits, filled up to five characters."""
        if isinstance(n, int):
            return tqdm.format_num(n)
        text = n if isinstance(n, str) else tqdm.format_num(n)
        if "e" in text or not text.replace(".", "", 1).lstrip("-").isdigit():
            return text
        text = text if "." in text or len(text) >= 5 else text + "."
        return text.ljust(5, "0")


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


def bar_for(stream: Any) -> type[tqdm]:
    """What suits the place: a widget or a drawn bar in a notebook, a drawn bar in a terminal, else lines for a log."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and "IPKernelApp" in shell.config:
        if importlib.util.find_spec("ipywidgets") is None:
            return Tqdm
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    return Tqdm if stream.isatty() and _has_width(stream) else LogLines


def _has_width(stream: Any) -> bool:
    """False for a terminal that says it has no columns (as under ``docker exec -t``), where a bar is cut to nothing."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # it does not say
        return True
