"""Runs with random settings, modules, callbacks and calls: each by Lightning or ESPnet3 and by this package."""

import json
from pathlib import Path

import pytest

LABS = Path(__file__).parents[1] / "golden"
TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2


@pytest.mark.reference
def test_random_runs_are_lightnings(lightning):
    traits = json.loads(lightning.run(LABS / "random_runs_lab.py", 0, 250).stdout.splitlines()[-1])
    rare = ("manual", "resume", "data_module", "metric", "ends_epoch", "stop", "ReduceLROnPlateau", "EarlyStopping",
            "ModelCheckpoint", "LearningRateMonitor", "accumulate_grad_batches", "val_check_interval")  # fmt: skip
    assert all(traits[trait] >= 10 for trait in rare), traits


@pytest.mark.reference
def test_random_runs_of_two_ranks_are_lightnings(lightning):
    done = lightning.run(*TORCHRUN, LABS / "random_ranks_lab.py", 0, 120)
    traits = json.loads(done.stdout.splitlines()[-1])
    rare = ("manual", "resume", "data_module", "metric", "stop", "EarlyStopping", "ModelCheckpoint", "logs",
            "LearningRateMonitor", "accumulate_grad_batches", "ddp", "ddp_find_unused_parameters_true")  # fmt: skip
    assert all(traits[trait] >= 10 for trait in rare), traits


@pytest.mark.reference
def test_random_recipes_are_espnet3s(lightning):
    traits = json.loads(lightning.run(LABS / "random_recipes_lab.py", 0, 150).stdout.splitlines()[-1])
    rare = ("named", "nan", "batch_norm", "val_check_interval", "accumulate_grad_batches", "gradient_clip_val",
            "NoamLR", "ReduceLROnPlateau", "CosineAnnealingWarmupRestarts", "WarmupLR", "StepLR")  # fmt: skip
    assert all(traits[trait] >= 10 for trait in rare), traits


@pytest.mark.reference
def test_random_recipes_on_two_ranks_are_espnet3s(lightning):
    traits = json.loads(lightning.run(*TORCHRUN, LABS / "random_recipes_lab.py", 0, 80).stdout.splitlines()[-1])
    rare = ("named", "batch_norm", "val_check_interval", "accumulate_grad_batches", "gradient_clip_val", "NoamLR")
    assert all(traits[trait] >= 8 for trait in rare), traits
