"""What docs/scaling.md says of messages and bytes is what the ranks send: counted for two to four of them."""

import json
import math

import pytest
from rank_lab import torchrun

#: The model of the script: two parameters of 25 rows of 40 float32 numbers.
PARAMETERS, ROWS, COLUMNS = 2, 25, 40
GRADIENTS = 4 * PARAMETERS * ROWS * COLUMNS


def vote(ranks):
    """Bytes of the vote: nine numbers for each rank, in float64."""
    return 8 * 9 * ranks


def expected(strategy, ranks):
    """By collective: how many a batch, and the bytes that a rank puts in."""
    if strategy == "ddp":  # the vote, and one bucket
        return {"all_reduce": [2, vote(ranks) + GRADIENTS]}
    if strategy == "named":  # the vote, and a bucket of both optimizers, in which each parameter has a flag
        return {"all_reduce": [2, vote(ranks) + GRADIENTS + 4 * PARAMETERS]}
    if strategy == "named, and a hook looks":  # a bucket for each optimizer
        return {"all_reduce": [3, vote(ranks) + GRADIENTS + 4 * PARAMETERS]}
    part = 4 * PARAMETERS * math.ceil(ROWS / ranks) * COLUMNS  # whole rows; the last rank's are filled up
    share = 0.5 if strategy == "fsdp by windows" else 1  # of two batches
    return {
        "all_gather": [2, 2 * part],  # for the forward and for the backward pass
        "reduce_scatter": [share, share * ranks * part],
        "all_reduce": [1, vote(ranks)],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        *(("ddp", 2), ("ddp", 4), ("named", 3), ("named, and a hook looks", 2)),
        *(("fsdp", 2), ("fsdp", 3), ("fsdp by windows", 2)),
    ],
)
def test_messages_and_bytes_of_a_step(strategy, ranks, tmp_path):
    ended = torchrun(ranks, "rank_counts.py", tmp_path / "counts.json", strategy)
    assert ended.returncode == 0, ended.stdout
    assert json.loads((tmp_path / "counts.json").read_text()) == expected(strategy, ranks)
