"""The run whose checkpoints `make_first_layout.py` recorded: shuffled batches, noise, windows, two schedulers."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import LiteModule


class Line(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.layer(x + 0.1 * torch.randn_like(x)) - y).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", (self.layer(x) - y).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}


def loaders():
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(12, 2, generator=generator), torch.ones(12, 1))
    return DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=6)


def weights_of(trainer, module):
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return {"weights": module.layer.weight.flatten().tolist(), "lr": rate, "steps": trainer.global_step}
