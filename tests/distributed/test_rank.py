"""What only rank zero says."""

import pytest

from espnet3_lite.compat.utilities import rank_zero_deprecation


def test_a_deprecation_is_a_warning_of_rank_zero(monkeypatch, recwarn):
    with pytest.warns(DeprecationWarning, match="write it otherwise"):
        rank_zero_deprecation("write it otherwise")
    recwarn.clear()
    monkeypatch.setenv("RANK", "1")
    rank_zero_deprecation("write it otherwise")
    assert not recwarn.list
