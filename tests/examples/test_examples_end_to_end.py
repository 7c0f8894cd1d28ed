"""The lessons by their own commands: what they reach, what they leave behind, and that a cut run is the same run."""

import json
import os
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from lesson_runs import assert_same_values, printed_number, run, run_until

from examples.spoken_digits.dataset import SAMPLE_RATE, WORDS
from examples.spoken_digits.text import LETTERS

DIGITS, GAN = "examples/digits/train.yaml", "examples/gan/train.yaml"
SPOKEN, VOCODER = "examples/spoken_digits/train.yaml", "examples/vocoder/train.yaml"


@pytest.fixture
def sklearn():
    """The digits are part of scikit-learn."""
    return pytest.importorskip("sklearn", reason="the digits are part of scikit-learn")


# ---- digits --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_epochs_of_digits_leave_what_the_report_names(tmp_path, sklearn):
    exp_dir = tmp_path / "exp"
    output = run("train", DIGITS, f"exp_dir={exp_dir}", "trainer.max_epochs=2")
    report = output[output.index("trained 2 epochs, 76 steps\n") :]
    assert printed_number("valid/acc", report) > 0.8
    best = re.search(r"^  best valid/acc [\d.]+ in (epoch[01]_step\d+_valid\.acc\.ckpt)$", report, flags=re.MULTILINE)
    assert (exp_dir / best[1]).is_file()
    _, named = report.split(f"written to {exp_dir}:\n")
    names = [line.split()[0] for line in named.splitlines()]
    assert names == [
        "config.yaml", "train.log", "last.ckpt", "epoch0_step38_valid.acc.ckpt", "valid.acc.ave_2best.pth",
        "valid.loss.ave_2best.pth", "status.json", "images", "lightning_logs/version_0",
    ]  # fmt: skip
    assert all((exp_dir / name).exists() for name in names)
    assert len(list(exp_dir.glob("epoch*.ckpt"))) == 4 and "epoch0_step38_valid.acc.ckpt ... (4)" in named
    status = json.loads((exp_dir / "status.json").read_text())
    assert (status["status"], status["epoch"], status["global_step"]) == ("finished", 1, 76)
    log = (exp_dir / "train.log").read_text()
    for line in ("1epoch:train:1-19batch: ", "2epoch:train:20-38batch: ", "epoch_summary:2epoch:valid: "):
        assert log.count(f" INFO {line}") == output.count(f" INFO {line}") == 1
    assert "WARNING" not in output


@pytest.mark.slow
def test_digits_are_recognised(tmp_path, sklearn):
    output = run("train", DIGITS, f"exp_dir={tmp_path}")
    assert printed_number("valid/acc", output) > 0.97
    assert printed_number("test/acc", run("test", DIGITS, f"exp_dir={tmp_path}")) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("signal_name", "code"), [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)])
def test_a_cut_run_of_digits_ends_with_the_same_bits(tmp_path, sklearn, signal_name, code):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("train", DIGITS, f"exp_dir={whole}")
    arguments = ("train", DIGITS, f"exp_dir={cut}")
    assert run_until("5epoch:train:1-19batch", signal_name, *arguments) == code
    if signal_name != "SIGKILL":
        assert {"last.ckpt", "valid.acc.ave_3best.pth", "valid.loss.ave_3best.pth"} <= {p.name for p in cut.iterdir()}
        status = json.loads((cut / "status.json").read_text())
        assert (status["status"], status["signal"], status["epoch"]) == ("interrupted", signal_name, 4)
        log = (cut / "train.log").read_text()
        assert log.endswith(f"the run was cut by a signal; the same command goes on from {cut / 'last.ckpt'}\n")
        assert torch.load(cut / "last.ckpt", weights_only=True)["global_step"] == status["global_step"] > 4 * 38
    run(*arguments)
    ends = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, cut)]
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_values(*(end[key] for end in ends), key)
    names = {path.name for path in whole.iterdir()} - {"train.log"}
    assert names == {path.name for path in cut.iterdir()} - {"train.log"}
    for name in ("valid.acc.ave_3best.pth", "valid.loss.ave_3best.pth"):
        assert_same_values(*(torch.load(folder / name, weights_only=True) for folder in (whole, cut)), name)


# ---- gan -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_generators_digits_are_recognised(tmp_path, sklearn):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    run("train", DIGITS, f"exp_dir={tmp_path}/digits")
    run("train", GAN, f"exp_dir={tmp_path}/gan")
    assert len(list((tmp_path / "gan" / "samples").glob("epoch*.png"))) == 15
    weights = (tmp_path / "gan" / "valid.nearest.ave_3best.pth", tmp_path / "digits" / "valid.acc.ave_3best.pth")
    output = run("examples.gan.evaluate", *weights)
    generated, real = re.search(
        r"recognised: ([\d.]+)% of the generated digits, ([\d.]+)% of the real", output
    ).groups()
    assert float(generated) >= 80 and float(real) > 97
    variety = float(re.search(r"variety within a digit: ([\d.]+) of", output)[1])
    assert 0.8 < variety < 1.2


# ---- spoken digits -------------------------------------------------------------------------------------------------


needs_recordings = pytest.mark.skipif(
    "FSDD" not in os.environ, reason="FSDD names the folder 'recordings' of the Free Spoken Digit Dataset"
)


def words_right(output):
    """In percent, of the test set."""
    return float(re.search(r"whole words right ([\d.]+)%", output)[1])


@pytest.mark.slow
@needs_recordings
def test_spoken_digits_are_spelt(tmp_path):
    recordings = Path(os.environ["FSDD"])
    arguments = (SPOKEN, f"data_dir={recordings}", f"exp_dir={tmp_path}")
    run("collect-stats", *arguments)
    run("train", *arguments)
    assert words_right(run("examples.spoken_digits.evaluate", tmp_path / "valid.cer.ave_5best.pth", recordings)) > 97


def write_melodies(folder):
    """Words as melodies: a tone a letter, 0.1 s with a short rest after it; 50 takes that differ in pitch and noise."""
    folder.mkdir()
    random = np.random.RandomState(0)
    pitches = np.geomspace(250, 3200, len(LETTERS))
    time = np.arange(SAMPLE_RATE // 10) / SAMPLE_RATE
    rest = np.zeros(SAMPLE_RATE // 50)
    for digit, word in enumerate(WORDS):
        for take in range(50):
            detune = 1 + 0.02 * random.randn()
            tones = [np.sin(2 * np.pi * detune * pitches[LETTERS.index(letter)] * time) for letter in word]
            samples = np.concatenate([part for tone in tones for part in (tone, rest)])
            samples = 0.3 * samples + 0.01 * random.randn(len(samples))
            with wave.open(str(folder / f"{digit}_tones_{take}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes((32767 * samples).astype("<i2").tobytes())


@pytest.mark.slow
def test_melodies_are_spelt(tmp_path):
    write_melodies(tmp_path / "recordings")
    arguments = (SPOKEN, f"data_dir={tmp_path}/recordings", f"exp_dir={tmp_path}/exp")
    run("collect-stats", *arguments)
    settings = ("scheduler.steps_per_epoch=13", "trainer.max_epochs=20", "trainer.log_every_n_steps=13")
    run("train", *arguments, *settings)
    output = run("examples.spoken_digits.evaluate", tmp_path / "exp/valid.cer.ave_5best.pth", tmp_path / "recordings")
    assert words_right(output) > 90


# ---- vocoder -------------------------------------------------------------------------------------------------------


def distances(output):
    """Log-spectral distances in dB: of the vocoder, of Griffin-Lim, of the untrained network."""
    return [printed_number(name, output) for name in ("trained", "griffin_lim", "untrained")]


@pytest.mark.slow
@needs_recordings
def test_the_vocoder_is_as_near_to_the_recordings_as_griffin_lim(tmp_path):
    recordings = Path(os.environ["FSDD"])
    run("train", VOCODER, f"data_dir={recordings}", f"exp_dir={tmp_path}")
    trained, griffin_lim, untrained = distances(
        run("examples.vocoder.evaluate", tmp_path / "valid.lsd.ave_3best.pth", recordings)
    )
    assert trained < griffin_lim + 0.5 and trained < untrained / 4


@pytest.mark.slow
def test_the_vocoder_learns_melodies(tmp_path):
    write_melodies(tmp_path / "recordings")
    run("train", VOCODER, f"data_dir={tmp_path}/recordings", f"exp_dir={tmp_path}/exp", "trainer.max_epochs=4")
    output = run(
        "examples.vocoder.evaluate", tmp_path / "exp/valid.lsd.ave_3best.pth", tmp_path / "recordings",
        "--wav", tmp_path / "wav",
    )  # fmt: skip
    trained, _, untrained = distances(output)
    assert trained < untrained / 2
    assert len(list((tmp_path / "wav").glob("*.vocoder.wav"))) == 2
