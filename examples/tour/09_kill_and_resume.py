"""A run that is killed in the middle of an epoch, and resumed, ends with the same bits as one that nobody disturbed.

The data draw random numbers, the model has dropout, Adam keeps averages: all of that is in the checkpoint.

    python examples/tour/09_kill_and_resume.py
"""

import os
import signal
import subprocess
import sys
import tempfile

import torch

from espnet3_lite import Callback, LiteModule, Trainer, seed_everything
from espnet3_lite.callbacks import ModelCheckpoint


class Noisy(torch.utils.data.Dataset):
    """Samples with noise: each reading draws anew."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((2,), float(index)) / 40 + torch.randn(2)


class Line(LiteModule):
    """A layer with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.dropout(self.layer(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Kill(Callback):
    """Kills the process at a step, as a power cut would: nothing is tidied up."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill):
    """Train three epochs of ten batches, and go on from what is in the folder."""
    seed_everything(7)
    line = Line()
    saves = ModelCheckpoint(dirpath=folder, every_n_train_steps=3, save_top_k=-1)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[saves, Kill()] if kill else [saves],
        auto_resume=True,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(line, torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True))
    return line.layer.weight


if len(sys.argv) > 1:  # the process that is killed
    train(sys.argv[1], kill=True)
with tempfile.TemporaryDirectory() as undisturbed, tempfile.TemporaryDirectory() as cut:
    expected = train(undisturbed, kill=False)
    killed = subprocess.run([sys.executable, __file__, cut])
    print("the first process ended with", killed.returncode, "and left", *sorted(os.listdir(cut)))
    print("the same bits:", torch.equal(train(cut, kill=False), expected))
