"""Recorded numbers are those of one thread: several add up in another order, and a bias that stands before a BatchNorm,
whose gradient is rounding noise, shows it. Two processes of one thread each are also quicker here than two of two.
"""

import gc
import os
from pathlib import Path

import pytest
import torch

from espnet3_lite.config import environment
from espnet3_lite.espnet.data.contract import KINDS

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start
#: What is written need not outlive a power cut here: tests that save fifty checkpoints would mostly wait for the disk.
#: In the processes that tests start nothing is changed.
os.fsync = os.fstat

#: Folders whose tests start no process and train for a moment only: ``pytest -n 2 -m quick`` takes under a minute.
QUICK = {"config", "hook_order", "layers", "loops", "metrics", "module", "optim", "trainer", "typing"}


TESTS = Path(__file__).parent
#: To import them puts a device under torch: that is for processes of their own.
collect_ignore = ["helpers/fake_cuda.py", "helpers/fake_gpu_cases.py"]


def is_quick(path):
    """True for what lies in one of those folders."""
    return TESTS in path.parents and path.relative_to(TESTS).parts[0] in QUICK


def pytest_ignore_collect(collection_path, config):
    """With ``-m quick`` the other folders are not even read, which would take as long as many of its tests."""
    return True if config.option.markexpr == "quick" and not is_quick(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collecting tests makes much and throws little away, so that looking for garbage there is in vain; what is there
    at the end stays, and need not be looked at in the tests, some of which look for garbage often.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Mark the tests of the quick tier."""
    for item in items:
        if is_quick(Path(item.path)) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True)
def nothing_taken_from_the_environment(monkeypatch):
    """What one test's configuration took from there is not masked in another's messages."""
    monkeypatch.setattr(environment, "_TAKEN", {})


@pytest.fixture(autouse=True)
def no_kind_of_value_stays():
    """What a recipe of one test registers is not known in another."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)
