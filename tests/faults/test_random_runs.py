"""Runs drawn from seeds, killed, stopped or failing at drawn moments, end as the same runs undisturbed, bit for bit.

More of them: ``python tests/helpers/random_runs.py FIRST COUNT``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "random_runs.py"


def output(*arguments):
    """What the script prints. It forks, which pytest's own process, with its threads, should not."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def differences(first, count):
    """The output where a run differs."""
    said = output(first, count)
    return "" if said.endswith(" 0 differ: []\n") else said


@pytest.mark.slow
def test_a_few_random_runs():
    assert differences(0, 3) == ""


@pytest.mark.slow
@pytest.mark.parametrize("first", [100, 110, 120])
def test_thirty_random_runs(first):
    assert differences(first, 10) == ""


@pytest.mark.slow
def test_twenty_kills_of_runs_whose_samples_are_random():
    said = output("kills").splitlines()
    assert said[-4:] == ["shuffled 0 []", "shuffled 2 []", "configured 0 []", "configured 2 []"], said
