"""`save_hyperparameters`: which arguments, from where, and building the object again."""

import argparse
import collections
import dataclasses
import functools
import pathlib
import threading
import warnings

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import LiteDataModule, LiteModule, MisconfigurationException
from espnet3_lite.checkpoint.files import CheckpointError, load_checkpoint, save_checkpoint
from espnet3_lite.module.hparams import AttributeDict, HyperparametersMixin


class Model(HyperparametersMixin):
    def __init__(self, width, depth=2, *, rate=0.1, **more):
        self.save_hyperparameters()


class Deep(Model):
    def __init__(self, layers, depth=9):
        super().__init__(4, depth=depth + 1)


def test_all_arguments_with_their_values():
    assert Model(8, rate=0.2, name="x").hparams == {"width": 8, "depth": 2, "rate": 0.2, "name": "x"}


def test_a_subclass_adds_its_own_and_its_values_win():
    assert Deep(3).hparams == {"layers": 3, "depth": 9, "width": 4, "rate": 0.1}


def test_some_arguments_or_all_but_some():
    class Some(HyperparametersMixin):
        def __init__(self, a, b, c):
            self.save_hyperparameters("a", "c")

    class But(HyperparametersMixin):
        def __init__(self, a, b, c):
            self.save_hyperparameters(ignore=["b"])

    assert Some(1, 2, 3).hparams == But(1, 2, 3).hparams == {"a": 1, "c": 3}


@pytest.mark.parametrize("given", [{"a": 1, "b": 2}, argparse.Namespace(a=1, b=2)])
def test_values_that_are_given_instead(given):
    class Given(HyperparametersMixin):
        def __init__(self, settings):
            self.save_hyperparameters(settings, ignore="b")

    assert Given(given).hparams == {"a": 1}


def test_the_initial_values_stay():
    model = Model(8)
    model.hparams.width = 16
    assert (model.hparams["width"], model.hparams_initial.width) == (16, 8)


def test_an_unknown_name_is_told():
    class Wrong(HyperparametersMixin):
        def __init__(self, width):
            self.save_hyperparameters("widht")

    with pytest.raises(MisconfigurationException, match=r"'widht' is none of \[.*'width'\].*did you mean 'width'"):
        Wrong(1)


@pytest.mark.parametrize(("ignore", "name"), [("widht", "widht"), (["depth", "widht"], "widht")])
def test_an_unknown_name_that_is_to_be_left_out_is_told(ignore, name):
    class Wrong(HyperparametersMixin):
        def __init__(self, width, depth=1):
            self.save_hyperparameters(ignore=ignore)

    with pytest.warns(UserWarning) as told:
        assert Wrong(1).hparams["width"] == 1
    assert [str(warning.message) for warning in told] == [
        f"Wrong.save_hyperparameters(ignore={ignore!r}): {name!r} is none of ['depth', 'width']; did you mean 'width'?"
    ]


def test_names_that_are_left_out_with_others_or_where_any_may_be_given_are_no_mistake():
    class Some(HyperparametersMixin):
        def __init__(self, a, b, **others):
            self.save_hyperparameters("a", ignore=["b", "net"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Some(1, 2).hparams == Some(1, 2, net=3).hparams == {"a": 1}


def test_a_subclass_leaves_out_what_its_base_has_saved():
    class Base(HyperparametersMixin):
        def __init__(self, net, width=1):
            self.save_hyperparameters()

    class Derived(Base):
        def __init__(self, net, width=1):
            super().__init__(net, width)
            self.save_hyperparameters(ignore="net")

    assert Derived("a net", 2).hparams == {"width": 2}


def test_only_init_can_save_them():
    class Late(HyperparametersMixin):
        def later(self):
            self.save_hyperparameters()

    with pytest.raises(MisconfigurationException, match="Late.save_hyperparameters: call it from __init__"):
        Late().later()


def test_a_missing_one_is_told_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no hyperparameter 'lr'; there are \['rate'\]"):
        AttributeDict(rate=0.1).lr  # noqa: B018 - the look-up is the test


def test_a_checkpoint_builds_the_module_again(tmp_path):

    class Line(LiteModule):
        def __init__(self, width, scale=1.0):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def predict_step(self, batch, batch_idx):
            return self.layer(batch) * self.hparams.scale

    model = Line(3, scale=2.0)
    trainer = quiet_trainer()
    trainer.predict(model, [torch.ones(1, 3)])
    trainer.save_checkpoint(tmp_path / "line.ckpt", weights_only=True)
    again = Line.load_from_checkpoint(tmp_path / "line.ckpt", scale=5.0)
    assert torch.equal(again.layer.weight, model.layer.weight)
    assert again.hparams == {"width": 3, "scale": 5.0}


def test_arguments_of_any_name_come_back_whatever_they_are_called_together(tmp_path):
    class Line(LiteModule):
        def __init__(self, width, **kwargs):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def predict_step(self, batch, batch_idx):
            return self.layer(batch)

    trainer = quiet_trainer()
    trainer.predict(Line(3, scale=2.0), [torch.ones(1, 3)])
    trainer.save_checkpoint(tmp_path / "line.ckpt", weights_only=True)
    again = Line.load_from_checkpoint(tmp_path / "line.ckpt", other=4)
    assert again.hparams == {"width": 3, "scale": 2.0, "other": 4}


def test_values_that_hold_one_another_again_and_again_are_not_walked_through(tmp_path):
    """A forged file may hold few values that would take for ever to look through."""
    nested = {"folder": "a"}
    for _ in range(40):
        nested = {"one": nested, "other": nested}
    kinds = [[["act", *["one"] * 40, "folder"], "path"]]
    save_checkpoint(
        {"state_dict": Net().state_dict(), "hyper_parameters": {"act": nested},
         "loops": {"espnet3_lite": {"hparams_kinds": kinds}}},
        tmp_path / "a.ckpt",
    )  # fmt: skip
    value = Net.load_from_checkpoint(tmp_path / "a.ckpt").hparams.act
    for _ in range(40):
        value = value["one"]
    assert value["folder"] == pathlib.Path("a")


# ---- objects ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sizes:
    width: int
    folder: pathlib.Path = pathlib.Path("exp")


def act(x):
    return x * 2


class Net(LiteModule):
    def __init__(self, width=1, act=None, sizes=None, folder=None, net=None, make=None, config=None, **more):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def saved(model, path, **settings):
    """Train one step, save; the checkpoint loads with plain torch."""
    trainer = quiet_trainer(max_steps=1, **settings)
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(2, 1)))
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


class FakeContainer(collections.UserDict):
    """As OmegaConf's `DictConfig`: a mapping whose attributes are its own bookkeeping."""


def test_what_can_be_stored_is_and_comes_back_as_it_was(tmp_path):
    config = FakeContainer(lr=0.1, layers=[FakeContainer(size=4)])
    model = Net(act=act, sizes=Sizes(3), folder=tmp_path, config=config, kind=torch.nn.ReLU,
                space=argparse.Namespace(a=1, f=[pathlib.Path("a")]),
                pairs=(("exp", pathlib.Path("b")), [torch.nn.ReLU]))  # fmt: skip
    checkpoint = saved(model, tmp_path / "a.ckpt")
    assert checkpoint["hyper_parameters"] == {
        "width": 1, "act": f"{__name__}.act", "sizes": {"width": 3, "folder": "exp"}, "folder": str(tmp_path),
        "net": None, "make": None, "config": {"lr": 0.1, "layers": [{"size": 4}]},
        "kind": "torch.nn.modules.activation.ReLU", "space": {"a": 1, "f": ["a"]},
        "pairs": (("exp", "b"), ["torch.nn.modules.activation.ReLU"]),
    }  # fmt: skip
    hparams = Net.load_from_checkpoint(tmp_path / "a.ckpt").hparams
    assert hparams.pairs == (("exp", pathlib.Path("b")), [torch.nn.ReLU])
    assert hparams.act is act and hparams.kind is torch.nn.ReLU and hparams.sizes == Sizes(3)
    assert hparams.folder == tmp_path and isinstance(hparams.sizes.folder, pathlib.Path)
    assert hparams.space == argparse.Namespace(a=1, f=[pathlib.Path("a")])
    assert hparams.config == {"lr": 0.1, "layers": [{"size": 4}]}


class ByAttribute(collections.UserDict):
    """As OmegaConf's `DictConfig`, easydict's and addict's: what it holds is read by attributes."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Reads(Net):
    def __init__(self, config):
        LiteModule.__init__(self)
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(config.layers[0].size, config.model.width)


class Spread(Net):
    def __init__(self, config):
        LiteModule.__init__(self)
        self.save_hyperparameters(config)
        self.layer = torch.nn.Linear(config.layers[0].size, self.hparams.model.width)


@pytest.mark.parametrize("make", [Reads, Spread])
def test_a_mapping_that_is_read_by_attributes_comes_back_as_one(make, tmp_path):
    config = ByAttribute(layers=[ByAttribute(size=1)], model=ByAttribute(width=2), plain={"a": 1})
    checkpoint = saved(make(config), tmp_path / "a.ckpt")
    values = {"layers": [{"size": 1}], "model": {"width": 2}, "plain": {"a": 1}}
    assert checkpoint["hyper_parameters"] == (values if make is Spread else {"config": values})
    again = make.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.layer.out_features == 2
    plain = (again.hparams if make is Spread else again.hparams.config).plain
    assert type(plain) is dict


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (collections.OrderedDict(items=3), dict),  # what it has under that name is a method
        (collections.OrderedDict(), dict),
        (ByAttribute(width=2, copy=3), AttributeDict),
    ],
)
def test_a_method_of_a_mapping_is_no_key_that_is_read_by_attribute(value, kind, tmp_path):
    saved(Net(config=value), tmp_path / "a.ckpt")
    again = Net.load_from_checkpoint(tmp_path / "a.ckpt").hparams.config
    assert type(again) is kind and again == dict(value)


def test_what_cannot_be_stored_is_left_out_and_told_once_before_the_first_step(tmp_path):
    told = []

    class Watched(Net):
        def training_step(self, batch, batch_idx):
            told.append([str(warning.message) for warning in caught.list if "will not hold" in str(warning.message)])
            return super().training_step(batch, batch_idx)

    model = Watched(
        net=torch.nn.Linear(1, 1), make=functools.partial(torch.nn.Linear, 1), act=lambda x: x, lock=threading.Lock(),
        config={"lr": 0.1, "loss": torch.nn.MSELoss()}, sizes=[1, torch.nn.ReLU()],
    )  # fmt: skip
    with pytest.warns(UserWarning) as caught:
        checkpoint = saved(model, tmp_path / "a.ckpt")
    assert checkpoint["hyper_parameters"] == {"width": 1, "folder": None, "config": {"lr": 0.1}}
    assert told == [[
        "Watched: checkpoints will not hold the hyperparameters act, sizes, net, make, config.loss, lock, which are "
        "objects; load_from_checkpoint will need act, sizes, net, make, config, lock as arguments. Leave them out by "
        "save_hyperparameters(ignore=['act', 'sizes', 'net', 'make', 'config', 'lock'])"
    ]]  # fmt: skip
    assert Net.load_from_checkpoint(tmp_path / "a.ckpt", net=1).hparams.net == 1


@pytest.mark.parametrize("kind", ["object", "itself"])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.run", "no.such.thing", "torch.nn.init"])
def test_a_name_in_a_checkpoint_imports_and_runs_nothing(tmp_path, name, kind):
    kinds = [[["act"], name if kind == "itself" else kind]]
    save_checkpoint(
        {"state_dict": Net().state_dict(), "hyper_parameters": {"act": name},
         "loops": {"espnet3_lite": {"hparams_kinds": kinds}}},
        tmp_path / "a.ckpt",
    )  # fmt: skip
    with pytest.raises(
        MisconfigurationException, match=rf"act was {name}, which is not imported .*checkpoint: act=\.\.\."
    ):
        Net.load_from_checkpoint(tmp_path / "a.ckpt")
    assert Net.load_from_checkpoint(tmp_path / "a.ckpt", act=act).hparams.act is act


@pytest.mark.parametrize("container", [dict, lambda **items: argparse.Namespace(**items), FakeContainer])
def test_one_argument_that_holds_them_all_comes_back_as_that_argument(tmp_path, container):
    class Old(Net):
        def __init__(self, hparams, *, extra=0):
            LiteModule.__init__(self)
            self.save_hyperparameters(hparams)
            self.layer = torch.nn.Linear(self.hparams.width, 1)
            self.extra = extra

    checkpoint = saved(Old(container(width=1, lr=0.5)), tmp_path / "a.ckpt")
    assert (checkpoint["hparams_name"], checkpoint["hyper_parameters"]) == ("hparams", {"width": 1, "lr": 0.5})
    again = Old.load_from_checkpoint(tmp_path / "a.ckpt", lr=0.25, extra=3)
    assert again.hparams == {"width": 1, "lr": 0.25, "extra": 3} and again.extra == 3


def test_the_data_module_too(tmp_path):
    class Data(LiteDataModule):
        def __init__(self, settings):
            self.save_hyperparameters(settings)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(2, 1))

    trainer = quiet_trainer(max_steps=1)
    trainer.fit(Net(), datamodule=Data({"folder": tmp_path}))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hparams_name"] == "settings"
    assert Data.load_from_checkpoint(tmp_path / "a.ckpt").hparams == {"folder": tmp_path}


def test_what_is_no_container_is_refused():
    class Wrong(HyperparametersMixin):
        def __init__(self, width):
            self.save_hyperparameters(width)

    with pytest.raises(MisconfigurationException, match=r"save_hyperparameters\(3\): takes names .* not a int"):
        Wrong(3)


def test_for_a_plain_state_dict_it_is_said_how_one_is_loaded(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "weights.pth")
    message = (
        r"weights\.pth: not a trainer's checkpoint: .* keys \['layer.weight', 'layer.bias'\]. A plain state dict is "
        r"loaded by model\.load_state_dict\(torch\.load\('.*weights.pth', weights_only=True"
    )
    with pytest.raises(CheckpointError, match=message):
        Net.load_from_checkpoint(tmp_path / "weights.pth")
    trainer = quiet_trainer(max_steps=1)
    with pytest.raises(CheckpointError, match=message):
        trainer.fit(Net(), torch.utils.data.DataLoader(torch.ones(2, 1)), ckpt_path=tmp_path / "weights.pth")
    assert list(load_checkpoint(tmp_path / "weights.pth")) == ["layer.weight", "layer.bias"]


class Late(LiteModule):
    """Its layer is made after `setup`, as large ones are."""

    def __init__(self, width=2):
        super().__init__()
        self.save_hyperparameters()
        self.layer = None

    def configure_model(self):
        if self.layer is None:
            self.layer = torch.nn.Linear(self.hparams.width, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_layers_that_are_made_late_are_loaded(tmp_path):
    module = Late(width=3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, [torch.ones(2, 3)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(Late.load_from_checkpoint(tmp_path / "a.ckpt").layer.weight, module.layer.weight)


def test_what_load_from_checkpoint_cannot_use_is_said(tmp_path):
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Late(), [torch.ones(2, 2)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=r"Late.load_from_checkpoint\(widht=...\).*did you mean 'width'"):
        Late.load_from_checkpoint(tmp_path / "a.ckpt", widht=3)
    with pytest.raises(
        MisconfigurationException, match=r"Late.load_from_checkpoint\(weights_only=False\): checkpoints"
    ):
        Late.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert Late.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, width=2).hparams.width == 2
