"""A small vocoder: from log-mel energies to a waveform, trained against a discriminator of spectra."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from espnet3_lite import OptimizationStep
from examples.spoken_digits.features import mel_filterbank
from examples.vocoder.spectra import FFT_SIZE, log_spectral_distance, log_spectrum, spectrum, waveform

BINS = FFT_SIZE // 2 + 1


class LogMel(nn.Module):
    """Waveforms ``(batch, samples)`` to natural logarithms of mel energies ``(batch, frames, filters)``, every 10 ms.

    Args:
        filters: Number of mel filters.
    """

    def __init__(self, filters: int = 40):
        super().__init__()
        self.register_buffer("filterbank", mel_filterbank(8000, FFT_SIZE, filters), persistent=False)

    def forward(self, speech: torch.Tensor) -> torch.Tensor:
        energies = spectrum(speech).abs().square().transpose(1, 2) @ self.filterbank
        return energies.clamp(min=1e-6).log()


class Block(nn.Module):
    """A convolution over time for each channel, then a layer over channels; ConvNeXt's (Liu et al., 2022)."""

    def __init__(self, size: int):
        super().__init__()
        self.over_time = nn.Conv1d(size, size, kernel_size=7, padding=3, groups=size)
        self.norm = nn.LayerNorm(size)
        self.over_channels = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, frames, size)`` to the same."""
        y = self.over_time(x.transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm(y))


class Generator(nn.Module):
    """Predicts magnitude and phase of each frame; the inverse Fourier transform does the rest (Siuzdak, 2023).

    Args:
        filters: Number of mel filters.
        size: Channels of the hidden layers.
        blocks: How many.
    """

    def __init__(self, filters: int = 40, size: int = 128, blocks: int = 4):
        super().__init__()
        self.first = nn.Conv1d(filters, size, kernel_size=7, padding=3)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(blocks)), nn.LayerNorm(size))
        self.output = nn.Linear(size, 2 * BINS)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """``(batch, frames, filters)`` to ``(batch, 80 * (frames - 1))``."""
        x = self.first(log_mel.transpose(1, 2) / 6 + 1).transpose(1, 2)  # silence, at -13.8, becomes -1.3
        logarithm, angle = self.output(self.blocks(x)).transpose(1, 2).chunk(2, dim=1)
        # 6: no frame of 32 ms is louder than exp(6); an untrained network's exponential would overflow
        return waveform(torch.polar(logarithm.clamp(max=6).exp(), angle))


class Discriminator(nn.Module):
    """Scores patches of complex spectra, so that it hears phases too; convolutions over frequency and time.

    Args:
        size: Channels of each layer.
    """

    def __init__(self, size: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            weight_norm(nn.Conv2d(2, size, kernel_size=5, stride=2, padding=2)),
            nn.LeakyReLU(0.1),
            weight_norm(nn.Conv2d(size, 2 * size, kernel_size=5, stride=2, padding=2)),
            nn.LeakyReLU(0.1),
            weight_norm(nn.Conv2d(2 * size, 2 * size, kernel_size=3, stride=(2, 1), padding=1)),
            nn.LeakyReLU(0.1),
            weight_norm(nn.Conv2d(2 * size, 1, kernel_size=3, padding=1)),
        )

    def forward(self, speech: torch.Tensor) -> torch.Tensor:
        """Waveforms ``(batch, samples)`` to scores ``(batch, frequencies, times)`` of patches; higher is more real."""
        spectra = spectrum(speech)
        # The fourth root brings loud and soft parts nearer to one another, and leaves the phases alone.
        loudness = spectra.abs().clamp(min=1e-4)
        return self.layers(torch.view_as_real(spectra / loudness**0.75).permute(0, 3, 1, 2)).squeeze(1)


class Vocoder(nn.Module):
    """Both networks. `forward` names for each loss the optimizer that it belongs to.

    Args:
        size: Channels of the generator's hidden layers.
        mel_weight: Weight of the distance of the log-mel energies in the generator's loss.
        spectrum_weight: Weight of the distance of the log spectra.

    >>> model = Vocoder(size=16).eval()
    >>> steps, stats, weight = model(speech=torch.randn(2, 4080))
    >>> [step.name for step in steps], sorted(stats), int(weight)
    (['discriminator', 'generator'], ['fake_score', 'lsd', 'mel', 'real_score'], 2)
    """

    def __init__(self, size: int = 128, mel_weight: float = 10.0, spectrum_weight: float = 5.0):
        super().__init__()
        self.mel_weight, self.spectrum_weight = mel_weight, spectrum_weight
        self.log_mel = LogMel()
        self.generator = Generator(size=size)
        self.discriminator = Discriminator()

    def forward(self, speech: torch.Tensor):
        """One batch of waveforms ``(batch, samples)``, with samples a multiple of 80.

        Returns:
            A step of the discriminator and one of the generator, stats, and the number of waveforms.
        """
        log_mel = self.log_mel(speech)
        fake = self.generator(log_mel)
        real_score, fake_score = self.discriminator(torch.cat([speech, fake.detach()])).chunk(2)
        discriminator_loss = F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean()  # hinge
        mel_distance = F.l1_loss(self.log_mel(fake), log_mel)
        decibels = F.l1_loss(log_spectrum(fake), log_spectrum(speech))
        generator_loss = (
            -self.discriminator(fake).mean() + self.mel_weight * mel_distance + self.spectrum_weight * decibels / 10
        )
        stats = {
            "real_score": real_score.mean().detach(),
            "fake_score": fake_score.mean().detach(),
            "mel": mel_distance.detach(),
        }
        if not self.training:
            stats["lsd"] = log_spectral_distance(speech, fake)
        steps = [
            OptimizationStep(loss=discriminator_loss, name="discriminator"),
            OptimizationStep(loss=generator_loss, name="generator"),
        ]
        return steps, stats, torch.tensor(len(speech), device=speech.device)
