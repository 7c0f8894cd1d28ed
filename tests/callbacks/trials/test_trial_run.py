"""A trial: nothing of the trainer, the module and the data module changes, and its memory is free at once."""

import weakref

import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import Callback, LiteDataModule, LiteModule
from espnet3_lite.callbacks.trials.trial_run import Trial


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer, self.steps, self.hooks = torch.nn.Linear(2, 1), 0, []

    def on_fit_start(self):
        self.hooks.append("on_fit_start")

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid", self.layer(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LiteDataModule):
    def __init__(self):
        self.data, self.asked = TensorDataset(torch.ones(8, 2)), []

    def train_dataloader(self):
        self.asked.append("train")
        return DataLoader(self.data, batch_size=2)

    def val_dataloader(self):
        self.asked.append("val")
        return DataLoader(self.data, batch_size=2)


class TryOut(Callback):
    def on_fit_start(self, trainer, pl_module):
        before = {name: value for name, value in vars(trainer).items()}
        weights = pl_module.layer.weight.detach().clone()
        trial = Trial(trainer)
        copied = trial.trainer.lightning_module
        trial.run(steps=5)
        self.trained = (copied.steps, copied.hooks, trial.trainer.global_step, sorted(trial.trainer.callback_metrics))
        self.shares_data = trial.trainer.datamodule.data is trainer.datamodule.data
        self.moved = not torch.equal(copied.layer.weight, weights)
        self.same = vars(trainer) == before and torch.equal(pl_module.layer.weight, weights)
        copied = weakref.ref(copied)
        trial.close()
        self.freed = copied() is None
        self.left = (pl_module.steps, list(pl_module.hooks), list(trainer.datamodule.asked), trainer.global_step)


def test_a_trial_trains_a_copy(tmp_path):
    callback = TryOut()
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], num_sanity_val_steps=0, default_root_dir=tmp_path)
    trainer.fit(Module(), datamodule=Data())
    assert callback.trained == (5, ["on_fit_start"], 5, ["valid"])
    assert (callback.shares_data, callback.moved) == (True, True)
    assert callback.same and callback.freed
    assert callback.left == (0, [], [], 0)
    assert trainer.global_step == 8
