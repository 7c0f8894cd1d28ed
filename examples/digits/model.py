"""A small convolutional classifier in ESPnet3's contract: ``loss, stats, weight = model(**batch)``."""

import torch
import torch.nn.functional as F
from torch import nn


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers for 8 x 8 images.

    Args:
        channels: Channels of the first convolution; the second has twice as many.
        dropout: Probability of dropping a feature before the last layer.

    >>> model = DigitClassifier()
    >>> loss, stats, weight = model(image=torch.rand(4, 8, 8), label=torch.tensor([[3], [1], [4], [1]]))
    >>> sorted(stats), int(weight)
    (['acc', 'loss'], 4)
    """

    def __init__(self, channels: int = 32, dropout: float = 0.25):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (batch, channels, 4, 4)
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (batch, 2 * channels, 2, 2)
            nn.Flatten(),
            nn.Linear(8 * channels, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, 10),
        )

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities ``(batch, 10)`` of images ``(batch, 8, 8)`` in [0, 1]."""
        return self.network(image.unsqueeze(1))

    def forward(self, image: torch.Tensor, label: torch.Tensor):
        """Train or validate on one batch; the arguments are the keys of a data set's item.

        Args:
            image: ``(batch, 8, 8)`` float32.
            label: ``(batch, 1)`` int64.

        Returns:
            The loss to differentiate; what is logged as ``train/...`` and ``valid/...``, detached so that a
            logged value does not keep the graph alive; and the weight of this batch in the epoch's mean.
        """
        logits, target = self.logits(image), label.squeeze(1)
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        stats = {"loss": loss.detach(), "acc": accuracy}
        return loss, stats, torch.tensor(len(image), device=loss.device)
