"""The wheel's recipes with espnet, without Lightning: all train and resume, and mini AN4 goes on to an average."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORPORA = (
    "mini_an4/esp2_asr/conf/training_asr_transformer.yaml",
    "librispeech_100/esp2_asr/conf/tuning/training_e_branchformer.yaml",
    "spgispeech/esp2_asr/conf/tuning/train_asr_conformer6_n_fft512_hop_length256.yaml",
)


@pytest.fixture(scope="module")
def recipes(espnet, tmp_path_factory):
    """A copy of the wheel's `egs3`, in which the data and tokens of each corpus are made by our command."""
    folder = tmp_path_factory.mktemp("recipes")
    package = espnet.run("-c", "import egs3; print(egs3.__path__[0])").stdout.strip()
    shutil.copytree(package, folder / "egs3")
    espnet.run(HERE / "toy_corpora.py", folder)
    os.environ["PATH"] = f"{HERE / 'tools'}{os.pathsep}{os.environ['PATH']}"
    for config, stage in itertools.product(CORPORA, ("create_dataset", "train_tokenizer")):
        recipe, _, rest = config.partition("/conf/")
        espnet.run("-m", "espnet3_lite", "stage", stage, f"conf/{rest}", cwd=folder / "egs3" / recipe)
    return folder


@pytest.mark.reference
def test_all_load_and_train_and_resume_to_the_same_bits(espnet, recipes, tmp_path):
    espnet.run(HERE / "recipe_runs.py", recipes, tmp_path / "table.jsonl")
    table = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert len(table) == 10
    as_told = {"loads": True, "trains": True, "resumes": True}
    assert [row for row in table if {**row, **as_told} != row] == []


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
