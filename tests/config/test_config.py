"""`Config`: access, change, copies, merging and the round trip to YAML."""

import copy
import pickle

import pytest

from espnet3_lite.config import Config, ConfigKeyError, ConfigList, load_config, merge
from espnet3_lite.exceptions import MisconfigurationException


@pytest.fixture
def config():
    return Config.create(
        {
            "exp_dir": "exp/one",
            "seed": None,
            "trainer": {"max_epochs": 3, "root": "${exp_dir}/log", "callbacks": [{"patience": 2}, "${seed}"]},
            "shared": "${trainer}",
        }
    )


def test_access_by_item_and_attribute(config):
    assert config.trainer.max_epochs == config["trainer"]["max_epochs"] == 3
    assert config.trainer.root == "exp/one/log"
    assert config.trainer.callbacks[0].patience == 2
    assert config.trainer.callbacks[-1] is None
    assert config.shared.root == "exp/one/log"
    assert isinstance(config.trainer, Config) and isinstance(config.trainer.callbacks, ConfigList)


def test_mapping_manners(config):
    assert "seed" in config and "lr" not in config
    assert config.get("seed", 1) is None and config.get("lr", 1) == 1
    assert list(config) == ["exp_dir", "seed", "trainer", "shared"]
    assert dict(**config.trainer)["root"] == "exp/one/log"
    assert dict(config.trainer.items())["max_epochs"] == 3
    assert {"max_epochs", "root"} <= set(dir(config.trainer))
    assert hasattr(config, "trainer") and not hasattr(config, "lr")
    assert len(config.trainer.callbacks) == 2


def test_equality_is_of_resolved_values(config):
    plain = {"max_epochs": 3, "root": "exp/one/log", "callbacks": [{"patience": 2}, None]}
    assert config.trainer == plain and config.shared == config.trainer
    assert config.trainer.callbacks == plain["callbacks"]
    assert config.trainer.callbacks != [1] and config.trainer.callbacks != "text"


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda config: config.trianer, "the configuration has no key 'trianer'; did you mean 'trainer'?"),
        (lambda config: config["trainer"]["max_epoch"], "'trainer' has no key 'max_epoch'; did you mean 'max_epochs'?"),
        (lambda config: config.trainer.callbacks[0].zzz, "'trainer.callbacks[0]' has no key 'zzz'"),
        (lambda config: config.trainer.pop("max_step"), "'trainer' has no key 'max_step'; did you mean 'max_epochs'?"),
    ],
)
def test_a_missing_key_is_an_attribute_error_and_a_key_error(config, read, message):
    with pytest.raises(ConfigKeyError) as caught:
        read(config)
    assert str(caught.value) == message
    for kind in (KeyError, AttributeError, MisconfigurationException):
        assert isinstance(caught.value, kind)


def test_changes_are_seen_by_all_views_and_interpolations(config):
    trainer = config.trainer
    config.exp_dir = "exp/two"
    trainer["max_epochs"] = 9
    config.trainer.new = {"deep": (1, 2)}
    assert trainer.root == "exp/two/log" and config.shared.max_epochs == 9
    assert config.trainer.new.deep == [1, 2]
    del config.trainer.new
    assert "new" not in trainer
    assert trainer.pop("max_epochs") == 9 and "max_epochs" not in config.trainer


def test_lists_change_in_place(config):
    callbacks = config.trainer.callbacks
    callbacks.append({"patience": 5})
    callbacks[0] = "first"
    del callbacks[1]
    callbacks[1:] = [7, 8]
    assert callbacks == ["first", 7, 8] and callbacks[1:] == [7, 8]
    with pytest.raises(IndexError):
        callbacks[3]


def test_a_part_put_elsewhere_takes_its_values_along(config):
    other = Config.create({"part": config.trainer})
    config.exp_dir = "changed"
    assert other.part.root == "exp/one/log"
    assert Config.create(config).shared.root == "changed/log"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_deep_copies_stand_on_their_own(config, duplicate):
    twin = duplicate(config)
    twin.exp_dir = "exp/twin"
    assert twin.trainer.root == "exp/twin/log" and config.trainer.root == "exp/one/log"
    assert duplicate(config.trainer).root == "exp/one/log"
    assert duplicate(config.trainer.callbacks)[0].patience == 2


def test_containers_are_plain_and_independent(config):
    plain = config.to_container()
    assert type(plain) is dict and type(plain["trainer"]["callbacks"]) is list
    assert plain["shared"] == {"max_epochs": 3, "root": "exp/one/log", "callbacks": [{"patience": 2}, None]}
    plain["trainer"]["callbacks"][0]["patience"] = 99
    assert config.trainer.callbacks[0].patience == 2
    assert config.to_container(resolve=False)["trainer"]["root"] == "${exp_dir}/log"
    assert Config.to_container(config.trainer)["root"] == "exp/one/log"


def test_round_trip_through_yaml(config, tmp_path):
    (tmp_path / "kept.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "kept.yaml")
    assert again.to_container(resolve=False) == config.to_container(resolve=False)
    again.exp_dir = "moved"
    assert again.trainer.root == "moved/log"
    assert "${" not in config.to_yaml(resolve=True)


def test_objects_are_kept_as_they_are():
    thing = object()
    assert Config.create({"a": [thing]}).a[0] is thing


def test_create_refuses_what_is_no_mapping():
    with pytest.raises(MisconfigurationException, match=r"a Config is made from a mapping, not from \[1\]"):
        Config.create([1])


def test_files_are_merged_in_order_and_keys_keep_their_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  size: 1\n  layers: [1, 2]\nseed: 3\nfit: {}\n")
    (tmp_path / "b.yaml").write_text("model:\n  layers: [5]\nseed:\nfit:\n  ckpt_path: last\n")
    config = load_config(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert config == {"model": {"size": 1, "layers": [5]}, "seed": None, "fit": {"ckpt_path": "last"}}
    assert config.location("model", "size") == f"{tmp_path}/a.yaml, line 2"
    assert config.model.location("layers", 0) == f"{tmp_path}/b.yaml, line 2"
    assert config.location("fit", "ckpt_path") == f"{tmp_path}/b.yaml, line 5"
    config.model.size = 4
    assert config.location("model", "size") is None


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        # a mapping over an interpolation is laid over a copy of what it stands for; recorded from OmegaConf 2.3.1
        ({"c": {"p": 1, "q": 2}, "x": "${c}"}, {"x": {"q": 3}}, {"c": {"p": 1, "q": 2}, "x": {"p": 1, "q": 3}}),
        ({"x": "${missing}"}, {"x": {"q": 3}}, {"x": {"q": 3}}),
        ({"x": "${c}", "c": 4}, {"x": {"q": 3}}, {"x": {"q": 3}, "c": 4}),
        ({"x": {"p": 1}}, {"x": "${c}", "c": 2}, {"x": "${c}", "c": 2}),
        ({"x": {"p": 1}}, {"x": None}, {"x": None}),
        ({"x": None}, {"x": {"p": 1}}, {"x": {"p": 1}}),
        ({"x": [1, {"a": 1}]}, {"x": [{"b": 2}]}, {"x": [{"b": 2}]}),
        ({"x": 1}, {"x": {"p": 1}}, {"x": {"p": 1}}),
    ],
)
def test_merging_as_in_omegaconf(below, above, expected):
    config = Config.create(below)
    merge(config, above)
    assert config.to_container(resolve=False) == expected


def test_merging_leaves_the_source_alone():
    source = {"x": {"list": [1]}}
    config = Config.create({})
    merge(config, source)
    config.x.list.append(2)
    assert source == {"x": {"list": [1]}}


def test_load_config_needs_a_file(tmp_path):
    with pytest.raises(MisconfigurationException, match="load_config needs at least one file"):
        load_config()
    (tmp_path / "training.yaml").write_text("")
    assert load_config(tmp_path / "training.yaml") == {}
    with pytest.raises(FileNotFoundError, match="trainng.yaml'; did you mean 'training.yaml'?"):
        load_config(tmp_path / "trainng.yaml")
