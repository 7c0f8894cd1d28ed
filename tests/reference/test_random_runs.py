"""Runs with random settings, modules, callbacks and calls: each by Lightning itself and by this package."""

import json
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "golden" / "random_runs_lab.py"


@pytest.mark.reference
def test_random_runs_are_lightnings(lightning):
    traits = json.loads(lightning.run(LAB, 0, 250).stdout.splitlines()[-1])
    rare = ("manual", "resume", "data_module", "metric", "ends_epoch", "stop", "ReduceLROnPlateau", "EarlyStopping",
            "ModelCheckpoint", "LearningRateMonitor", "accumulate_grad_batches", "val_check_interval")  # fmt: skip
    assert all(traits[trait] >= 10 for trait in rare), traits
