"""The docstrings' examples of the lessons, which lie outside pytest's `testpaths`."""

import doctest
import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = ("digits", "spoken_digits", "gan", "vocoder")
MODULES = [
    f"examples.{folder}.{file.stem}" for folder in FOLDERS for file in sorted((EXAMPLES / folder).glob("[a-z]*.py"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name):
    if name.split(".")[1] in ("digits", "gan"):
        pytest.importorskip("sklearn", reason="the digits are part of scikit-learn")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_lessons_are_found_and_short():
    assert len(MODULES) >= 11
    sizes = {
        name: len((EXAMPLES.parent / (name.replace(".", "/") + ".py")).read_text().splitlines()) for name in MODULES
    }
    assert {name: lines for name, lines in sizes.items() if lines > 200} == {}
