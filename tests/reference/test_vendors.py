"""The real wandb (offline) and mlflow (sqlite), Lightning's own loggers and objects, Optuna's pruning callback."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
LAB = Path(__file__).parents[1] / "golden" / "vendors_lab.py"


@pytest.fixture
def run(vendors, tmp_path):
    def run(case):
        done = vendors.run("-W", "ignore", LAB, case, tmp_path)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        return json.loads(line.removeprefix("RESULT "))

    return run


def test_wandb_offline_read_back(run):
    found = run("wandb_offline")
    assert found["config"] == {"width": 1, "slope": 1.0}
    assert found["summary"] == {"a-epoch": 1.0, "a-train/loss": 1.0, "a-val": 2.0, "trainer/global_step": 3}
    assert [(row["trainer/global_step"], row["a-train/loss"]) for row in found["rows"] if "a-train/loss" in row] == [
        (0, 0.5), (1, 1.0), (2, 0.5), (3, 1.0),
    ]  # fmt: skip
    assert [(row["trainer/global_step"], row["a-val"]) for row in found["rows"] if "a-val" in row] == [
        (1, 1.0),
        (3, 2.0),
    ]


def test_mlflow_read_back_through_its_client(run):
    found = run("mlflow_local")
    assert found["given"] == found["own"] == {
        "status": "FINISHED", "name": "first", "params": {"width": "1", "slope": "1.0"}, "tag": "me", "val": 2.0,
        "train/loss": [[0, 0.5], [1, 1.0], [2, 0.5], [3, 1.0]], "files": ["model/checkpoints/epoch=0-step=2"],
    }  # fmt: skip
    assert set(found["folders"]) >= {"runs.db", "own"}


def test_lightnings_own_loggers(run):
    found = run("lightnings_loggers")
    assert found["csv"][0].split(",") == ["epoch", "step", "train/loss", "val"]
    assert [line for line in found["csv"][1:] if line.split(",")[2]] == [
        "0,0,0.5,", "0,1,1.0,", "1,2,0.5,", "1,3,1.0,",
    ]  # fmt: skip
    assert found["board"] == ["events", "hparams"] and found["wandb"] == 1.0
    assert found["best"] == found["theirs"] == "csv/lightning_logs/version_0/checkpoints/epoch=1-step=4.ckpt"


def test_optunas_pruning_callback(run):
    found = run("optuna_prunes")
    assert found["states"] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert found["values"] == [{"0": 0.0, "1": 0.0, "2": 0.0}, {"0": 1.0}, {"0": 1.0}]


@pytest.mark.parametrize("case", ["torchmetrics_collections", "hydra_template"])
def test_a_program_of_a_public_repository_equals_lightnings(run, case):
    found = run(case)
    for part, theirs in found["theirs"].items():
        assert len(theirs) if hasattr(theirs, "__len__") else theirs
        assert found["ours"][part] == theirs, part


def test_lightnings_objects(run):
    found = run("lightnings_objects")
    assert "take `LightningModule` from `espnet3_lite.compat`" in found["told"]["module"]
    assert "take `espnet3_lite.callbacks.EarlyStopping`" in found["told"]["callback"]
    assert "take `espnet3_lite.callbacks.Timer`" in found["told"]["timer"]
    assert "take `LightningDataModule` from `espnet3_lite.compat`" in found["told"]["data"]
    assert found["counted"] == 4 and found["unknown"] == []


def test_its_names_and_its_gradient_norms(run):
    found = run("grad_norms")
    assert found["names"] == found["close"] == [True] * 3
    assert found["missing"] == []
