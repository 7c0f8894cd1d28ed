"""How many batches, who provides the loaders, and how an epoch goes on at a batch."""

import math

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader, Dataset

from espnet3_lite import LiteModule, MisconfigurationException
from espnet3_lite.loaders.requests import limited


class Numbers(Dataset):
    def __init__(self, count):
        self.count, self.loaded = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.tensor([float(index)])


@pytest.mark.parametrize(
    ("length", "limit", "count"),
    [
        (10, 1.0, 10), (10, 0.25, 2), (10, 0.0, 0), (10, 3, 3), (10, 30, 10), (10, 0, 0), (0, 1.0, 0), (0, 5, 0),
        (math.inf, 1.0, math.inf), (math.inf, 5, 5), (math.inf, 0.0, 0), (3, 0.99, 2), (7, 1, 1),
    ],
)  # fmt: skip
def test_limits(length, limit, count):
    assert limited(length, limit, "limit_train_batches") == count


def test_a_fraction_that_leaves_nothing_says_which_would_do():
    with pytest.raises(
        MisconfigurationException, match="limit_val_batches=0.1 of 4 batches is less than one batch.*of at least 0.25"
    ):
        limited(4, 0.1, "limit_val_batches")
    with pytest.raises(MisconfigurationException, match="limited by a number of batches only"):
        limited(math.inf, 0.5, "limit_train_batches")


class Reads(LiteModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.flatten().tolist())
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer_of(tmp_path, **settings):
    return quiet_trainer(default_root_dir=tmp_path, **settings)


@pytest.mark.parametrize("kind", ["dataloader", "list", "batch_sampler", "no_batch_size"])
def test_a_resumed_epoch_goes_on_without_loading_what_was_seen(tmp_path, kind):
    def make():
        data = Numbers(8)
        if kind == "list":
            return data, [data[index].reshape(1, 1) for index in range(0, 8, 2)]
        if kind == "batch_sampler":
            return data, DataLoader(data, batch_sampler=[[5, 0], [1, 7], [2], [3, 4, 6]])
        if kind == "no_batch_size":
            return data, DataLoader(data, batch_size=None, sampler=[4, 2, 6, 1])
        return data, DataLoader(data, batch_size=2)

    whole, first = Reads(), Reads()
    trainer_of(tmp_path, max_epochs=1).fit(whole, make()[1])

    class Saves(Reads):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt")

    trainer_of(tmp_path, max_epochs=1).fit(Saves(), make()[1])
    data, loader = make()
    data.loaded.clear()
    trainer_of(tmp_path, max_epochs=1).fit(first, loader, ckpt_path=tmp_path / "x.ckpt")
    assert first.seen == whole.seen[2:]
    if kind != "list":
        assert data.loaded == [int(value) for batch in whole.seen[2:] for value in batch]


@pytest.mark.parametrize("wrong", [3, {"a": DataLoader(Numbers(2))}, [DataLoader(Numbers(2)), DataLoader(Numbers(2))]])
def test_what_is_no_training_loader(tmp_path, wrong):
    with pytest.raises(MisconfigurationException, match="loader"):
        trainer_of(tmp_path, max_epochs=1).fit(Reads(), wrong)


def test_nobody_provides_a_loader(tmp_path):
    with pytest.raises(
        MisconfigurationException, match=r"pass train_dataloaders= to Trainer.fit\(\), or define Reads.tr"
    ):
        trainer_of(tmp_path, max_epochs=1).fit(Reads())


def test_a_loader_without_batches_is_warned_about(tmp_path):
    module = Reads()
    too_few = DataLoader(Numbers(3), batch_size=4, drop_last=True)
    with pytest.warns(UserWarning, match="nothing is trained: DataLoader, samples=3, batch_size=4, drop_last=True"):
        trainer_of(tmp_path, max_epochs=1).fit(module, too_few)
    with pytest.warns(UserWarning, match="nothing is trained: list$"):
        trainer_of(tmp_path, max_epochs=1).fit(module, [])
    assert module.seen == []
