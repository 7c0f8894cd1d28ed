"""Running the lessons' commands as a user does: in a process of their own, from the repository's root."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
#: One thread: two test processes of one thread each beat one another less, and sums have one order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words):
    """``espnet3-lite ...`` or ``python -m examples...``, with this interpreter."""
    module = ("espnet3_lite",) if not str(words[0]).startswith("examples.") else ()
    return [sys.executable, "-m", *module, *map(str, words)]


def run(*words):
    """Run to the end; returns what was printed on stdout."""
    process = subprocess.run(command(*words), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == 0, f"{words}\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
    return process.stdout


def run_until(line, signal_name, *words):
    """Run, and send a signal when a line with `line` is logged; returns the exit code."""
    process = subprocess.Popen(
        command(*words), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        seen = False
        for printed in process.stdout:
            if not seen and line in printed:
                seen = True
                process.send_signal(getattr(signal, signal_name))
    assert seen, f"{line!r} was never logged"
    return process.returncode


def printed_number(name, output):
    """The number after `name` at the beginning of a line, as the commands print results."""
    found = re.findall(rf"^ *{re.escape(name)} +([\d.e+-]+)", output, flags=re.MULTILINE)
    assert len(found) == 1, f"{name!r} is printed {len(found)} times:\n{output[-2000:]}"
    return float(found[0])


def assert_same_values(first, second, place=""):
    """Two nested structures of tensors and plain values, bit by bit."""
    assert type(first) is type(second), place
    if isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first:
            assert_same_values(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), place
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_values(*pair, f"{place}/{index}")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), place
    else:
        assert first == second, place
