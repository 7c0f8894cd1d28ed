"""The best two checkpoints stay, and their average is taken: its weights are the mean of theirs.

python examples/tour/05_top_k_and_average.py
"""

import tempfile
from pathlib import Path

import torch

from espnet3_lite import LiteModule, Trainer, average_checkpoints
from espnet3_lite.callbacks import ModelCheckpoint


class Line(LiteModule):
    """One weight that an epoch moves by one; the validation says how far it is from 2.4."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("distance", (self.weight.detach() - 2.4).abs())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


with tempfile.TemporaryDirectory() as folder:
    best = ModelCheckpoint(dirpath=folder, filename="{epoch}", monitor="distance", mode="min", save_top_k=2)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[best],
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), [torch.zeros(1)], [torch.zeros(1)])

    for path, score in sorted(best.best_k_models.items()):
        print(Path(path).name, f"distance {score:.1f}")  # after epoch 1 the weight is 2, after epoch 2 it is 3
    average_checkpoints(sorted(best.best_k_models), Path(folder) / "average.pth")
    average = torch.load(Path(folder) / "average.pth", weights_only=True)
    print("average of the weights:", average["weight"].item())
