"""A run that is killed after the save of an epoch's last batch, resumed, and interrupted again in that validation."""

import json
import os
import signal

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from espnet3_lite import Callback, LiteModule
from espnet3_lite.callbacks import ModelCheckpoint


class Stream(IterableDataset):
    """24 samples whose number nobody says: the last batch is known by looking ahead."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        for _ in range(24):
            yield torch.randn(2, generator=generator), torch.ones(1)


class Model(LiteModule):
    """One epoch scheduler follows the training loss, which is logged as the epoch's mean."""

    def __init__(self, signal_in_validation_batch):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.signal_in_validation_batch, self.validation_batches = signal_in_validation_batch, 0

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.validation_batches += 1
        if self.validation_batches == self.signal_in_validation_batch:
            signal.raise_signal(signal.SIGTERM)
        self.log("val_loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1.0, min_lr=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}


class Note(Callback):
    """Writes a line an epoch; kills the process at the start of the second epoch's validation, if asked to."""

    def __init__(self, folder, kill):
        self.folder, self.kill = folder, kill

    def on_validation_start(self, trainer, pl_module):
        if self.kill and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        with open(self.folder / "epochs.jsonl", "a") as file:
            file.write(json.dumps([trainer.current_epoch, trainer.global_step, values]) + "\n")

    def on_train_end(self, trainer, pl_module):
        state = [trainer.optimizers[0].param_groups[0]["lr"], pl_module.layer.weight.flatten().tolist()]
        (self.folder / "end.json").write_text(json.dumps(state))


def run(folder, iterable, kill=False, signal_in_validation_batch=0):
    """Fit in a process of its own, from the folder's newest checkpoint; returns its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(24, 2, generator=generator), torch.ones(24, 1))
    train = DataLoader(Stream(), batch_size=4) if iterable else DataLoader(data, batch_size=4, shuffle=True)
    val = DataLoader(TensorDataset(torch.randn(8, 2, generator=generator), torch.ones(8, 1)), batch_size=4)
    trainer = quiet_trainer(
        max_epochs=4,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        auto_resume=True,
        callbacks=[Note(folder, kill), ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_last=True)],
        enable_checkpointing=True,
    )
    try:
        trainer.fit(Model(signal_in_validation_batch), train, val)
    except SystemExit as ended:
        os._exit(ended.code)
    except BaseException:
        os._exit(99)
    os._exit(0)


@pytest.mark.parametrize("iterable", [False, True], ids=["list", "stream"])
def test_interrupted_twice_at_an_epochs_last_batch(tmp_path, iterable):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert run(whole, iterable) == 0
    assert os.WTERMSIG(run(cut, iterable, kill=True)) == signal.SIGKILL
    assert os.WEXITSTATUS(run(cut, iterable, signal_in_validation_batch=1)) == 128 + signal.SIGTERM
    assert run(cut, iterable) == 0
    assert (cut / "epochs.jsonl").read_text() == (whole / "epochs.jsonl").read_text()
    assert (cut / "end.json").read_text() == (whole / "end.json").read_text()
