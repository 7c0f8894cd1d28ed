"""espnet's own chunk, category and category-chunk iterators, in one process and on ranks with unequal shares."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
LAB = Path(__file__).parents[1] / "golden" / "iterators_lab.py"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["chunk", "category", "category_chunk"])
def test_each_rank_trains_on_all_that_espnets_iterator_gives_it(espnet, tmp_path, kind, ranks):
    words = ("-m", "torch.distributed.run", "--nproc-per-node", 2) if ranks == 2 else ("-W", "ignore")
    espnet.run(*words, LAB, kind, tmp_path)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    for rank in found:
        assert rank["factory"] == f"espnet2.iterators.{kind}_iter_factory"
        assert rank["seen"] == rank["by_hand"]
        assert (rank["steps"], rank["weights"]) == (found[0]["steps"], found[0]["weights"])  # they end together
    assert found[0]["steps"] == max(len(rank["seen"]) for rank in found)
