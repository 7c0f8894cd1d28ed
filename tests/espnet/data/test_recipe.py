"""Loading a recipe's own data set, with espnet's names standing for ours, also in other processes."""

import multiprocessing
import pickle
import sys

import pytest
from data_parts import write_recipe

from espnet3_lite.espnet.data.contract import BaseDataset
from espnet3_lite.espnet.data.recipe import instantiate_dataset_reference, load_dataset_module
from espnet3_lite.espnet.import_aliases import _is_there
from espnet3_lite.exceptions import MisconfigurationException

pytestmark = pytest.mark.skipif(_is_there("espnet3"), reason="espnet is installed: nothing stands in for it")


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe")


def length_and_text(pickled):
    """Run in a spawned process, which has not seen the recipe."""
    dataset = pickle.loads(pickled)
    return len(dataset), dataset[1]["text"], type(dataset).__name__


def test_local_recipe(recipe):
    entry = {"data_src_args": {"folder": str(recipe / "wav"), "stop": 2}, "name": "ignored here"}
    dataset = instantiate_dataset_reference(entry, recipe)
    assert isinstance(dataset, BaseDataset)
    assert type(dataset).__name__ == "Digits"
    assert [len(dataset), dataset[0]["text"], dataset[1]["text"]] == [2, "zero", "zero"]


def test_espnet_is_gone_after_the_import(recipe):
    before = set(sys.modules)
    load_dataset_module(recipe_dir=recipe)
    added = sorted(set(sys.modules) - before)
    assert len(added) == 2 and added[1] == f"{added[0]}.dataset"
    assert added[0].startswith("_recipe_dataset_")


def test_a_recipe_is_loaded_once_and_recipes_stay_apart(recipe, tmp_path):
    first = load_dataset_module(recipe_dir=recipe)
    assert load_dataset_module(recipe_dir=str(recipe)) is first
    other = tmp_path / "other" / "dataset"
    other.mkdir(parents=True)
    (other / "dataset.py").write_text(
        "from espnet3.components.data.base_dataset import BaseDataset\n"
        "class Dataset(BaseDataset):\n"
        "    def __getitem__(self, index): ...\n"
    )
    assert load_dataset_module(recipe_dir=other.parent).Dataset is not first.Dataset


def test_spawned_process_gets_the_data_set(recipe):
    entry = {"data_src_args": {"folder": str(recipe / "wav"), "start": 1}}
    dataset = instantiate_dataset_reference(entry, recipe)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(length_and_text, [pickle.dumps(dataset)]) == (10, "zero", "Digits")


def test_tag_of_a_recipe_below_egs3(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    task = tmp_path / "corpora" / "egs3" / "tiny_digits" / "asr"
    task.mkdir(parents=True)
    (recipe / "dataset").rename(task / "dataset")
    init = "from egs3.tiny_digits.asr.dataset.dataset import Digits as Dataset\n"
    (task / "dataset" / "__init__.py").write_text(init)
    entry = {"data_src": "tiny-digits/asr", "data_src_args": {"folder": str(recipe / "wav")}}
    try:
        assert len(instantiate_dataset_reference(entry, recipe_dir=task)) == 11
        dotted = {**entry, "data_src": "egs3.tiny_digits.asr.dataset"}
        assert len(instantiate_dataset_reference(dotted)) == 11
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "egs3"]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"dataset.train\[0\] has no data_src, and there is no dataset/__init__.py in recipe_dir"),
        ({"data_src": "  "}, "has no data_src"),
        ({"data_src": 3}, r"dataset.train\[0\].data_src must be 'recipe/task' or .* got 3"),
        ({"data_src": "json", "data_src_args": [1]}, r"data_src_args must be a mapping, got \[1\]"),
        ({"data_src": "no_such_corpus/asr"}, "'no_such_corpus/asr': No module named 'egs3.*PYTHONPATH"),
        ({"data_src": "nowhere.dataset"}, "cannot import the data set 'nowhere.dataset': No module named"),
        ({"data_src": "json"}, "json/__init__.py has no class named Dataset"),
        ({"data_src": "torch.utils.data"}, "Dataset must inherit BaseDataset and declare `fields`"),
    ],
)
def test_entries_that_name_nothing(tmp_path, entry, message):
    with pytest.raises(MisconfigurationException, match=message):
        instantiate_dataset_reference(entry, tmp_path, where="dataset.train[0]")


def test_no_recipe_at_all():
    with pytest.raises(MisconfigurationException, match=r"in recipe_dir \(None\)"):
        load_dataset_module()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from espnet3.parallel.parallel import set_parallel", "No module named 'espnet3.parallel'"),
        ("from espnet3.contract import set_parallel", "cannot import name 'set_parallel'"),
    ],
)
def test_something_of_espnet_that_nothing_stands_in_for(recipe, code, message):
    (recipe / "dataset" / "__init__.py").write_text(code)
    hint = ".*espnet is not installed, and espnet3_lite stands in .*BaseDataset"
    with pytest.raises(MisconfigurationException, match=message + hint):
        load_dataset_module(recipe_dir=recipe)


def test_a_recipe_that_breaks_is_loaded_anew_when_it_is_mended(recipe):
    init = recipe / "dataset" / "__init__.py"
    good = init.read_text()
    init.write_text("raise ValueError('half done')\n")
    with pytest.raises(ValueError, match="half done"):
        load_dataset_module(recipe_dir=recipe)
    init.write_text(good)
    assert load_dataset_module(recipe_dir=recipe).Dataset.__name__ == "Digits"
