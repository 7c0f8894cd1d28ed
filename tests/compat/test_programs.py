"""Programs written for Lightning, nothing but the imports changed by our command, against Lightning 2.6.6."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from espnet3_lite.compat.rewriting import rewrite

GOLDEN = Path(__file__).parents[1] / "golden" / "lightning_programs.py"
RECORDED = json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    rewritten = rewrite(GOLDEN.read_text())
    assert (rewritten.changes, rewritten.problems) == (6, [])
    path = tmp_path_factory.mktemp("programs") / "programs.py"
    path.write_text(rewritten.text)
    spec = importlib.util.spec_from_file_location("rewritten_programs", path)
    module = importlib.util.module_from_spec(spec)
    dtype = torch.get_default_dtype()
    spec.loader.exec_module(module)
    yield module
    torch.set_default_dtype(dtype)


def close(found, expected, place=""):
    """Numbers to 1e-9, all else exactly; the message says where they differ first."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            close(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{place}: {found} and {expected}"
        for index, pair in enumerate(zip(found, expected, strict=True)):
            close(*pair, f"{place}[{index}]")
    else:
        assert found == expected, place


def test_there_are_fifteen(programs):
    assert list(programs.PROGRAMS) == list(RECORDED) and len(RECORDED) == 15


@pytest.mark.parametrize("name", RECORDED)
def test_equal_losses_steps_names_and_order(programs, name, tmp_path):
    found = json.loads(json.dumps(programs.noted(name, str(tmp_path))))
    for part in ("calls", "steps", "rows", "metrics", "weights", "more"):
        close(found[part], RECORDED[name][part], f"{name}/{part}")
