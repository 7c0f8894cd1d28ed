"""Which bar suits which place, and its numbers."""

import sys
from types import SimpleNamespace

import pytest
import torch
from line_model import Line

from espnet3_lite import Trainer
from espnet3_lite.callbacks.showing import tqdm_bars
from espnet3_lite.callbacks.showing.tqdm_bars import LogLines, NotebookBar, Tqdm


def test_a_notebook_gets_its_own_bars(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    stream = SimpleNamespace(isatty=lambda: False)
    assert tqdm_bars.bar_for(stream) is NotebookBar
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
        (0.5, "0.5000"), (3, "3"), (1.5e-9, "1.500e-09"), (12.0, "12.00"), (123456.0, "1.235e+05"), (-0.5, "-0.5000"),
        (100.0, "100.0"), (1234.0, "1234"), ("0.1", "0.1"), ("ab", "ab"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers_keep_their_width(value, text):
    assert Tqdm.format_num(value) == text


def test_a_program_without_a_console_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", log_every_n_steps=1)
    trainer.fit(Line(), [torch.ones(2, 1)] * 2, [torch.ones(2, 1)])
    assert trainer.global_step == 2
    trainer.validate(Line(), [torch.ones(2, 1)])
    with tqdm_bars.bar_for(tqdm_bars.writable(sys.stderr))(total=1, file=tqdm_bars.writable(sys.stderr)) as bar:
        bar.update()
        assert isinstance(bar, LogLines) and bar.n == 1
