"""``init_param`` beside espnet2's own `load_pretrained_model`."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
LAB = Path(__file__).parents[1] / "golden" / "init_param_lab.py"


def test_what_is_taken_is_what_espnet_takes(espnet, tmp_path):
    lines = [json.loads(line) for line in espnet.run("-W", "ignore", LAB, tmp_path).stdout.splitlines()]
    assert len(lines) == 40
    different = []
    for line in lines:
        refused = [isinstance(line[side], str) for side in ("espnet", "ours")]
        if refused != [True, True] and line["espnet"] != line["ours"]:
            different.append(line["given"])
    # An empty list of excludes excludes nothing with us, and all in espnet, whose names all begin with an empty text.
    assert different == ["{file}:encoder:encoder:"] * 2
    assert sum(isinstance(line["ours"], dict) for line in lines) == 30
