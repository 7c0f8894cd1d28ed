"""The wheel's recipes with espnet installed and Lightning absent: all load, and mini AN4 goes on to an average."""

import json
import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def recipes(espnet, tmp_path_factory):
    """A copy of the wheel's `egs3`, in which mini AN4's data and tokens are made by our command."""
    folder = tmp_path_factory.mktemp("recipes")
    package = espnet.run("-c", "import egs3; print(egs3.__path__[0])").stdout.strip()
    shutil.copytree(package, folder / "egs3")
    recipe = folder / "egs3/mini_an4/esp2_asr"
    os.environ["PATH"] = f"{HERE / 'tools'}{os.pathsep}{os.environ['PATH']}"
    for stage in ("create_dataset", "train_tokenizer"):
        espnet.run("-m", "espnet3_lite", "stage", stage, "conf/training_asr_transformer.yaml", cwd=recipe)
    return folder


@pytest.mark.reference
def test_all_load_and_those_whose_packages_are_there_train_and_resume(espnet, recipes, tmp_path):
    espnet.run(HERE / "recipe_runs.py", recipes, tmp_path / "table.jsonl")
    table = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert len(table) == 10
    assert [row["configuration"] for row in table if row["loads"] is not True] == []
    tried = [row for row in table if "mini_an4" in row["configuration"]]
    needs_more = [row for row in tried if row["trains"] is not True]
    assert all(
        "transducer" in row["configuration"] or row["configuration"].endswith("/training.yaml") for row in needs_more
    )
    assert all(row["resumes"] is True for row in tried if row["trains"] is True)


@pytest.mark.reference
def test_mini_an4_from_its_statistics_to_an_average(espnet, recipes):
    recipe, config = recipes / "egs3/mini_an4/esp2_asr", "conf/training_asr_transformer.yaml"
    espnet.run("-m", "espnet3_lite", "stage", "collect_stats", config, cwd=recipe)
    theirs = (recipe / "exp/stats/train/feats_shape").read_text()
    espnet.run("-m", "espnet3_lite", "collect-stats", config, "stats_dir=exp/ours", cwd=recipe)
    assert sorted((recipe / "exp/ours/train/feats_shape").read_text().split("\n")) == sorted(theirs.split("\n"))
    words = ("-m", "espnet3_lite", "train", config, "exp_tag=run")
    espnet.run(*words, "trainer.max_epochs=1", cwd=recipe)
    said = espnet.run(*words, "trainer.max_epochs=2", cwd=recipe).stdout
    assert "trained 2 epochs" in said
    (recipe / "exp/run/valid.loss.ave_2best.pth").unlink()
    espnet.run("-m", "espnet3_lite", "average", "exp/run", cwd=recipe)
    assert (recipe / "exp/run/valid.loss.ave_2best.pth").exists()
