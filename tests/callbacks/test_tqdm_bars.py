"""Which bar suits which place, and its numbers."""

import sys
from types import SimpleNamespace

import pytest

from espnet3_lite.callbacks import tqdm_bars
from espnet3_lite.callbacks.tqdm_bars import LogLines, Tqdm


def test_a_notebook_gets_bars_with_and_without_widgets(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    stream = SimpleNamespace(isatty=lambda: False)
    find = tqdm_bars.importlib.util.find_spec
    for widgets, expected in ((None, "Tqdm"), (object(), "tqdm_notebook")):
        monkeypatch.setattr(
            tqdm_bars.importlib.util, "find_spec", lambda n, w=widgets: w if n == "ipywidgets" else find(n)
        )
        assert tqdm_bars.bar_for(stream).__name__ == expected
    shell.config.clear()  # IPython in a terminal
    assert tqdm_bars.bar_for(stream) is LogLines


@pytest.mark.parametrize(("columns", "kind"), [(0, LogLines), (80, Tqdm)])
def test_a_terminal_without_columns_gets_lines(columns, kind, monkeypatch):
    stream = SimpleNamespace(isatty=lambda: True, fileno=lambda: 2)
    monkeypatch.setattr(tqdm_bars.os, "get_terminal_size", lambda _: SimpleNamespace(columns=columns))
    assert tqdm_bars.bar_for(stream) is kind


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"), (3, "3"), (1.5e-9, "1.5e-9"), (12.0, "12.00"), (123456.0, "1.23e+5"), (-0.5, "-0.50"),
        (100.0, "100.0"), ("0.1", "0.100"), ("12", "12.00"), ("ab", "ab"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers_keep_their_width(value, text):
    assert Tqdm.format_num(value) == text
