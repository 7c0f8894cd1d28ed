"""Where a warning points, for one process; ranks themselves are in the other files."""

import warnings
from contextlib import contextmanager

import line_model
import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite.compat.utilities.functions import rank_zero_deprecation
from espnet3_lite.distributed.rank import rank_zero_warn


class Line(line_model.Line):
    def training_step(self, batch, batch_idx):
        rank_zero_warn("from the step")
        return self.layer(batch).sum()


@contextmanager
def decorated():
    yield


@decorated()
def fit(trainer):
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 1)))


def test_warnings_point_to_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(max_epochs=1)
        fit(trainer)
        trainer.fit_loop.epoch = 0
        rank_zero_warn("from here")
    assert {str(w.message) for w in caught} >= {"from the step", "from here"}
    lines = {}
    for warning in caught:
        assert warning.filename == __file__, warning
        lines[str(warning.message)] = warning.lineno
    source = open(__file__, encoding="utf-8").read().splitlines()
    assert 'rank_zero_warn("from the step")' in source[lines["from the step"] - 1]
    assert 'rank_zero_warn("from here")' in source[lines["from here"] - 1]


def test_a_deprecation_is_a_warning_of_rank_zero(monkeypatch, recwarn):
    with pytest.warns(DeprecationWarning, match="write it otherwise"):
        rank_zero_deprecation("write it otherwise")
    recwarn.clear()
    monkeypatch.setenv("RANK", "1")
    rank_zero_deprecation("write it otherwise")
    assert not recwarn.list
