"""`instantiate`: what Hydra 1.3.8 builds from the same configurations (recorded by running it), names, messages."""

import functools
import sys
import types

import pytest
import torch

from espnet3_lite.config import Config
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.config.targets import (
    HOW_TO_INSTALL_ESPNET,
    OURS,
    InstantiationError,
    TargetError,
    find_target,
    instantiate,
    unknown_arguments,
)
from espnet3_lite.exceptions import MisconfigurationException


class Box:
    def __init__(self, size=1, *, depth=2):
        self.size, self.depth = size, depth

    @classmethod
    def twice(cls, size):
        return cls(2 * size)


class Named:
    def __init__(self, name):
        self.name = name


@pytest.fixture(autouse=True)
def targets(monkeypatch):
    """A module named `toys` whose `f` returns its arguments, so that a test sees what a target was given."""
    module = types.ModuleType("toys")
    module.f = lambda *args, **kwargs: {"args": list(args), **kwargs}
    module.Box, module.Named = Box, Named

    def failing(size):
        raise ValueError("no room")

    module.failing = failing
    monkeypatch.setitem(sys.modules, "toys", module)


F = "toys.f"


@pytest.mark.parametrize(
    ("config", "args", "kwargs", "expected"),
    [
        ({"_target_": F, "a": 1}, (), {}, {"args": [], "a": 1}),
        ({"_target_": F, "_args_": [1, 2], "a": 3}, (), {}, {"args": [1, 2], "a": 3}),
        ({"_target_": F, "_args_": [1, 2]}, (9,), {}, {"args": [9]}),
        ({"_target_": F, "_args_": [1]}, (), {"_args_": [2]}, {"args": [2]}),
        ({"_target_": F, "x": {"_target_": F, "y": 1}}, (), {}, {"args": [], "x": {"args": [], "y": 1}}),
        ({"_target_": F, "_args_": [{"_target_": F}]}, (), {}, {"args": [{"args": []}]}),
        ({"_target_": F, "x": [{"_target_": F}, {"d": {"_target_": F, "k": 2}}]}, (), {},
         {"args": [], "x": [{"args": []}, {"d": {"args": [], "k": 2}}]}),
        ({"_target_": F, "_recursive_": False, "x": {"_target_": F, "y": 1}}, (), {},
         {"args": [], "x": {"_target_": F, "y": 1}}),
        ({"_target_": F, "x": {"_recursive_": False, "z": {"_target_": F, "w": {"_target_": F}}}}, (), {},
         {"args": [], "x": {"_recursive_": False, "z": {"args": [], "w": {"_target_": F}}}}),
        ({"x": {"_target_": F}}, (), {}, {"x": {"args": []}}),
        ([{"_target_": F}, 3], (), {}, [{"args": []}, 3]),
        ({"_target_": F, "a": {"b": 1, "c": 2}}, (), {"a": {"b": 5}}, {"args": [], "a": {"b": 5, "c": 2}}),
        ({"_target_": F, "a": 1}, (), {"a": {"_target_": F, "q": 1}}, {"args": [], "a": {"args": [], "q": 1}}),
        ({"_target_": F, "a": {"b": {"_target_": F, "c": 1}}}, (), {"a": {"b": {"c": 2}}},
         {"args": [], "a": {"b": {"args": [], "c": 2}}}),
        ({"_target_": F, "a": [1, 2]}, (), {"a": [3]}, {"args": [], "a": [3]}),
        ({"_target_": F, "a": {"_target_": F}}, (), {"a": None}, {"args": [], "a": None}),
        ({"_target_": F, "_convert_": "all", "a": [1]}, (), {}, {"args": [], "a": [1]}),
        ({"_target_": F, "a": "${b}", "b": 2}, (), {}, {"args": [], "a": 2, "b": 2}),
        ({"_target_": F, "a": "1e-3"}, (), {}, {"args": [], "a": "1e-3"}),
        ({"_target_": F}, ({"_target_": F},), {}, {"args": [{"_target_": F}]}),
        ({"_target_": "builtins.dict", "a": 1}, (), {}, {"a": 1}),
        ({"a": 1}, (), {"b": 2}, {"a": 1, "b": 2}),
        ({}, (), {}, {}),
    ],
)  # fmt: skip
def test_builds_what_hydra_builds(config, args, kwargs, expected):
    assert instantiate(config, *args, **kwargs) == expected


def test_classes_methods_and_partials():
    assert instantiate({"_target_": "toys.Box", "size": 3}).size == 3
    assert instantiate({"_target_": "toys.Box.twice", "size": 3}).size == 6
    partial = instantiate({"_target_": "toys.Box", "_partial_": True, "depth": 5}, 7)
    assert isinstance(partial, functools.partial) and partial().depth == 5 and partial(depth=1).size == 7
    inner = instantiate({"_target_": F, "make": {"_target_": "toys.Box", "_partial_": True, "size": 4}})["make"]
    assert inner().size == 4
    assert instantiate({"_target_": Box, "size": 2}).size == 2


@pytest.mark.parametrize("value", [None, 3, "text", torch.nn.Identity()])
def test_what_is_no_configuration_comes_back_as_it_is(value):
    assert instantiate(value) is value


def test_objects_pass_through_unchanged():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = instantiate({"_target_": "torch.optim.SGD", "lr": 0.1}, [weight])
    assert optimizer.param_groups[0]["params"][0] is weight
    scheduler = instantiate({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}, optimizer=optimizer)
    assert scheduler.optimizer is optimizer


def test_a_nested_config_is_resolved_against_the_whole_and_given_as_plain_containers():
    config = Config.create({"size": 3, "make": {"_target_": F, "sizes": ["${size}"], "opts": {"s": "${size}"}}})
    result = instantiate(config.make)
    assert result == {"args": [], "sizes": [3], "opts": {"s": 3}}
    assert type(result["sizes"]) is list and type(result["opts"]) is dict
    assert instantiate(Config.create({"list": [{"_target_": F}]}).list) == [{"args": []}]


def test_building_does_not_change_the_configuration():
    config = {"_target_": F, "a": {"b": 1}}
    instantiate(config, a={"b": 2})
    assert config == {"_target_": F, "a": {"b": 1}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim.Adm", "'torch.optim.Adm': 'torch.optim' has no 'Adm'; did you mean 'Adam'?"),
        ("torch.optim.Adamw", "'torch.optim.Adamw': 'torch.optim' has no 'Adamw'; did you mean 'AdamW'?"),
        ("torch.optm.Adam", "'torch.optm.Adam': 'torch' has no 'optm'; did you mean 'optim'?"),
        ("toys.Box.thrice", "'toys.Box.thrice': 'toys.Box' has no 'thrice'; did you mean 'twice'?"),
        ("nowhere_at_all.X",
         "'nowhere_at_all.X': there is no package 'nowhere_at_all'; is it installed, or its folder on PYTHONPATH?"),
        ("Adam", "'Adam' is not a dotted Python name such as 'torch.optim.Adam'"),
        ("torch.optim.", "'torch.optim.' is not a dotted Python name such as 'torch.optim.Adam'"),
        (
            "espnet2.schedulers.warmup_lr.WarmpLR",
            "'espnet2.schedulers.warmup_lr.WarmpLR': espnet3_lite has no 'WarmpLR'; "
            f"{HOW_TO_INSTALL_ESPNET}; did you mean 'WarmupLR'?",
        ),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_imported(name, message):
    with pytest.raises(TargetError) as caught:
        find_target(name)
    assert str(caught.value) == message
    with pytest.raises(TargetError) as caught:
        instantiate({"model": {"_target_": name}})
    assert str(caught.value) == f"model._target_: {message}"


def test_a_module_that_fails_while_it_is_imported_is_named_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_recipe.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "failing_recipe.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TargetError) as caught:
        find_target("broken_recipe.Model")
    assert str(caught.value) == (
        "'broken_recipe.Model': importing 'broken_recipe' failed: No module named 'a_module_that_is_not_there'"
    )
    with pytest.raises(TargetError) as caught:
        find_target("failing_recipe.Model")
    assert str(caught.value) == (
        "'failing_recipe.Model': importing 'failing_recipe' failed: ZeroDivisionError: division by zero"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_submodules_are_imported_on_the_way(tmp_path, monkeypatch):
    (tmp_path / "recipe_pkg").mkdir()
    (tmp_path / "recipe_pkg/__init__.py").write_text("")
    (tmp_path / "recipe_pkg/models.py").write_text("class Model:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_target("recipe_pkg.models.Model").__module__ == "recipe_pkg.models"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "toys.failing", "size": 3}, "m: toys.failing(size=3) raised ValueError: no room"),
        ({"_target_": "toys.failing", "size": "abc", "shape": [1, 2], "name": "x" * 41},
         "m: toys.failing(size='abc', shape=<list>, name=<str>) raised TypeError: targets.<locals>.failing() got an "
         "unexpected keyword argument 'shape'; it takes no 'shape'; it takes no 'name'"),
        ({"_target_": "toys.Box", "dept": 3},
         "m: toys.Box(dept=3) raised TypeError: Box.__init__() got an unexpected keyword argument 'dept'; "
         "it takes no 'dept'; did you mean 'depth'?"),
        ({"_target_": "toys.Box", "_args_": [1, [2]]},
         "m: toys.Box(int, list) raised TypeError: Box.__init__() takes from 1 to 2 positional arguments "
         "but 3 were given"),
        ({"_target_": "toys.failing"},
         "m: toys.failing() raised TypeError: targets.<locals>.failing() missing 1 required positional argument: "
         "'size'; for the function itself, as a collate_fn must be, instead of what it returns: _partial_: true"),
        ({"_target_": "toys.Named"}, "m: toys.Named() raised TypeError: Named.__init__() missing 1 required "
         "positional argument: 'name'"),
    ],
)  # fmt: skip
def test_a_target_that_raises(config, message):
    with pytest.raises(InstantiationError) as caught:
        instantiate({"m": config})
    assert str(caught.value) == message
    assert type(caught.value.__cause__) in (ValueError, TypeError)
    assert isinstance(caught.value, MisconfigurationException)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": F, "_partial_": "yes"}, "_partial_: 'yes' is neither true nor false"),
        ({"_target_": F, "_recursive_": 1}, "_recursive_: 1 is neither true nor false"),
        ({"_target_": F, "_args_": 3}, "_args_: 3 is not a list"),
        ({"_target_": 3}, "_target_: 3 is not a dotted Python name such as 'torch.optim.Adam'"),
        ({"_target_": "torch.optim"}, "_target_: 'torch.optim' cannot be called"),
    ],
)
def test_special_keys_are_checked(config, message):
    with pytest.raises(MisconfigurationException) as caught:
        instantiate(config)
    assert str(caught.value) == message


def test_keywords_for_a_list_are_refused():
    with pytest.raises(MisconfigurationException, match=r"keyword arguments \['a'\] need a mapping with a _target_"):
        instantiate([1], a=2)


@pytest.fixture
def fake_espnet(monkeypatch):
    """An installed espnet2 with a WarmupLR of its own."""
    for name in ("espnet2", "espnet2.schedulers", "espnet2.schedulers.warmup_lr"):
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    theirs = type("WarmupLR", (), {})
    sys.modules["espnet2.schedulers.warmup_lr"].WarmupLR = theirs
    return theirs


def test_names_of_espnet_give_ours_unless_the_user_asks_for_theirs(fake_espnet, monkeypatch):
    from espnet3_lite.espnet.schedulers import WarmupLR

    name = "espnet2.schedulers.warmup_lr.WarmupLR"
    monkeypatch.delenv("ESPNET3_LITE_USE_ESPNET", raising=False)
    assert find_target(name) is WarmupLR
    monkeypatch.setenv("ESPNET3_LITE_USE_ESPNET", "0")
    assert find_target(name) is WarmupLR
    monkeypatch.setenv("ESPNET3_LITE_USE_ESPNET", "1")
    assert find_target("espnet2.schedulers.warmup_lr.WarmupLR") is fake_espnet
    assert find_target("lightning.pytorch.schedulers.WarmupLR") is WarmupLR


def test_lightnings_and_espnet3s_names_are_looked_up_in_all_our_homes(monkeypatch):
    """The homes are stood in for, so that this test does not depend on which callbacks there are."""
    homes = {}
    for home in ("callbacks", "loggers", "compat"):
        homes[home] = types.ModuleType(f"espnet3_lite.{home}")
        setattr(homes[home], f"From_{home}", type(f"From_{home}", (), {}))
        monkeypatch.setitem(sys.modules, f"espnet3_lite.{home}", homes[home])
    for prefix in (
        "lightning.pytorch.callbacks",
        "pytorch_lightning",
        "espnet3.components.callbacks.default_callbacks",
    ):
        for home, module in homes.items():
            assert find_target(f"{prefix}.From_{home}") is getattr(module, f"From_{home}")
    assert find_target("espnet2.train.collate_fn.From_compat") is homes["compat"].From_compat
    with pytest.raises(TargetError) as caught:
        find_target("lightning.pytorch.callbacks.From_callback")
    assert str(caught.value) == (
        "'lightning.pytorch.callbacks.From_callback': espnet3_lite has no 'From_callback'; write your own "
        "and name it by its full path; did you mean 'From_callbacks'?"
    )


def test_the_table_of_names_lists_what_the_readme_promises():
    assert {"lightning", "pytorch_lightning", "espnet3.components", "espnet2.schedulers"} <= set(OURS)
    assert "espnet2.train.preprocessor" not in OURS


def test_unknown_arguments_says_nothing_where_python_cannot_tell():
    assert unknown_arguments(Box, ["size", "dept", "depth"]) == ["dept"]
    assert unknown_arguments(lambda **kwargs: None, ["anything"]) == []
    assert unknown_arguments(dict, ["anything"]) == []


# --- values from the environment --------------------------------------------------------------------------------------


def test_a_value_from_the_environment_is_masked_in_the_message(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hunter2-hunter2")
    monkeypatch.setenv("DB_PIN", "4711")
    config = Config.create({
        "m": {
            "_target_": "toys.failing", "name": "${oc.env:DB_PASSWORD}", "url": "db://me:${oc.env:DB_PASSWORD}@host",
            "pin": "${oc.decode:${oc.env:DB_PIN}}", "size": 4712,
        }
    })  # fmt: skip
    with pytest.raises(InstantiationError) as caught:
        instantiate(config.m)
    text = str(caught.value)
    assert "hunter2" not in text and "4711" not in text
    assert "name=<value of $DB_PASSWORD>, url='db://me:<value of $DB_PASSWORD>@host', pin=<value of $DB_PIN>" in text
    assert "size=4712" in text


def test_what_the_target_says_about_the_value_is_masked_too(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "sesame-open-now")
    with pytest.raises(InstantiationError) as caught:
        instantiate(Config.create({"_target_": "builtins.float", "_args_": ["${oc.env:API_TOKEN}"]}))
    assert str(caught.value) == (
        "builtins.float(str) raised ValueError: could not convert string to float: '<value of $API_TOKEN>'"
    )


def test_the_check_of_the_configuration_masks_it(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "sesame-open-now")
    monkeypatch.setenv("EPOCHS", "ten")
    with pytest.raises(ConfigError) as caught:
        check_config(Config.create({
            "model": {"_target_": "torch.nn.Identity"}, "optimizer": {"_target_": "torch.optim.Adam"},
            "trainer": {"max_epochs": "${oc.env:EPOCHS}", "max_epoch": "${oc.env:API_TOKEN}"},
            "exp_dir": "${exp.${oc.env:API_TOKEN}}",
        }))  # fmt: skip
    text = str(caught.value)
    assert "sesame" not in text and "'ten'" not in text
    assert "trainer.max_epochs: <value of $EPOCHS> is not a whole number" in text
    assert "trainer.max_epoch: unknown key (its value is <value of $API_TOKEN>)" in text
