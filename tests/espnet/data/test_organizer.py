"""The `dataset` block: entries, transforms, and which preprocessor which split gets."""

import logging

import pytest
from data_parts import Spell, Suffix, entries_of, shout, write_recipe

from espnet3_lite.config import Config
from espnet3_lite.espnet.data.organizer import DataOrganizer, DatasetConfig
from espnet3_lite.exceptions import MisconfigurationException

SPELL = {"_target_": "data_parts.Spell"}


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe")


@pytest.fixture
def entries(recipe):
    return entries_of(recipe)


def preprocessor_of(combined):
    (pair,) = {id(preprocessor): preprocessor for _, preprocessor in combined.transforms}.values()
    return pair


def test_splits_and_samples(entries, recipe):
    test = [{"name": "eval", "data_src_args": {"folder": str(recipe / "wav"), "stop": 3}}]
    organizer = DataOrganizer(**entries, test=test)
    assert (len(organizer.train), len(organizer.valid), len(organizer.test["eval"])) == (8, 3, 3)
    assert organizer.test is organizer.test_sets
    assert organizer.train[2]["text"] == "zero"
    assert organizer.train.use_espnet_preprocessor is False
    assert repr(organizer).startswith("DataOrganizer(train=CombinedDataset(len=8, datasets=[Digits(len=8)])")


def test_from_a_config_with_instances_nested_or_not(entries):
    block = {"_target_": "espnet3_lite.espnet.data.organizer.DataOrganizer", "preprocessor": SPELL, **entries}
    from espnet3_lite.config.targets import instantiate

    for recursive in (False, True):
        if recursive:  # Hydra then builds the preprocessor first, so its own arguments must be complete
            block["preprocessor"] = {**SPELL, "train": False}
        organizer = instantiate(Config.create({"dataset": {**block, "_recursive_": recursive}}).dataset)
        assert organizer.train[0]["text"].tolist() == [26, 5, 18, 15]
        assert [preprocessor_of(organizer.train).train, preprocessor_of(organizer.valid).train] == [True, False]


def test_entries_as_dataclass_with_transform(entries):
    entries["train"] = [
        DatasetConfig(data_src_args=entries["train"][0]["data_src_args"], transform=shout),
        {**entries["train"][0], "transform": {"_target_": "data_parts.Suffix", "suffix": "?"}},
    ]
    organizer = DataOrganizer(**entries, preprocessor=Suffix("."))
    assert len(organizer.train) == 16
    assert [organizer.train[0]["text"], organizer.train[8]["text"]] == ["ZERO.", "zero?."]
    assert organizer.valid[0]["text"].endswith(".")


def test_shared_config_of_an_espnet_preprocessor(entries, recipe):
    test = [{"data_src_args": {"folder": str(recipe / "wav")}}]
    organizer = DataOrganizer(**entries, test=test, preprocessor={**SPELL, "gain": 2.0})
    train, valid = preprocessor_of(organizer.train), preprocessor_of(organizer.valid)
    assert (train.train, valid.train, train.gain, valid.gain) == (True, False, 2.0, 2.0)
    assert organizer.test["local"].preprocessor is valid
    assert organizer.train.use_espnet_preprocessor and organizer.test["local"].use_espnet_preprocessor
    assert organizer.preprocessor is train


def test_shared_config_of_a_plain_callable_is_built_once(entries):
    organizer = DataOrganizer(**entries, preprocessor={"_target_": "data_parts.Suffix"})
    assert preprocessor_of(organizer.train) is preprocessor_of(organizer.valid)


def test_train_flag_in_the_config_is_ignored_with_a_warning(entries):
    with pytest.warns(UserWarning, match="preprocessor.train=True is ignored"):
        organizer = DataOrganizer(**entries, preprocessor={**SPELL, "train": True})
    assert preprocessor_of(organizer.valid).train is False


def test_split_config_merges_shared_keys(entries):
    config = {
        "gain": 3.0,
        "settings": {"a": 1, "b": 2},
        "train": {**SPELL, "settings": {"b": 5}},
        "valid": {**SPELL, "gain": 4.0},
        "test": {"_target_": "data_parts.Suffix", "_partial_": False},
    }
    config = {key: value for key, value in config.items() if key != "test"}
    organizer = DataOrganizer(**entries, preprocessor=Config.create({"p": config}).p)
    train, valid = preprocessor_of(organizer.train), preprocessor_of(organizer.valid)
    assert (train.gain, train.settings, train.train) == (3.0, {"a": 1, "b": 5}, True)
    assert (valid.gain, valid.settings, valid.train) == (4.0, {"a": 1, "b": 2}, False)


def test_split_config_falls_back(entries, recipe):
    test = [{"data_src_args": {"folder": str(recipe / "wav")}}]
    with pytest.warns(UserWarning) as caught:
        organizer = DataOrganizer(**entries, test=test, preprocessor={"train": {**SPELL, "gain": 2.0}})
    assert [str(warning.message) for warning in caught] == [
        "dataset.preprocessor has no 'valid': dataset.valid uses that of 'train'.",
        "dataset.preprocessor has no 'test': dataset.test uses that of 'valid'.",
    ]
    valid = preprocessor_of(organizer.valid)
    assert (valid.gain, valid.train) == (2.0, False)
    assert organizer.test["local"].preprocessor.gain == 2.0


def test_split_config_without_train_leaves_train_alone(entries):
    with pytest.warns(UserWarning, match="has no 'train': it has none"):
        organizer = DataOrganizer(**entries, preprocessor={"valid": SPELL})
    assert organizer.train[0]["text"] == "zero"
    assert organizer.train.use_espnet_preprocessor is False
    assert organizer.valid[0]["text"].tolist()[0] < 27


def test_instance_is_copied_for_training_alone(entries):
    given = Spell(train=True, gain=2.0)
    organizer = DataOrganizer(**entries, preprocessor=given)
    train = preprocessor_of(organizer.train)
    assert preprocessor_of(organizer.valid) is given and given.train is False
    assert train is not given and train.train is True
    assert DataOrganizer(**entries, preprocessor=given, train_mode=False).preprocessor.train is False


def test_statistics_without_augmentation(entries):
    organizer = DataOrganizer(**entries, preprocessor={**SPELL, "gain": 2.0})
    plain, loud = organizer.for_statistics()["train"], organizer.for_statistics(train_mode=True)["train"]
    speech = organizer.train[0]["speech"]
    assert (loud[0]["speech"] == speech).all()
    assert (plain[0]["speech"] * 2 == speech).all()
    assert plain.datasets[0] is organizer.train.datasets[0]
    assert organizer.for_statistics()["valid"] is organizer.valid
    assert preprocessor_of(organizer.train).train is True
    with pytest.raises(MisconfigurationException, match="are needed to collect statistics"):
        DataOrganizer().for_statistics()


def test_summary(entries, recipe, caplog):
    test = [{"name": "eval", "data_src_args": {"folder": str(recipe / "wav")}}]
    entries["train"][0]["transform"] = shout
    with caplog.at_level(logging.INFO):
        DataOrganizer(**entries, test=test, preprocessor=Suffix()).log_summary()
        DataOrganizer().log_summary(logging.getLogger("mine"))
    assert [record.getMessage() for record in caplog.records] == [
        "train: 8 samples of Digits, transform shout, preprocessor Suffix",
        "valid: 3 samples of Digits, preprocessor Suffix",
        "test[eval]: 11 samples of Digits, preprocessor Suffix",
        "train: no data set",
        "valid: no data set",
    ]
    assert caplog.records[-1].name == "mine"


def test_summary_of_several_data_sets_has_their_sum(entries, caplog):
    with caplog.at_level(logging.INFO):
        DataOrganizer(**{**entries, "train": entries["train"] + entries["valid"]}).log_summary()
    assert [record.getMessage() for record in caplog.records] == [
        "train: 11 samples in 2 data sets",
        "train[0]: 8 samples of Digits",
        "train[1]: 3 samples of Digits",
        "valid: 3 samples of Digits",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": None}, "dataset.train is given without dataset.valid; give both or none"),
        ({"train": None}, "dataset.valid is given without dataset.train"),
        ({"train": ["wav"]}, r"dataset.train\[0\] must be a mapping with data_src and data_src_args, got 'wav'"),
        ({"train": {"data_src": "x.y"}}, r"dataset.train must be a list of entries, .* got \{'data_src': 'x.y'\}"),
        ({"recipe_dir": None}, r"dataset.train\[0\] has no data_src"),
        ({"preprocessor": 3}, "a preprocessor must be callable, got 3"),
        ({"preprocessor": {"_traget_": "x.y"}}, "needs a `_target_`.*did you mean '_traget_'"),
        ({"preprocessor": {"_target_": "data_parts.Spel"}}, "did you mean 'Spell'"),
        ({"preprocessor": {"_target_": "builtins.dict"}}, r"a preprocessor must be callable, got \{\}"),
        ({"preprocessor": {"train": SPELL, "valid": {"gain": 2}}}, "needs a `_target_`"),
    ],
)
def test_blocks_that_cannot_be_built(entries, change, message):
    with pytest.raises(MisconfigurationException, match=message):
        DataOrganizer(**{**entries, **change})


def test_transform_that_is_no_function(entries):
    entries["train"][0]["transform"] = "shout"
    with pytest.raises(MisconfigurationException, match="a transform must be callable, got 'shout'"):
        DataOrganizer(**entries)


def test_unknown_key_of_an_entry_is_pointed_out(entries):
    entries["train"][0]["data_src_arg"] = {}
    with pytest.warns(UserWarning, match=r"train\[0\].data_src_arg is ignored; .*; did you mean 'data_src_args'"):
        DataOrganizer(**entries)


def test_two_test_sets_of_one_name(entries):
    test = [entries["train"][0], entries["valid"][0]]
    with pytest.raises(MisconfigurationException, match=r"test\[1\]: there is a test set 'local' already"):
        DataOrganizer(test=test, recipe_dir=entries["recipe_dir"])
