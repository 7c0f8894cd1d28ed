"""Where the commands' log lines go: the terminal, above the progress bars, and a run's ``train.log``.

For the commands of `cli/` alone: whoever imports the package sets up logging as they like.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espnet3_lite.callbacks.showing.screen import AboveBars, ScreenLines
from espnet3_lite.callbacks.showing.tqdm_bars import writable
from espnet3_lite.distributed.rank import is_global_zero
from espnet3_lite.exceptions import MisconfigurationException

_PACKAGE = str(Path(__file__).parents[1])


def show_on_terminal(quiet: bool) -> None:
    """Send log lines and warnings to stdout: INFO and above on rank zero, warnings alone elsewhere or if `quiet`."""
    handler = AboveBars(writable(sys.stdout))
    handler.setFormatter(ScreenLines(handler.stream, "%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = logging.WARNING if quiet or not is_global_zero() else logging.INFO
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    warnings.formatwarning = one_line


def one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as one line; with its place in the code, unless that is ours or the command, which tell a user nothing.

    >>> one_line("`x` is deprecated", FutureWarning, "model.py", 7)
    'FutureWarning: `x` is deprecated (model.py:7)'
    """
    ours = filename.startswith(_PACKAGE) or filename == sys.argv[0]
    place = "" if ours else f" ({filename}:{lineno})"
    return f"{category.__name__}: {message}{place}"


@contextmanager
def kept_in(exp_dir: Path | None) -> Iterator[None]:
    """Within the block, append rank zero's log lines to ``train.log`` in a run's folder as well; None: nowhere.

    Raises:
        MisconfigurationException: the folder cannot be written.
    """
    if exp_dir is None or not is_global_zero():
        yield
        return
    try:
        exp_dir.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(exp_dir / "train.log", encoding="utf-8")
    except OSError as error:
        raise MisconfigurationException(f"exp_dir: {str(exp_dir)!r} cannot be written: {error}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
