"""Files that include others, and names that depend on the file: as ESPnet3's `load_and_merge_config` has it."""

import sys

import pytest

from espnet3_lite.config import load_config
from espnet3_lite.config.files import find_template
from espnet3_lite.exceptions import MisconfigurationException


def _write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_defaults_are_merged_before_the_file_itself(tmp_path):
    _write(
        tmp_path,
        main="defaults:\n  - base\n  - model: small\n  - optim: null\nlr: 2\nmodel: {depth: 5}\n",
        base="lr: 1\nseed: 3\n",
        model__small="width: 4\ndepth: 1\n",
    )
    assert load_config(tmp_path / "main.yaml") == {"lr": 2, "seed": 3, "model": {"width": 4, "depth": 5}}


def test_self_may_come_first(tmp_path):
    _write(tmp_path, main="defaults: [_self_, base]\nlr: 2\n", base="lr: 1\n")
    assert load_config(tmp_path / "main.yaml") == {"lr": 1}


def test_defaults_of_defaults_and_paths(tmp_path):
    _write(tmp_path, main="defaults: [sub/one.yaml]\n", sub__one="defaults: [two]\na: 1\n", sub__two="a: 0\nb: 2\n")
    assert load_config(tmp_path / "main.yaml") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("defaults: [bsae]\n", FileNotFoundError,
         "there is no configuration file '{}/bsae.yaml'; did you mean 'base.yaml'?"),
        ("defaults: [base.yml]\n", MisconfigurationException,
         "{}/main.yaml: defaults: 'base.yml' ends in '.yml'; only .yaml files are included"),
        ("defaults: [main]\n", MisconfigurationException, "{}/main.yaml: its defaults lead back to itself"),
        ("defaults: [3]\n", MisconfigurationException, "{}/main.yaml: defaults: 3 is neither a name nor 'key: name'"),
    ],
)  # fmt: skip
def test_broken_defaults(tmp_path, text, error, message):
    _write(tmp_path, main=text, base="lr: 1\n")
    with pytest.raises(error) as caught:
        load_config(tmp_path / "main.yaml")
    assert str(caught.value) == message.format(tmp_path)


@pytest.mark.parametrize("content", [b"a: \xff\xfe", "a: 1".encode("utf-16")])
def test_a_file_that_is_no_utf8_is_named(tmp_path, content):
    (tmp_path / "main.yaml").write_bytes(content)
    with pytest.raises(MisconfigurationException, match=r"main.yaml is not text in UTF-8 \('utf-8' codec can't decode"):
        load_config(tmp_path / "main.yaml")


def test_self_name_is_the_last_files_name_and_survives_a_copy(tmp_path):
    _write(tmp_path, template="exp_tag: ${self_name:}\nexp_dir: exp/${exp_tag}\n", asr="seed: 1\n")
    config = load_config(tmp_path / "template.yaml", tmp_path / "asr.yaml")
    assert config.exp_dir == "exp/asr"
    (tmp_path / "copy.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "copy.yaml").exp_dir == "exp/asr"


def test_paths_are_relative_to_the_file_they_stand_in(tmp_path):
    _write(
        tmp_path, template__base="tokens: ${load_line:tokens.txt}\nreadme: '${config_path:../a b.md}'\n", main="x: 1\n"
    )
    (tmp_path / "template" / "tokens.txt").write_text("<blank>\n a \nb\n")
    config = load_config(tmp_path / "template" / "base.yaml", tmp_path / "main.yaml")
    assert config.tokens == ["<blank>", "a", "b"]
    assert config.readme == str(tmp_path.resolve() / "a b.md")


def test_a_recipe_finds_its_template(tmp_path):
    _write(
        tmp_path / "egs3",
        TEMPLATE__asr__conf__training="exp_tag: ${self_name:}\nrepo: x/${set_corpus_and_system:}_${exp_tag}\nlr: 1\n",
        an4__asr__conf__tuning__small="lr: 2\n",
    )
    recipe = tmp_path / "egs3/an4/asr/conf/tuning/small.yaml"
    template = find_template(recipe)
    assert template == tmp_path / "egs3/TEMPLATE/asr/conf/training.yaml"
    assert load_config(template, recipe) == {"exp_tag": "small", "repo": "x/an4_asr_small", "lr": 2}
    assert find_template(recipe, "inference.yaml") is None
    assert find_template(tmp_path / "training.yaml") is None


def test_a_template_is_found_in_an_installed_egs3(tmp_path, monkeypatch):
    _write(tmp_path / "site/egs3", TEMPLATE__asr__conf__training="lr: 1\n")
    _write(tmp_path / "home/egs3", an4__asr__conf__training="lr: 2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "egs3", raising=False)  # another test's recipe
    found = find_template(tmp_path / "home/egs3/an4/asr/conf/training.yaml")
    assert found == tmp_path / "site/egs3/TEMPLATE/asr/conf/training.yaml"
