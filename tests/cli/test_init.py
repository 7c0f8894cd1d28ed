"""`espnet3-lite init`: the recipe that it writes trains, and is complete in an installed package too."""

import configparser
import csv
import sys
from pathlib import Path

import pytest
import torch

from espnet3_lite.cli.commands import main
from espnet3_lite.cli.new_recipe import TEMPLATE, write_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def put_back(monkeypatch):
    """A recipe's folder on the path, and its modules, are a process's own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("data", "model"):
        sys.modules.pop(name, None)


def test_the_recipe_trains_is_tested_and_goes_on(tmp_path, monkeypatch, capsys, put_back):
    pytest.importorskip("sklearn")
    folder = tmp_path / "mine"
    main(["init", str(folder)])
    told = capsys.readouterr().out
    assert f"cd {folder} && espnet3-lite train conf/training.yaml" in told
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md", "conf/training.yaml", "data.py", "model.py",
    ]  # fmt: skip
    monkeypatch.chdir(folder)
    main(["train", "conf/training.yaml", "trainer.max_epochs=2", "--quiet"])
    capsys.readouterr()
    main(["test", "conf/training.yaml", "--quiet"])
    accuracy = float(capsys.readouterr().out.split("test/acc ")[1].split()[0])
    assert 0.8 < accuracy < 1.0  # of 300 images; ten classes
    weights = torch.load(folder / "exp/recipe_run/valid.acc.ave_2best.pth", weights_only=True)
    assert list(weights)[0] == "network.0.weight"  # the module's own names
    main(["train", "conf/training.yaml", "trainer.max_epochs=3", "--quiet"])
    assert "trained 3 epochs, 114 steps" in capsys.readouterr().out
    (log,) = (folder / "exp/recipe_run").rglob("metrics.csv")
    rows = list(csv.DictReader(log.open()))
    assert [row["valid/acc"] != "" for row in rows].count(True) == 3


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "model.py").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path)])
    assert ended.value.code == 2
    assert f"init: {tmp_path} exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "model.py").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_the_wheel_has_all_of_the_recipe():
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    patterns = declared["options.package_data"]["espnet3_lite"].split()
    packed = {path for pattern in patterns for path in (ROOT / "espnet3_lite").glob(pattern)}
    others = [p for p in TEMPLATE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts]
    assert others and set(others) <= packed


def test_what_is_to_be_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install scikit-learn && espnet3-lite train" in write_recipe(tmp_path / "new")[-1]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, meant",
    [
        (["trian", "x.yaml"], "invalid choice: 'trian'"),
        (["avarage", "exp"], "did you mean 'average'?"),
        (["trian", "x.yaml"], "did you mean 'train'?"),
        (["train", "x.yaml", "--frehs"], "unrecognized arguments: --frehs; did you mean '--fresh'?"),
        (["test", "x.yaml", "--chekpoint=a.ckpt"], "did you mean '--checkpoint'?"),
    ],
)
def test_the_nearest_command_or_option_is_suggested(words, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert meant in capsys.readouterr().err


def test_nothing_is_suggested_for_a_word_that_is_like_none(capsys):
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    assert "did you mean" not in capsys.readouterr().err
