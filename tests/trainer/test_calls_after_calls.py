"""Several calls of one trainer: what of an earlier call goes on, and what does not."""

import copy
import pickle
import warnings

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteDataModule, LiteModule, MisconfigurationException


def loader(number):
    return DataLoader(torch.full((2, 1), float(number)))


class Model(LiteModule):
    """Notes what it trained and validated on."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append(f"train {batch.item():g}")
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.seen.append(f"val {batch.item():g}")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OwnData(Model):
    def train_dataloader(self):
        return loader(7)

    def val_dataloader(self):
        return loader(8)


class Data(LiteDataModule):
    """Adds 100 to whatever batch it is asked to move."""

    def train_dataloader(self):
        return loader(1)

    def val_dataloader(self):
        return loader(2)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch + 100


def trained_by_data():
    trainer, model = quiet_trainer(max_epochs=1, num_sanity_val_steps=0), Model()
    trainer.fit(model, datamodule=Data())
    assert model.seen == ["train 101"] * 2 + ["val 102"] * 2
    model.seen.clear()
    trainer.max_epochs = 2
    return trainer, model


@pytest.mark.filterwarnings("ignore:this trainer has trained another model")
def test_another_model_trains_on_its_own_data_and_not_on_the_data_module_of_the_call_before():
    trainer, _ = trained_by_data()
    trainer.fit(model := OwnData())
    assert model.seen == ["train 7"] * 2 + ["val 8"] * 2
    trainer.validate()
    assert model.seen[4:] == ["val 8"] * 2


@pytest.mark.filterwarnings("ignore:this trainer has trained another model")
def test_loaders_that_are_given_are_not_mixed_with_the_data_module_of_the_call_before():
    """Neither its validation data nor its hooks."""
    for other in (False, True):
        trainer, model = trained_by_data()
        model = Model() if other else model
        trainer.fit(model, loader(5))
        assert model.seen == ["train 5"] * 2


@pytest.mark.filterwarnings("ignore:this trainer has trained another model")
def test_another_model_without_data_is_told_so():
    trainer, _ = trained_by_data()
    with pytest.raises(MisconfigurationException, match=r"no loader for fit: .*Model.train_dataloader\(\)"):
        trainer.fit(Model())


def test_the_same_module_goes_on_with_its_data_module():
    trainer, model = trained_by_data()
    trainer.validate(model)
    trainer.fit(model)
    assert model.seen == ["val 102"] * 2 + ["train 101"] * 2 + ["val 102"] * 2
    trainer.validate()
    assert model.seen[-2:] == ["val 102"] * 2


def test_a_fit_of_another_model_is_told_that_all_is_counted_on():
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model := Model(), loader(1))
    trainer.max_epochs = 2
    with pytest.warns(UserWarning, match=r"another model before: .* \(epoch 1, step 2\).* Make a new Trainer"):
        trainer.fit(Model(), loader(1))
    trainer.max_epochs = 3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "this trainer has trained another model")
        trainer.validate(Model(), loader(1))
        quiet_trainer(max_epochs=1).fit(model, loader(1))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_copy_of_a_trainer_knows_its_copy_of_the_model(precision):
    """It took it for another model, and would not have told a parameter that came late."""
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    trainer.fit(Model(), loader(1))
    for copied in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert copied.plan.built == set(copied.lightning_module.parameters())
        copied.max_epochs = 2
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "this trainer has trained another model")
            copied.fit(copied.lightning_module, loader(1))
        assert copied.global_step == 4


def test_setting_attributes_takes_no_time_in_a_step(monkeypatch):
    """What is set on a trainer is looked at: in the steps of a fit nothing is set."""
    counts = []
    for batches in (1, 20):
        trainer, sets = quiet_trainer(max_epochs=1), []
        original = type(trainer)._checked_change
        monkeypatch.setattr(
            type(trainer), "_checked_change", lambda *given, o=original, s=sets: (s.append(given), o(*given))[1]
        )
        trainer.fit(Model(), [torch.ones(1, 1)] * batches)
        counts.append(len(sets))
        monkeypatch.undo()
    assert counts[0] == counts[1] > 0
