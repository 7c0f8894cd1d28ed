"""Pictures of runs, drawn with matplotlib (extra ``plot``), which is imported when something is drawn."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.checkpoint.atomic_files import replacing
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.report.history import Picture, Run, read_run

if TYPE_CHECKING:
    from espnet3_lite.callbacks.learning_rate_finder import Found

HOW_TO_INSTALL = 'pictures are drawn with matplotlib: pip install "espnet3_lite[plot]"'


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(folders: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """Draw the pictures of one or several runs.

    Args:
        folders: The runs' folders.
        output: Where the pictures go; by default ``images`` in the run's folder, for several in the working folder.

    Returns:
        The files.

    Raises:
        MisconfigurationException: matplotlib is not installed, or a folder holds no log.
    """
    runs = [read_run(folder) for folder in folders]
    output = output or (runs[0].folder / "images" if len(runs) == 1 else "images")
    return write_pictures(together(runs), Path(output))


def together(runs: Sequence[Run]) -> dict[str, Picture]:
    """The pictures of several runs, each with the curves of all of them."""
    if len(runs) == 1:
        return runs[0].pictures()
    merged: dict[str, Picture] = {}
    for run in runs:
        for title, picture in run.pictures().items():
            title = title if merged.get(title, picture).axis == picture.axis else f"{title}_by_{picture.axis}"
            target = merged.setdefault(title, Picture(picture.axis))
            target.curves.update({f"{run.folder.name}: {label}": curve for label, curve in picture.curves.items()})
    return merged


def write_pictures(pictures: dict[str, Picture], output: Path) -> list[Path]:
    """Write each picture as ``<title>.png``; a reader never sees half a file."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for title, picture in pictures.items():
        path = output / f"{file_name(title)}.png"
        with replacing(path) as temporary:
            draw(title, picture).savefig(temporary, format="png", dpi=100)
        written.append(path)
    return written


def as_svg(title: str, picture: Picture) -> str:
    """The picture as an ``<svg>`` element."""
    buffer = io.StringIO()
    draw(title, picture).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def draw(title: str, picture: Picture) -> Any:
    """A matplotlib figure.

    Raises:
        MisconfigurationException: matplotlib is not installed.
    """
    if not can_draw():
        raise MisconfigurationException(HOW_TO_INSTALL)
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, curve in picture.curves.items():
        axes.plot(*zip(*curve, strict=True), label=label, marker="." if len(curve) < 50 else "")
    axes.set(title=title.replace("_", " "), xlabel=picture.axis)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_search(found: Found, suggestion: float | None, output: Path) -> Path:
    """The picture of a search for a learning rate: the loss over the rate, its smoothed curve, and the suggestion.

    Returns:
        The file, a PNG.
    """
    measured = list(zip(found.results["lr"], found.results["loss"], strict=True))
    curves = {"loss": measured, "smoothed": found.smoothed()}
    figure = draw("learning rate finder", Picture("learning rate", curves))
    (axes,) = figure.axes
    axes.set_xscale("log")
    if heights := [loss for _, loss in curves["smoothed"]]:  # an explosion leaves the picture at its top
        lowest, highest = min(found.results["loss"]), max(heights)
        axes.set_ylim(lowest - 0.1 * (highest - lowest), highest + 0.1 * (highest - lowest))
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", linestyle="--", label=f"suggested: {suggestion:.3g}")
        axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=100)
    return output


def file_name(title: str) -> str:
    """A title as a file's name.

    >>> file_name("wer/dev set")
    'wer.dev_set'
    """
    return re.sub(r"[^\w.-]", "_", title.replace("/", "."))
