"""`write_report`: one HTML file about a run, which needs no network: its curves as SVG, and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet3_lite.checkpoint.atomic_files import write_text
from espnet3_lite.report.history import Run, read_run
from espnet3_lite.report.pictures import as_svg

_STYLE = """body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto } svg { width: 49%; height: auto }
@media (max-width: 40rem) { svg { width: 100% } }"""


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the page.

    Args:
        folder: The run's folder.
        output: The file; by default ``report.html`` in the folder.

    Raises:
        MisconfigurationException: the folder holds no log, or matplotlib is not installed.
    """
    run = read_run(folder)
    output = Path(output or run.folder / "report.html")
    write_text(output, page(run))
    return output


def page(run: Run) -> str:
    """The whole page as text."""
    pictures = run.pictures()
    title = html.escape(run.folder.resolve().name)
    parts = ["<!DOCTYPE html>", f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>']
    parts += [f"<style>{_STYLE}</style></head><body>", f"<h1>{title}</h1>"]
    parts += _section("How it ended", _table(("", ""), [(key, value) for key, value in run.status.items() if value]))
    parts += _section("Results", _table(("value", "last", "lowest", "highest"), _results(run)))
    parts += _section("Curves", [as_svg(name, picture) for name, picture in pictures.items()])
    parts += _section("Checkpoints", _table(("file", "size", "what it is"), run.checkpoints()))
    parts += _section(f"Skipped batches: {len(run.skipped)}", [f"<pre>{html.escape(chr(10).join(run.skipped))}</pre>"]
                      if run.skipped else [])  # fmt: skip
    times = [(name, f"{seconds:.4g}") for name, seconds in run.seconds().items()]
    parts += _section("Where the time went", _table(("a batch's mean (valid_time: a validation's)", "seconds"), times))
    parts += _section("Configuration", [f"<pre>{html.escape(run.configuration)}</pre>"] if run.configuration else [])
    return "\n".join([*parts, "</body></html>", ""])


def _results(run: Run) -> Iterable[tuple[str, ...]]:
    for title, picture in run.pictures().items():
        if title in ("learning_rate", "seconds"):
            continue
        for label, curve in picture.curves.items():
            values = [value for _, value in curve]
            name = title if label == title else f"{label}/{title}"
            yield name, *(f"{value:.4g}" for value in (values[-1], min(values), max(values)))


def _section(title: str, content: list[str]) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", *(content or ["<p>none</p>"])]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    if not lines:
        return []
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return ["<table>", f"<tr>{names}</tr>", *(f"<tr>{line}</tr>" for line in lines), "</table>"]
