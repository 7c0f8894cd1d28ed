"""Recorded numbers are those of one thread: several add up in another order, and a bias that stands before a BatchNorm,
whose gradient is rounding noise, shows it. Two processes of one thread each are also quicker here than two of two.
"""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start

#: Folders whose tests start no process and train for a moment only: ``pytest -n 2 -m quick`` takes under a minute.
QUICK = {"config", "hook_order", "layers", "loops", "metrics", "module", "optim", "trainer", "typing"}


def pytest_collection_modifyitems(items):
    """Mark the tests of the quick tier."""
    here = Path(__file__).parent
    for item in items:
        path = Path(item.path)
        room = path.relative_to(here).parts[0] if here in path.parents else ""
        if room in QUICK and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)
