"""The table that people see first: its numbers, and where it goes."""

import sys

import pytest
import torch
from quiet import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import ModelSummary, RichModelSummary
from espnet3_lite.callbacks.model_summary import summarize

TABLE = """\
  | Name         | Type       | Params | Mode  | In sizes | Out sizes
---------------------------------------------------------------------
0 | encoder      | Sequential | 64     | train | [2, 3]   | [2, 4]
1 | head         | Linear     | 5      | eval  | [2, 4]   | [2, 1]
  | other params | n/a        | 7      | n/a   | n/a      | n/a
---------------------------------------------------------------------
71        Trainable params
5         Non-trainable params
76        Total params
0.000     Total estimated model params size (MB)
3         Modules in train mode
1         Modules in eval mode
"""


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4, bias=False))
        self.head = nn.Linear(4, 1).requires_grad_(False).eval()
        self.scale = nn.Parameter(torch.zeros(7))
        self.example_input_array = torch.zeros(2, 3)

    def forward(self, x):
        assert not self.training
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        return self.encoder(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback):
    trainer = quiet_trainer(max_epochs=1, callbacks=callback)
    module = Module()
    trainer.fit(module, DataLoader(torch.zeros(1, 3)))
    return module


def test_table_is_printed_on_stdout_and_modes_are_put_back(capsys):
    module = fit(ModelSummary())
    assert capsys.readouterr().out == TABLE
    assert module.training and not module.head.training


def test_depths():
    module = Module()
    assert summarize(module, 1).layer_names == ["encoder", "head"]
    assert summarize(module, 2).layer_names == ["encoder", "encoder.0", "encoder.1", "head"]
    assert summarize(module, 2).param_nums == [64, 32, 32, 5]
    assert summarize(module, -1).layer_names == summarize(module, 2).layer_names
    assert summarize(module, 0).layer_names == []
    assert summarize(module, 0).total_parameters == 76
    with pytest.raises(ValueError, match="can be -1, 0 or > 0, got -2"):
        ModelSummary(-2)


def test_depth_zero_prints_nothing(capsys):
    fit(ModelSummary(max_depth=0))
    assert capsys.readouterr().out == ""


def test_sizes_and_ties():
    layer = nn.Linear(1000, 1000, bias=False).double()
    tied = nn.ModuleDict({"a": layer, "b": layer})
    summary = summarize(tied)
    assert (summary.total_parameters, summary.model_size) == (1_000_000, 8.0)
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    assert summarize(lazy).param_nums == [0, 4]


def test_a_layer_that_the_example_does_not_reach_is_a_question_mark():
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)
            self.example_input_array = {"x": torch.zeros(3, 2), "scale": 2.0}

        def forward(self, x, scale):
            return self.used(x) * scale

    summary = summarize(Partial())
    assert (summary.in_sizes, summary.out_sizes) == ([[3, 2], "?"], [[3, 1], "?"])
    assert not summary.module.used._forward_hooks


def test_rich_table(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "100")
    fit(RichModelSummary())
    out = capsys.readouterr().out
    assert "━" in out and "Total params: 76" in out and "Sequential" in out


def test_without_rich_the_plain_table_is_printed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    fit(RichModelSummary())
    assert capsys.readouterr().out == TABLE


def test_override_of_show(capsys):
    class Short(ModelSummary):
        def show(self, trainer, summary):
            trainer.print("parameters:", summary.total_parameters)

    fit(Short())
    assert capsys.readouterr().out == "parameters: 76\n"
