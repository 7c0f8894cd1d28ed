"""What is written for a GPU, on a device that is called one (tests/helpers/fake_cuda.py). Needs a compiler of C++."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the fake device with"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(case) to what it printed."""
    folder, home = tmp_path_factory.mktemp("fake_cuda"), Path(torch.__file__).parent
    library, includes = folder / "libfake_cuda.so", (home / "include", home / "include/torch/csrc/api/include")
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", *(f"-I{path}" for path in includes)]
    links = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    made = subprocess.run(
        [*command, "-o", str(library), str(HELPERS / "fake_cuda.cpp"), *links], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr

    def run(case):
        environment = {**os.environ, "FAKE_CUDA_LIBRARY": str(library)}
        ended = subprocess.run(
            [sys.executable, str(HELPERS / "fake_gpu_cases.py"), str(folder), case],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run


def test_the_host_waits_once_a_step_and_once_more_to_clip_or_scale(run):
    waits = run("waits")
    for name, expected in {"plain": 1, "bar": 1, "windows": 1, "bf16-mixed": 1, "clipped": 2, "16-mixed": 2}.items():
        assert sum(waits[name].values()) == pytest.approx(expected, abs=0.06), waits[name]
    assert sum(waits["16-mixed, clipped"].values()) == pytest.approx(2, abs=0.06), waits["16-mixed, clipped"]


def test_weights_are_those_of_a_cpu(run):
    for name, difference in run("trained").items():
        assert difference < (0.02 if name == "bf16-mixed" else 1e-5), (name, difference)


def test_a_run_that_was_cut_goes_on_to_the_same_bits(run):
    found = run("resumed")
    assert found.pop("on a CPU") == {"step": 18, "device": "cpu"}
    assert found["32-true"] == found["bf16-mixed"] == [18, 18, 0.0]
    assert found["16-mixed"] == [15, 15, 0.0]  # the scaler's first steps overflow


def test_batches_are_copied_on_a_stream_of_their_own(run):
    """The second of three while the first is computed, the third while the second is; the first has nothing beside."""
    found, copied = run("copied_ahead"), ["wait_stream", "record_event"]
    assert found["in turn"] == []
    assert found["ahead"] == [*copied, *copied, *2 * ["wait_event", "record_stream", "record_stream"]]
