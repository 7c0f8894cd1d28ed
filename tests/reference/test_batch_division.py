"""Batches, their order and whose they are, as espnet's own classes say, in random settings on 1, 2 and 3 ranks."""

import json
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "golden" / "division_lab.py"


@pytest.mark.reference
def test_the_same_batches_in_the_same_order_on_the_same_ranks(espnet, tmp_path):
    said = espnet.run(LAB, 0, 150, tmp_path).stdout
    found = json.loads(said.splitlines()[-1])
    assert all(found[kind] >= 15 for kind in ("unsorted", "sorted", "folded", "length", "numel"))
    dealt = ("per_gpu, 2 ranks", "per_gpu, 3 ranks", "global, 2 ranks", "global, 3 ranks")
    assert all(found[how] >= 15 for how in dealt)
