"""Spectra to judge by: their distance, and the classic way from mel energies to a waveform without learning."""

import torch

FFT_SIZE, HOP = 256, 80  # 32 ms and 10 ms at 8 kHz


def spectrum(speech: torch.Tensor) -> torch.Tensor:
    """Complex short-time spectrum ``(batch, 129, 1 + samples // 80)`` of ``(batch, samples)``, with Hann windows."""
    window = torch.hann_window(FFT_SIZE, device=speech.device)
    return torch.stft(speech, FFT_SIZE, HOP, window=window, pad_mode="constant", return_complex=True)


def waveform(spectra: torch.Tensor) -> torch.Tensor:
    """Back to ``(batch, samples)``, by overlapping and adding.

    >>> speech = torch.randn(2, 800)
    >>> bool((waveform(spectrum(speech)) - speech).abs().max() < 1e-5)
    True
    """
    return torch.istft(spectra, FFT_SIZE, HOP, window=torch.hann_window(FFT_SIZE, device=spectra.device))


def log_spectrum(speech: torch.Tensor) -> torch.Tensor:
    """Energies of `spectrum` in dB; silence is -60 dB."""
    return 10 * spectrum(speech).abs().square().clamp(min=1e-6).log10()


def log_spectral_distance(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """In dB: the root of the mean square over a frame's frequencies, averaged over frames (Gray and Markel, 1976).

    >>> log_spectral_distance(torch.ones(1, 800), 0.1 * torch.ones(1, 800)) < 20
    tensor(True)
    """
    return (log_spectrum(real) - log_spectrum(fake)).square().mean(dim=1).sqrt().mean()


def griffin_lim(log_mel: torch.Tensor, filterbank: torch.Tensor, iterations: int = 60) -> torch.Tensor:
    """Find phases that agree with the energies, by going back and forth (Griffin and Lim, 1984).

    Args:
        log_mel: ``(batch, frames, filters)``, natural logarithm.
        filterbank: ``(129, filters)``; its pseudo-inverse spreads the filters' energies over the frequencies.
        iterations: How often to go back and forth.

    Returns:
        ``(batch, samples)`` float32; the same for the same input.
    """
    energies = (log_mel.exp() @ torch.linalg.pinv(filterbank)).clamp(min=1e-8)
    magnitudes = energies.sqrt().transpose(1, 2)
    angles = 2 * torch.pi * torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0))
    speech = waveform(torch.polar(magnitudes, angles.to(magnitudes.device)))
    for _ in range(iterations):
        speech = waveform(torch.polar(magnitudes, spectrum(speech).angle()))
    return speech
