"""The callbacks that change weights under torchrun: equal on all ranks, and as in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import weights_on_ranks
from weights_parts import near

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "helpers" / "weights_on_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, folder]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one():
    return weights_on_ranks.run(processes=1)


@pytest.mark.parametrize("case", [name for name, *_ in weights_on_ranks.cases()])
def test_all_ranks_end_with_the_same(two, case):
    first, second = (result[case] for result in two)
    assert first == second
    assert first["steps"] == 9


@pytest.mark.parametrize("case", ["ema", "swa", "finetuning", "pruning"])
def test_two_ranks_end_as_one_process(two, one, case):
    assert two[0][case]["trainable"] == one[case]["trainable"]
    for name, values in one[case]["state"].items():
        assert two[0][case]["state"][name] == near(values), name
