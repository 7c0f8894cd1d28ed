"""espnet's names inside a recipe's import, and nowhere else."""

import importlib
import importlib.util
import sys
import types

import pytest

from espnet3_lite.espnet.import_aliases import HOMES, _is_there, espnet_stand_ins

pytestmark = pytest.mark.skipif(_is_there("espnet3"), reason="espnet is installed: nothing stands in for it")


def espnet_modules():
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("espnet2", "espnet3")}


def test_every_name_is_there():
    for name, home in HOMES.items():
        assert hasattr(importlib.import_module(f"espnet3_lite.{home}"), name), name


def test_names_are_ours_whatever_module_they_are_asked_of():
    with espnet_stand_ins():
        from espnet2.train.collate_fn import CommonCollateFn
        from espnet2.train.preprocessor import AbsPreprocessor
        from espnet3.components.data.data_organizer import DataOrganizer
    from espnet3_lite.espnet.data import collate, organizer, preprocessor

    assert CommonCollateFn is collate.CommonCollateFn
    assert AbsPreprocessor is preprocessor.AbsPreprocessor
    assert DataOrganizer is organizer.DataOrganizer


def test_nothing_stays_behind_also_after_an_error():
    finders, modules = list(sys.meta_path), espnet_modules()
    with pytest.raises(ImportError, match="cannot import name 'NoSuchThing' from 'espnet3.contract'"):
        with espnet_stand_ins():
            from espnet3.contract import NoSuchThing  # noqa: F401
    assert sys.meta_path == finders
    assert espnet_modules() == modules


def test_inside_another_the_outer_one_stays():
    with espnet_stand_ins():
        import espnet3.contract

        with espnet_stand_ins():
            from espnet3.contract import Field
        assert espnet3.contract.Field is Field
        assert sys.modules["espnet3.contract"] is espnet3.contract


def test_an_installed_espnet_is_left_alone(tmp_path, monkeypatch):
    package = tmp_path / "espnet3"
    package.mkdir()
    (package / "__init__.py").write_text("Field = 'their own'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "espnet3", raising=False)
    with espnet_stand_ins():
        from espnet3 import Field
    assert Field == "their own"
    assert sys.modules.pop("espnet3").Field == "their own"


def test_somebody_elses_stand_in_is_left_alone(monkeypatch):
    theirs = types.ModuleType("espnet3")
    theirs.Field = "theirs"
    monkeypatch.setitem(sys.modules, "espnet3", theirs)
    with espnet_stand_ins():
        from espnet3 import Field
    assert Field == "theirs"
    assert sys.modules["espnet3"] is theirs


def test_a_folder_of_that_name_is_not_espnet(tmp_path, monkeypatch):
    (tmp_path / "espnet3" / "contract").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "espnet3", raising=False)
    folder = importlib.import_module("espnet3")
    with espnet_stand_ins():
        from espnet3.contract import Field
    assert Field.__module__ == "espnet3_lite.espnet.data.contract"
    assert sys.modules.pop("espnet3") is folder


def test_a_recipes_own_yaml(tmp_path):
    (tmp_path / "base.yaml").write_text("builder: {dev_size: 3}\n")
    (tmp_path / "config.yaml").write_text("defaults: [base, _self_]\nbuilder: {data: '${name}/x'}\nname: tiny\n")
    with espnet_stand_ins():
        from espnet3.utils.config_utils import load_config_with_defaults
    config = load_config_with_defaults(str(tmp_path / "config.yaml"), resolve=False)
    assert (config["builder"]["dev_size"], config["builder"]["data"]) == (3, "tiny/x")
