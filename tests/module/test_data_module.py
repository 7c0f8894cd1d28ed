"""Data modules that are made of data sets."""

import copy
import pickle

import pytest
import torch
from quiet import QUIET
from torch.utils.data import IterableDataset, TensorDataset

from espnet3_lite import LiteDataModule, LiteModule, Trainer

QUIET = {**QUIET, "max_epochs": 1}


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.ones(2)] * 3)


def rows(count):
    return TensorDataset(torch.arange(count, dtype=torch.float32).reshape(-1, 1))


class Seeing(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = {}

    def _see(self, step, batch):
        self.seen.setdefault(step, []).append(batch[0].flatten().tolist())
        return self.layer(batch[0]).sum()

    def training_step(self, batch, batch_idx):
        return self._see("train", batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self._see(f"val{dataloader_idx}", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_each_data_set_has_a_loader_and_training_is_shuffled():
    torch.manual_seed(1)
    data = LiteDataModule.from_datasets(rows(8), [rows(3), rows(2)], batch_size=2)
    module = Seeing()
    Trainer(**QUIET, num_sanity_val_steps=0).fit(module, datamodule=data)
    assert module.seen["val0"] == [[0.0, 1.0], [2.0]] and module.seen["val1"] == [[0.0, 1.0]]
    order = [value for batch in module.seen["train"] for value in batch]
    assert sorted(order) == [*range(8)] and order != [*range(8)]


def test_what_was_not_given_counts_as_not_defined():
    data = LiteDataModule.from_datasets(rows(2))
    trainer = Trainer(**QUIET)
    assert trainer.is_overridden("train_dataloader", data) and not trainer.is_overridden("val_dataloader", data)


def test_a_stream_is_not_shuffled_and_copies_stand_on_their_own():
    data = LiteDataModule.from_datasets(Stream(), batch_size=3)
    for twin in (data, copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert [batch.shape for batch in twin.train_dataloader()] == [(3, 2)]


def test_arguments_reach_the_constructor():
    class Data(LiteDataModule):
        def __init__(self, batch_size, folder):
            self.batch_size, self.folder = batch_size, folder

    data = Data.from_datasets(rows(2), batch_size=5, num_workers=1, folder="x")
    assert (data.batch_size, data.folder, data.train_dataloader().num_workers) == (5, "x", 1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Data.from_datasets(rows(2), folder="x", colour="red")
