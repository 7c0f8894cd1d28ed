"""The model, and what one step of its training computes. `conf/training.yaml` names the class and its arguments."""

import torch
from torch import nn

from espnet3_lite import LiteModule


class DigitClassifier(LiteModule):
    """Two convolutions and a linear layer for images of 8 x 8 pixels.

    The optimizer and the data are the configuration's. A model may define `configure_optimizers` itself instead.

    Args:
        channels: Channels of the first convolution; the second has twice as many.

    >>> DigitClassifier()(torch.rand(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(self, channels: int = 16):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (batch, channels, 4, 4)
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (batch, 2 * channels, 2, 2)
            nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities, ``(batch, 10)``, of images, ``(batch, 1, 8, 8)``."""
        return self.network(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss of one batch, ``()``; it is logged too."""
        return self._loss(batch, "train")

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy of one batch; their means over the epoch choose the best checkpoints."""
        self._loss(batch, "valid")

    test_step = validation_step

    def _loss(self, batch: tuple[torch.Tensor, torch.Tensor], part: str) -> torch.Tensor:
        images, digits = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, digits)
        self.log(f"{part}/loss", loss, prog_bar=True)
        self.log(f"{part}/acc", (logits.argmax(dim=1) == digits).float().mean(), prog_bar=True)
        return loss
