"""The model that most callback tests train. Its learning is not looked at."""

import torch

from espnet3_lite import LiteModule


class Line(LiteModule):
    """One weight and a bias; logs nothing. A test that needs more overrides `validation_step`."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.layer(batch)

    def test_step(self, batch, batch_idx):
        self.layer(batch)

    def predict_step(self, batch, batch_idx):
        self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
