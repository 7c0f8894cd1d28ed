"""examples/vocoder: spectra and back, segments, the losses, the judgement. The training itself runs in a slow test."""

import wave

import numpy as np
import pytest
import torch

from examples.vocoder.evaluate import evaluate, write_wav
from examples.vocoder.model import Vocoder
from examples.vocoder.segments import SEGMENT, CutSegment
from examples.vocoder.spectra import griffin_lim, log_spectral_distance, spectrum, waveform


def tones(*pitches):
    """``(number of pitches, SEGMENT)``, in Hz at 8 kHz."""
    time = torch.arange(SEGMENT) / 8000
    return torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * time) for pitch in pitches])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Vocoder(size=16)


def test_spectra_have_a_frame_every_ten_milliseconds_and_come_back():
    speech = tones(440, 1000)
    spectra = spectrum(speech)
    assert spectra.shape == (2, 129, 52)
    assert spectra[1, :, 25].abs().argmax() == 32  # 1000 Hz in steps of 31.25 Hz
    torch.testing.assert_close(waveform(spectra), speech, atol=1e-5, rtol=0)


def test_the_distance_is_zero_for_the_same_and_twenty_decibels_for_a_tenth():
    torch.manual_seed(0)
    noise = torch.randn(2, SEGMENT)
    assert log_spectral_distance(noise, noise) == 0
    torch.testing.assert_close(log_spectral_distance(noise, noise / 10), torch.tensor(20.0), atol=0.01, rtol=0)


def test_griffin_lim_finds_a_tones_pitch_and_repeats_itself(model):
    log_mel = model.log_mel(tones(1000))
    speech = griffin_lim(log_mel, model.log_mel.filterbank)
    assert speech.shape == (1, SEGMENT) and torch.equal(speech, griffin_lim(log_mel, model.log_mel.filterbank))
    assert abs(spectrum(speech)[0, :, 25].abs().argmax() - 32) <= 1


def test_griffin_lims_iterations_bring_the_energies_nearer(model):
    torch.manual_seed(0)
    log_mel = model.log_mel(torch.randn(2, SEGMENT))
    errors = []
    for iterations in (0, 2, 60):
        made = griffin_lim(log_mel, model.log_mel.filterbank, iterations)
        errors.append((model.log_mel(made) - log_mel).abs().mean())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("samples", "kept"), [(100, slice(1990, 2090)), (SEGMENT, slice(0, SEGMENT))])
def test_a_short_recording_stands_in_silence(samples, kept):
    speech = np.arange(1, samples + 1, dtype=np.float32)
    cut = CutSegment()({"speech": speech, "text": "one"})
    assert list(cut) == ["speech"] and cut["speech"].shape == (SEGMENT,) and cut["speech"].dtype == np.float32
    np.testing.assert_array_equal(cut["speech"][kept], speech)
    assert cut["speech"].sum() == speech.sum()


def test_a_long_recording_keeps_its_middle():
    cut = CutSegment()({"speech": np.arange(SEGMENT + 20, dtype=np.float32)})["speech"]
    assert cut[0] == 10 and cut[-1] == SEGMENT + 9


def test_each_loss_is_named_and_reaches_its_own_network(model):
    speech = tones(440, 1000)
    (discriminator, generator), stats, weight = model(speech=speech)
    assert (discriminator.name, generator.name, int(weight)) == ("discriminator", "generator", 2)
    assert set(stats) == {"real_score", "fake_score", "mel"} and not any(v.requires_grad for v in stats.values())
    discriminator.loss.backward(retain_graph=True)
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.discriminator.parameters())
    generator.loss.backward(inputs=list(model.generator.parameters()))
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.generator.parameters())


def test_losses_equal_their_formulas(model):
    model.eval()
    speech = tones(440, 1000)
    (discriminator, generator), stats, _ = model(speech=speech)
    fake = model.generator(model.log_mel(speech))
    real_score, fake_score = model.discriminator(speech), model.discriminator(fake)
    hinge = (1 - real_score).clamp(min=0).mean() + (1 + fake_score).clamp(min=0).mean()
    torch.testing.assert_close(discriminator.loss, hinge)
    torch.testing.assert_close(stats["lsd"], log_spectral_distance(speech, fake))
    rest = generator.loss + fake_score.mean() - 10 * stats["mel"]
    assert rest > 0  # 0.5 for each decibel
    twice = Vocoder(size=16, spectrum_weight=10.0)
    twice.load_state_dict(model.state_dict())
    torch.testing.assert_close(twice(speech)[0][1].loss - generator.loss, rest)


def test_silence_gives_finite_gradients(model):
    steps, _, _ = model(speech=torch.zeros(2, SEGMENT))
    sum(step.loss for step in steps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_evaluation_compares_with_griffin_lim_and_leaves_samples(model, tmp_path):
    result = evaluate(model, tones(440, 1000))
    assert set(result) == {"trained", "griffin_lim", "untrained"} and result["griffin_lim"][0] < result["trained"][0]
    write_wav(tmp_path / "a.wav", torch.tensor([0.0, 0.5, -2.0]))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getframerate() == 8000
        assert np.frombuffer(file.readframes(3), dtype="<i2").tolist() == [0, 16383, -32767]
