"""Random changes of the features while training.

All randomness comes from torch's global generator: checkpoints keep its state, so a resumed run repeats it.
"""

import torch
import torch.nn.functional as F
from torch import nn


class VaryTempoAndLoudness(nn.Module):
    """Stretch a whole batch in time by up to 15% and make each recording louder or softer.

    Args:
        tempo: Largest relative change of the duration.
        loudness: Standard deviation of what is added to the log energies (0.7 is 3 dB).
    """

    def __init__(self, tempo: float = 0.15, loudness: float = 0.7):
        super().__init__()
        self.tempo, self.loudness = tempo, loudness

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Change log energies ``(batch, frames, filters)`` and ``lengths``; nothing in evaluation."""
        if not self.training:
            return features, lengths
        # A number on the CPU, whatever the device: it decides a shape, and so must not wait for a GPU.
        factor = 1 + self.tempo * (2 * torch.rand(()).item() - 1)
        frames = max(1, round(features.size(1) * factor))
        stretched = F.interpolate(features.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
        lengths = (lengths * factor).long().clamp(min=1, max=frames)
        gain = self.loudness * torch.randn(len(features), 1, 1, device=features.device)
        return stretched + gain, lengths


class HideBands(nn.Module):
    """Set one random band of features and one of frames of each recording to 0, the mean.

    This is SpecAugment without its time warping (Park et al., 2019).

    Args:
        max_features: Largest width of the band of features.
        max_share: Largest share of a recording's frames that is hidden.
    """

    def __init__(self, max_features: int = 10, max_share: float = 0.15):
        super().__init__()
        self.max_features, self.max_share = max_features, max_share

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Hide bands of normalised features ``(batch, frames, filters)``; nothing in evaluation."""
        if not self.training:
            return features
        batch, frames, size = features.shape
        every_feature = torch.full((batch,), size, device=features.device)
        widest = torch.full((batch,), self.max_features, device=features.device)
        hidden_features = random_bands(every_feature, widest, size)
        hidden_frames = random_bands(lengths, self.max_share * lengths, frames)
        return features.masked_fill(hidden_features.unsqueeze(1) | hidden_frames.unsqueeze(2), 0.0)


def random_bands(length: torch.Tensor, widest: torch.Tensor, size: int) -> torch.Tensor:
    """``(batch, size)`` bool: in each row a band of random width up to ``widest``, within ``length``."""
    width = torch.rand(len(length), device=length.device) * widest
    start = torch.rand(len(length), device=length.device) * (length - width)
    position = torch.arange(size, device=length.device)
    return (position >= start.unsqueeze(1)) & (position < (start + width).unsqueeze(1))
