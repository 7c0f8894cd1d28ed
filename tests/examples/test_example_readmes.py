"""What the lessons' READMEs tell a reader to type, and the files they name, exist."""

import configparser
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from espnet3_lite.cli.commands import _parser
from espnet3_lite.config import load_config
from espnet3_lite.config.schema import check_config

ROOT = Path(__file__).parents[2]
READMES = sorted(path for path in (ROOT / "examples").glob("*/README.md") if path.parent.name != "torchrun")
LESSONS = [readme.parent.name for readme in READMES]


def commands(readme, program):
    """The lines of a README's fenced blocks that begin with `program`, as words without the comment."""
    blocks = re.findall(r"^```\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program)]


def every(program):
    found = [(readme, words) for readme in READMES for words in commands(readme, program)]
    return [pytest.param(readme, words, id=f"{readme.parent.name}: {' '.join(words)}") for readme, words in found]


def test_each_lesson_says_how_to_install_to_train_and_to_test():
    assert {"digits", "gan", "spoken_digits"} <= set(LESSONS)
    for readme in READMES:
        trained = [words[2] for words in commands(readme, "espnet3-lite train")]
        assert f"examples/{readme.parent.name}/train.yaml" in trained
        assert commands(readme, "pip install"), readme
        assert commands(readme, "python -m") or commands(readme, "espnet3-lite test"), readme


@pytest.mark.parametrize(("readme", "words"), every("espnet3-lite"))
def test_commands_are_accepted_and_their_configurations_are_right(readme, words, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    arguments = [word.replace("<folder>", str(tmp_path)) for word in words[1:]]
    parsed = _parser().parse_args(arguments)
    if not hasattr(parsed, "config"):
        return
    files = [word for word in parsed.config if "=" not in word]
    changes = [word for word in parsed.config if "=" in word]
    config = load_config(*files, overrides=changes)
    check_config(config)
    assert files and all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(("readme", "words"), every("python -m"))
def test_scripts_take_the_arguments_and_want_the_files_that_training_writes(readme, words, monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="the digits are part of scikit-learn")
    module = importlib.import_module(words[2])
    monkeypatch.chdir(tmp_path)  # nothing was trained here
    monkeypatch.setattr(sys, "argv", [words[2], *words[3:]])
    weights = next(word for word in words if word.endswith(".pth"))
    with pytest.raises(FileNotFoundError, match=re.escape(weights)):
        module.main()
    for name in (word for word in words if word.endswith(".pth")):
        exp_dir, file = name.rsplit("/", 1)
        config = load_config(ROOT / "examples" / exp_dir.removeprefix("exp/") / "train.yaml")
        averages = [f"{monitor.replace('/', '.')}.ave_{k}best.pth" for monitor, k, _ in config.best_model_criterion]
        assert config.exp_dir == exp_dir and file in averages


@pytest.mark.parametrize(("readme", "words"), every("pip install"))
def test_extras_are_declared(readme, words):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert words[2] == "-e", "from the repository, where the lessons are"
    (extras,) = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[3]).groups()
    assert set((extras or "dev").split(",")) <= set(setup["options.extras_require"])


@pytest.mark.parametrize("readme", READMES, ids=LESSONS)
def test_files_that_are_linked_exist_and_each_source_is_explained(readme):
    text = readme.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert all((readme.parent / link).exists() for link in links if "://" not in link)
    sources = {path.name for path in readme.parent.iterdir() if path.suffix in {".py", ".yaml"}} - {"__init__.py"}
    assert sources <= set(links)
