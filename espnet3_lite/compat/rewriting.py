"""From Lightning's imports to ours, in the text of a program; nothing but the imported modules' names changes.

A statement is changed only where all that it imports is here; what is not is told, with its line.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
from typing import NamedTuple

from espnet3_lite.compat.names import HOMES, LEFT_OUT, PACKAGES, ROOT, reason_of
from espnet3_lite.exceptions import nearest


class Edit(NamedTuple):
    """What takes the place of a piece of one line: line from 1, columns in characters."""

    line: int
    start: int
    end: int
    text: str


class Rewritten(NamedTuple):
    """A program with our imports, how many imports changed, and what could not be changed, by line."""

    text: str
    changes: int
    problems: list[tuple[int, str]]


def rewrite(text: str) -> Rewritten:
    """Change a program's imports.

    Args:
        text: The program, with the line ends that it has.

    Raises:
        SyntaxError: It is no Python.

    >>> rewrite("from pytorch_lightning.callbacks import Timer  # stops\\n").text
    'from espnet3_lite.compat.callbacks import Timer  # stops\\n'
    >>> rewrite("from lightning.pytorch.cli import LightningCLI\\n").problems[0][1]
    '`LightningCLI` is left out: use `espnet3-lite train CONFIG`, or `espnet3_lite.load_config` and `instantiate`'
    """
    lines = list(io.StringIO(text, newline=""))
    edits: list[Edit] = []
    problems: list[tuple[int, str]] = []
    local_names = set()  # that stand for Lightning
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if PACKAGES.match(alias.name):
                    edits.append(_plain_import(alias, lines))
                    local_names.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and not node.level and PACKAGES.match(node.module or ""):
            home, missing = _home_of(node.module or "", [alias.name for alias in node.names])
            problems += [(alias.lineno, missing[alias.name]) for alias in node.names if alias.name in missing]
            edit = _from_import(node, home, lines)
            if edit is None:
                problems.append((node.lineno, f"write `from {node.module} import` on one line"))
            elif not missing:
                edits.append(edit)
    problems += _attributes_that_are_missing(tree, local_names)
    for edit in sorted(edits, reverse=True):
        line = lines[edit.line - 1]
        lines[edit.line - 1] = line[: edit.start] + edit.text + line[edit.end :]
    return Rewritten("".join(lines), len(edits), sorted(set(problems)))


def _plain_import(alias: ast.alias, lines: list[str]) -> Edit:
    """``import a.b as c`` keeps its name; ``import a.b`` bound ``a``, and so does what takes its place."""
    bound = alias.asname or alias.name.partition(".")[0]
    start = _column(lines, alias.lineno, alias.col_offset)
    end = _column(lines, alias.end_lineno or alias.lineno, alias.end_col_offset or alias.col_offset)
    return Edit(alias.lineno, start, end, f"{ROOT} as {bound}")


def _from_import(node: ast.ImportFrom, home: str, lines: list[str]) -> Edit | None:
    """The module's name alone changes; None where it does not stand beside its ``from``."""
    start = _column(lines, node.lineno, node.col_offset)
    found = re.compile(rf"from\s+({re.escape(node.module or '')})\s").match(lines[node.lineno - 1], start)
    return None if found is None else Edit(node.lineno, *found.span(1), home)


def _column(lines: list[str], line: int, offset: int) -> int:
    """Characters before a place that `ast` gives in bytes of UTF-8."""
    return len(lines[line - 1].encode("utf-8")[:offset].decode("utf-8"))


def _home_of(module: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """The module of this package that has these names of one of Lightning's; and why those are missing that are."""
    inner = PACKAGES.sub("", module, count=1).lstrip(".")
    left_out = next((part for part in inner.split(".") if part in LEFT_OUT), None)
    if left_out is not None:
        return "", {name: reason_of(name) or reason_of(left_out) for name in names}
    while inner not in HOMES:
        inner = inner.rpartition(".")[0]
    homes = dict.fromkeys((inner, "utilities", ""))
    for home in homes:
        if all(_has(home, name) for name in names):
            return f"{ROOT}.{home}" if home else ROOT, {}
    known = [name for home in homes for name in HOMES[home]]
    nowhere = [name for name in names if not any(_has(home, name) for home in homes)]
    if nowhere:
        return "", {
            name: reason_of(name) or f"`{name}` has no counterpart here{nearest(name, known)}" for name in nowhere
        }
    return "", {name: f"import `{name}` in a statement of its own" for name in names}


def _has(home: str, name: str) -> bool:
    if name == "*":
        return True
    try:
        getattr(importlib.import_module(f"{ROOT}.{home}" if home else ROOT), name)
    except (AttributeError, ImportError):
        return False
    return True


def _attributes_that_are_missing(tree: ast.AST, local_names: set[str]) -> list[tuple[int, str]]:
    """Uses such as ``pl.cli.LightningCLI``."""
    problems = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        parts: list[str] = []
        place: ast.expr = node
        while isinstance(place, ast.Attribute):
            parts.insert(0, place.attr)
            place = place.value
        if not isinstance(place, ast.Name) or place.id not in local_names:
            continue
        value = importlib.import_module(ROOT)
        for part in parts:
            if not getattr(value, "__name__", "").startswith(ROOT) or isinstance(value, type):
                break  # an attribute of something that is here
            try:
                value = getattr(value, part)
            except ImportError:
                problems.append((node.lineno, reason_of(part)))
                break
            except AttributeError:
                problems.append((node.lineno, f"`{'.'.join([place.id, *parts])}`: there is no `{part}`"))
                break
    return problems
