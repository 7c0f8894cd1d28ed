"""Objects with a state that no checkpoint holds are told, once, and nothing is told of those that one holds."""

import warnings

import pytest
import torch
from quiet import quiet_trainer
from torch.optim.lr_scheduler import ConstantLR, SequentialLR

from espnet3_lite import Callback, LiteDataModule, LiteModule


class Average:
    """As torch_ema's moving average and pytorch_warmup's warm-ups are: neither a module nor a scheduler of torch."""

    def state_dict(self):
        return {"value": 1}

    def load_state_dict(self, state):
        pass


class Stream:
    """Data know their place by a state, and the loader has it."""

    def __iter__(self):
        return iter([])

    state_dict, load_state_dict = Average.state_dict, Average.load_state_dict


class Model(LiteModule):
    """Keeps what a function makes of its optimizer."""

    def __init__(self, keeps=lambda module, optimizer: {}):
        super().__init__()
        self.layer, self.keeps = torch.nn.Linear(1, 1), keeps

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        vars(self).update(self.keeps(self, optimizer))
        return ([optimizer], [self.returned]) if hasattr(self, "returned") else optimizer


class Saving(Model):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["average"] = self.average.state_dict()


def told(module, folder, callbacks=(), **fit):
    trainer = quiet_trainer(
        max_epochs=2, enable_checkpointing=True, default_root_dir=folder, callbacks=list(callbacks),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, **(fit or {"train_dataloaders": [torch.ones(1, 1)]}))
    return [str(warning.message) for warning in caught if "no checkpoint holds it" in str(warning.message)]


def average(module, optimizer):
    return {"average": Average()}


@pytest.mark.parametrize(
    "keeps",
    [
        average,
        lambda module, optimizer: {"average": ConstantLR(optimizer)},
        lambda module, optimizer: {"average": torch.optim.SGD(module.parameters(), lr=0.1)},
    ],
)
def test_a_module_keeps_a_state_that_no_checkpoint_holds(keeps, tmp_path):
    (message,) = told(Model(keeps), tmp_path)
    assert message.startswith("Model.average (") and "checkpoint['average'] = self.average.state_dict()" in message


def within_another(module, optimizer):
    parts = [ConstantLR(optimizer), ConstantLR(optimizer)]
    return {"first": parts[0], "returned": SequentialLR(optimizer, parts, milestones=[1])}


@pytest.mark.parametrize(
    "keeps",
    [
        lambda module, optimizer: {"optimizer": optimizer},
        lambda module, optimizer: {"returned": ConstantLR(optimizer)},
        within_another,
        lambda module, optimizer: {"stream": Stream(), "frozen": torch.nn.Linear(1, 1), "plain": [1]},
    ],
)
def test_what_a_checkpoint_holds_and_what_is_data_is_not_told(keeps, tmp_path):
    assert told(Model(keeps), tmp_path) == []


def test_a_module_that_saves_it_is_not_told(tmp_path):
    assert told(Saving(average), tmp_path) == []


class Keeps(Callback):
    def on_train_start(self, trainer, module):
        self.average = Average()


class KeepsAndSaves(Keeps):
    def state_dict(self):
        return self.average.state_dict()


def test_so_is_a_callback_that_makes_it_in_a_hook(tmp_path):
    (message,) = told(Model(), tmp_path, [Keeps()])
    assert message.startswith("Keeps.average (Average)")
    assert told(Model(), tmp_path, [KeepsAndSaves()]) == []


class Data(LiteDataModule):
    def setup(self, stage):
        self.average = Average()

    def train_dataloader(self):
        return [torch.ones(1, 1)]


def test_and_a_data_module(tmp_path):
    (message,) = told(Model(), tmp_path, datamodule=Data())
    assert message.startswith("Data.average (Average)")
