"""Searches with Lightning's `Tuner`, each followed by a training, with what they found.

``python lightning_tuner.py`` in an environment with Lightning 2.6.6 writes `lightning_tuner.json`. The test has `python
-m espnet3_lite.compat` change the imports of this file, and nothing else, and runs it here.
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    """Has no memory for more than `limit` samples."""

    def __init__(self, lr=0.1, batch_size=4, limit=10**9, dropout=0.0, count=100, optimizer="SGD", shuffle=False):
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.batch_size = lr, batch_size
        self.net = torch.nn.Sequential(
            torch.nn.Linear(5, 8), torch.nn.Dropout(dropout), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def loss(self, batch):
        if len(batch[0]) > self.hparams.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: out of memory")
        return (self.net(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.hparams.optimizer)(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

    def loader(self, shuffle=False):
        generator = torch.Generator().manual_seed(3)
        inputs, noise = (torch.randn(self.hparams.count, width, generator=generator) for width in (5, 1))
        targets = inputs.sum(1, keepdim=True) + noise
        return DataLoader(TensorDataset(inputs, targets), batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self):
        return self.loader(self.hparams.shuffle)

    val_dataloader = test_dataloader = predict_dataloader = loader


class Noting(pl.Callback):
    """The hooks around a call; a search is over before the training begins."""

    def __init__(self):
        self.calls = []


for hook in ("setup", "teardown", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_exception"):
    setattr(Noting, hook, lambda self, *_, hook=hook, **__: self.calls.append(hook))

NEVER = {"early_stop_threshold": None}
#: Which search, with what module, trainer and arguments.
SEARCHES = {
    "rate": ("lr_find", {"batch_size": 20}, {"max_epochs": 30}, {}),
    "rate_random": ("lr_find", {"dropout": 0.3, "shuffle": True, "optimizer": "Adam"}, {"max_epochs": 5}, NEVER),
    "rate_few_epochs": ("lr_find", {"shuffle": True}, {"max_epochs": 2}, NEVER),
    "rate_linear": ("lr_find", {}, {"max_epochs": 5}, {"mode": "linear", "num_training": 40, "max_lr": 0.1, **NEVER}),
    "rate_explodes": ("lr_find", {"batch_size": 20}, {"max_epochs": 30}, {"max_lr": 1e3, "num_training": 60}),
    "rate_windows": ("lr_find", {}, {"max_epochs": 9, "accumulate_grad_batches": 2}, NEVER),
    "rate_limits": ("lr_find", {"shuffle": True, "dropout": 0.3}, {"max_epochs": 5, "limit_train_batches": 8}, NEVER),
    "rate_validates": ("lr_find", {"shuffle": True}, {"max_epochs": 3, "val_check_interval": 0.25}, NEVER),
    "rate_not_set": ("lr_find", {"batch_size": 20}, {"max_epochs": 9}, {"update_attr": False}),
    "rate_fast_dev_run": ("lr_find", {}, {"fast_dev_run": True}, {}),
    "size": ("scale_batch_size", {"limit": 40, "count": 300, "optimizer": "Adam"}, {}, {}),
    "size_binary": ("scale_batch_size", {"limit": 40, "count": 300}, {}, {"mode": "binsearch", "steps_per_trial": 2}),
    "size_few_trials": ("scale_batch_size", {"count": 300}, {}, {"max_trials": 2, "init_val": 3}),
    "size_of_a_test": ("scale_batch_size", {"limit": 40, "count": 300}, {}, {"method": "test", "mode": "binsearch"}),
    "size_of_a_prediction": ("scale_batch_size", {"limit": 40, "count": 300}, {}, {"method": "predict"}),
}


def noted(name, folder):
    """One search and the training after it, in float64."""
    method, of_module, of_trainer, arguments = SEARCHES[name]
    torch.set_default_dtype(torch.float64)
    pl.seed_everything(1)
    module, calls = Net(**of_module), Noting()
    run = pl.Trainer(
        **{"max_epochs": 2, **of_trainer}, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[calls], default_root_dir=folder,
    )  # fmt: skip
    found = getattr(Tuner(run), method)(module, **arguments)
    if method == "lr_find" and found is not None:
        found = {**found.results, "suggestions": [found.suggestion(), found.suggestion(3, 4)]}
    after = [module.lr, module.hparams.lr, module.batch_size, module.hparams.batch_size, run.global_step]
    first = module.net[0].weight.sum().item()
    if method != "lr_find":
        torch.manual_seed(2)
    run.fit(module)
    weights = [parameter.sum().item() for parameter in module.parameters()]
    rate = run.optimizers[0].param_groups[0]["lr"]
    return {"found": found, "after": after, "first": first, "weights": weights, "rate": rate, "calls": calls.calls}


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        everything = {name: noted(name, place) for name in SEARCHES}
    Path(__file__).with_suffix(".json").write_text(json.dumps(everything) + "\n")
