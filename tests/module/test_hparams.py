"""`save_hyperparameters`: which arguments, from where, and building the object again."""

import argparse

import pytest
import torch

from espnet3_lite import LiteModule, MisconfigurationException
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


def test_an_unknown_name_is_told_with_those_there_are():
    class Wrong(HyperparametersMixin):
        def __init__(self, width):
            self.save_hyperparameters("widht")

    with pytest.raises(MisconfigurationException, match=r"\['widht'\] are not arguments of __init__.*\['width'\]"):
        Wrong(1)


def test_only_init_can_save_them():
    class Late(HyperparametersMixin):
        def later(self):
            self.save_hyperparameters()

    with pytest.raises(MisconfigurationException, match="must be called from __init__"):
        Late().later()


def test_a_missing_one_is_told_with_those_there_are():
    with pytest.raises(AttributeError, match=r"no hyperparameter 'lr'; there are \['rate'\]"):
        AttributeDict(rate=0.1).lr  # noqa: B018 - the look-up is the test


def test_a_checkpoint_builds_the_module_again(tmp_path):
    from espnet3_lite import Trainer

    class Line(LiteModule):
        def __init__(self, width, scale=1.0):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def predict_step(self, batch, batch_idx):
            return self.layer(batch) * self.hparams.scale

    model = Line(3, scale=2.0)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.predict(model, [torch.ones(1, 3)])
    trainer.save_checkpoint(tmp_path / "line.ckpt", weights_only=True)
    again = Line.load_from_checkpoint(tmp_path / "line.ckpt", scale=5.0)
    assert torch.equal(again.layer.weight, model.layer.weight)
    assert again.hparams == {"width": 3, "scale": 5.0}
