"""From waveforms to normalised log-mel features, in plain torch. Augmentation is in `augment.py`."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

logger = logging.getLogger(__name__)


def mel_filterbank(sample_rate: int, fft_size: int, filters: int) -> torch.Tensor:
    """Triangular filters whose corners are equally spaced on the mel scale.

    The scale is ``mel = 2595 log10(1 + hertz / 700)`` (O'Shaughnessy, Speech Communication, 1987, p. 150);
    the triangles are those of Davis and Mermelstein (1980).

    Returns:
        ``(fft_size // 2 + 1, filters)`` float32: multiply a power spectrum by it from the right.
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, filters + 2) / 2595) - 1)  # hertz
    frequencies = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def padding_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """``(batch, size)`` bool, true where a frame is real and false where it is padding."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


class LogMel(nn.Module):
    """Waveforms ``(batch, samples)`` to ``(batch, frames, filters)`` log-mel energies (natural logarithm).

    Frames of 25 ms every 10 ms, centred, so that a waveform of n samples gives ``1 + n // hop`` frames.

    Args:
        sample_rate: In Hz.
        filters: Number of mel filters.
    """

    def __init__(self, sample_rate: int = 8000, filters: int = 40):
        super().__init__()
        self.fft_size, self.window_size, self.hop = 256, sample_rate // 40, sample_rate // 100
        # Constants, not parameters: the constructor computes them anew, so checkpoints need not hold them.
        self.register_buffer("window", torch.hann_window(self.window_size), persistent=False)
        filterbank = mel_filterbank(sample_rate, self.fft_size, filters)
        self.register_buffer("filterbank", filterbank, persistent=False)

    def forward(self, speech: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spectrum = torch.stft(
            speech,
            n_fft=self.fft_size,
            hop_length=self.hop,
            win_length=self.window_size,
            window=self.window,
            pad_mode="constant",  # zeros, as batches are padded: the last frame is the same in any batch
            return_complex=True,
        )
        energies = spectrum.abs().square().transpose(1, 2) @ self.filterbank
        # 1e-6 is the energy of silence: the logarithm of digital zero would be minus infinity
        return energies.clamp(min=1e-6).log(), 1 + lengths // self.hop


class GlobalMVN(nn.Module):
    """Subtract the training set's mean and divide by its standard deviation, for each feature.

    ``espnet3-lite collect-stats`` writes the file (keys ``count``, ``sum``, ``sum_square``, as ESPnet does).
    While there is none, one mean and deviation that are typical of speech stand for all features. Both are
    buffers and travel in the checkpoint, so that the file is needed for training alone.

    Args:
        stats_file: Path of ``feats_stats.npz``, or None.
        size: Number of features.

    Raises:
        ValueError: If the file's statistics are of another size.
    """

    def __init__(self, stats_file: str | None, size: int):
        super().__init__()
        self.register_buffer("mean", torch.full((size,), -6.0))
        self.register_buffer("std", torch.full((size,), 3.5))
        if stats_file is None or not Path(stats_file).is_file():
            logger.info("no statistics at %s: using typical ones; collect-stats measures them", stats_file)
            return
        with np.load(stats_file) as stats:
            mean = stats["sum"] / stats["count"]
            variance = stats["sum_square"] / stats["count"] - mean**2
        if mean.shape != (size,):
            raise ValueError(f"{stats_file}: statistics of shape {mean.shape}, the features need ({size},)")
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.sqrt(np.maximum(variance, 1e-20))))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std
