"""Public packages that import Lightning, unchanged, beside it: the table in docs/from-lightning.md stays true."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
PROGRAMS = Path(__file__).parents[1] / "golden" / "package_programs.py"


@pytest.mark.parametrize("case", ["scvi", "rl4co"])
def test_a_package_trains_as_under_lightning(packages, case, tmp_path):
    found = {}
    for side in ("lightning", "ours"):
        done = packages.run(PROGRAMS, side, case, tmp_path / side)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        found[side] = json.loads(line.removeprefix("RESULT "))
    theirs, ours = found["lightning"], found["ours"]
    assert len(theirs["calls"]) > 100 and theirs["weights"]
    for part in ("calls", "weights", "files"):
        assert ours[part] == theirs[part], part
    # Means of float32 values: the last digit may differ.
    assert ours["means"] == pytest.approx(theirs["means"], rel=1e-6)
    assert ours["after"] == pytest.approx(theirs["after"], rel=1e-6)
