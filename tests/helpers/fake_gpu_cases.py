"""What runs on a fake GPU, each function a case; prints one line of JSON. For `test_on_a_fake_gpu.py`.

FAKE_CUDA_LIBRARY=... python fake_gpu_cases.py FOLDER CASE
"""

import fake_cuda  # isort: skip  # before torch

import json
import sys
import warnings
from pathlib import Path

import torch
from quiet import QUIET
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
)

SETTINGS = {
    "plain": {},
    "bar": {"enable_progress_bar": True, "callbacks": [TQDMProgressBar(refresh_rate=1000)]},
    "clipped": {"gradient_clip_val": 0.1},
    "windows": {"accumulate_grad_batches": 3},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"precision": "16-mixed"},
    "16-mixed, clipped": {"precision": "16-mixed", "gradient_clip_val": 0.1},
}


class Net(LiteModule):
    """Logs its loss in each step; dropout draws numbers, batch norm keeps statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.2)
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1))

    def loss(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


def loader(count, workers=0, shuffle=False):
    x = torch.sin(torch.arange(count * 12.0)).view(count * 4, 3)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    return DataLoader(data, 4, shuffle=shuffle, num_workers=workers, pin_memory=True)


def fit(batches, device="gpu", epochs=1, workers=0, ckpt_path=None, shuffle=False, valid=True, **settings):
    torch.manual_seed(1)
    module = Net()
    trainer = Trainer(**{**QUIET, "accelerator": device, "max_epochs": epochs, "num_sanity_val_steps": 0, **settings})
    loaders = loader(batches, workers, shuffle), loader(2) if valid else None
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return module, trainer


def waits(folder):
    """How often the host waits in a step: the slope between 20 and 40 of them."""
    found = {}
    for name, settings in SETTINGS.items():
        counts = []
        for batches in (20, 40):
            fake_cuda.waits()
            fit(batches, workers=1, **settings)
            counts.append(fake_cuda.waits())
        reasons = sorted({*counts[0], *counts[1]})
        found[name] = {why: (counts[1].get(why, 0) - counts[0].get(why, 0)) / 20 for why in reasons}
    return found


def weights_of(module):
    return {name: value.double().cpu() for name, value in module.state_dict().items()}


def differs(ours, theirs):
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def trained(folder):
    """The largest difference of a weight from the same run on the CPU."""
    callbacks = {
        "averaged": lambda: [EMAWeightAveraging(decay=0.9)],
        "swa": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)],
    }
    runs = {**SETTINGS, "copied ahead": {"workers": 1}, **dict.fromkeys(callbacks)}
    del runs["bar"], runs["16-mixed"], runs["16-mixed, clipped"]  # a CPU has no scaler of its own
    found = {}
    for name, settings in runs.items():
        modules = []
        for device in ("gpu", "cpu"):
            given = {"callbacks": callbacks[name]()} if settings is None else settings
            module, trainer = fit(6, device, epochs=2, **given)
            modules.append(weights_of(module))
            assert {p.device.type for p in module.parameters()} == {"cuda" if device == "gpu" else "cpu"}
        found[name] = differs(*modules)
    return found


class Fails(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            raise RuntimeError("cut")


def resumed(folder):
    """A run that is cut and goes on, against one that is not; and one that goes on where there is no GPU."""
    found = {}
    for precision in ("32-true", "16-mixed", "bf16-mixed"):
        settings = {"epochs": 3, "shuffle": True, "precision": precision, "enable_checkpointing": True}
        whole, undisturbed = fit(6, callbacks=[ModelCheckpoint(folder / "whole", every_n_train_steps=2)], **settings)
        saved = ModelCheckpoint(folder / precision, every_n_train_steps=2, save_top_k=-1)
        try:
            fit(6, callbacks=[saved, Fails()], **settings)
        except RuntimeError as error:
            assert str(error) == "cut"
        path = saved.best_model_path
        goes_on, trainer = fit(
            6, callbacks=[ModelCheckpoint(folder / "on", every_n_train_steps=2)], ckpt_path=path, **settings
        )
        difference = differs(weights_of(goes_on), weights_of(whole))
        found[precision] = [trainer.global_step, undisturbed.global_step, difference]
    settings = {"epochs": 3, "shuffle": True, "callbacks": [], "device": "cpu"}
    on_cpu, trainer = fit(6, ckpt_path=str(next((folder / "32-true").glob("*step=8*"))), **settings)
    return {**found, "on a CPU": {"step": trainer.global_step, "device": str(next(on_cpu.parameters()).device)}}


def copied_ahead(folder):
    """What is asked of streams for each batch; nothing where batches are not copied ahead."""
    found = {}
    for name, settings in {"ahead": {"workers": 1}, "in turn": {"workers": 1, "prefetch_to_device": False}}.items():
        fake_cuda.calls.clear()
        fit(3, valid=False, **settings)
        found[name] = list(fake_cuda.calls)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(globals()[sys.argv[2]](Path(sys.argv[1]))))
