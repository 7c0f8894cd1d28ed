"""Programs written for Lightning, nothing but the imports changed by our command, against Lightning 2.6.6."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from espnet3_lite.compat.rewriting import rewrite

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {"lightning_programs": (6, 15), "lightning_repositories": (4, 13)}  # changed imports, and how many programs
RECORDED = {name: json.loads((GOLDEN / name).with_suffix(".json").read_text()) for name in FILES}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The rewritten files as modules of their own names, while these tests run."""
    folder, modules = tmp_path_factory.mktemp("programs"), {}
    for name, (changes, _) in FILES.items():
        rewritten = rewrite((GOLDEN / name).with_suffix(".py").read_text())
        assert (rewritten.changes, rewritten.problems) == (changes, [])
        (folder / name).with_suffix(".py").write_text(rewritten.text)
    dtype = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name in FILES:
            modules[name] = importlib.import_module(name)
            assert Path(modules[name].__file__).parent == folder
        yield modules
    for name in FILES:
        del sys.modules[name]
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


@pytest.mark.parametrize("file", FILES)
def test_all_are_recorded(programs, file):
    assert list(programs[file].PROGRAMS) == list(RECORDED[file]) and len(RECORDED[file]) == FILES[file][1]


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in RECORDED[file]])
def test_equal_losses_steps_names_and_order(programs, file, name, tmp_path):
    note = programs["lightning_programs"].noted
    found = json.loads(json.dumps(note(programs[file].PROGRAMS[name], str(tmp_path))))
    for part in ("calls", "steps", "rows", "metrics", "weights", "more"):
        close(found[part], RECORDED[file][name][part], f"{name}/{part}")
