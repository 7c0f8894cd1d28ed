"""A callback that counts, and whose count survives: its `state_dict` is in the checkpoint.

python examples/tour/04_callback_with_state.py
"""

import tempfile
from pathlib import Path

import torch

from espnet3_lite import Callback, LiteModule, Trainer


class CountSamples(Callback):
    """Counts training samples over all runs that go on from one another."""

    def __init__(self):
        self.samples = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.samples += len(batch)

    def state_dict(self):
        return {"samples": self.samples}

    def load_state_dict(self, state_dict):
        self.samples = state_dict["samples"]


class Line(LiteModule):
    """The smallest module that trains."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(epochs, ckpt_path=None):
    """Train up to that many epochs; returns the trainer and its counter."""
    counter = CountSamples()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[counter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), [torch.ones(4, 2)] * 5, ckpt_path=ckpt_path)
    return trainer, counter


with tempfile.TemporaryDirectory() as folder:
    trainer, counter = train(epochs=2)
    print("after two epochs:", counter.samples)  # 2 epochs of 5 batches of 4
    trainer.save_checkpoint(Path(folder) / "two.ckpt")
    trainer, counter = train(epochs=3, ckpt_path=Path(folder) / "two.ckpt")
    print("after three, in another run:", counter.samples)
