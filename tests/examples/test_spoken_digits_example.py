"""examples/spoken_digits: WAV files, letters, features, the model. Recordings are synthetic here."""

import wave

import numpy as np
import pytest
import torch

from espnet3_lite.exceptions import MisconfigurationException
from examples.spoken_digits.augment import HideBands, VaryTempoAndLoudness, random_bands
from examples.spoken_digits.dataset import WORDS, Dataset, read_wav
from examples.spoken_digits.evaluate import evaluate
from examples.spoken_digits.features import GlobalMVN, LogMel, mel_filterbank
from examples.spoken_digits.model import SpellingRecognizer
from examples.spoken_digits.text import LETTERS, SpellText, decode, edit_distance, encode, greedy_decode


def write_wav(path, samples, rate=8000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, dtype="<i2").tobytes())


@pytest.fixture
def recordings(tmp_path):
    """Two digits of one speaker, with every index from 0 to 49, as tones of different lengths."""
    for digit in (3, 7):
        for index in range(50):
            tone = 8000 * np.sin(np.arange(1600 + 40 * index) * 0.2 * (1 + digit))
            write_wav(tmp_path / f"{digit}_ada_{index}.wav", tone)
    (tmp_path / "README.txt").write_text("not a recording")
    return tmp_path


def test_reading_a_wav_file_scales_16_bits_to_one(tmp_path):
    write_wav(tmp_path / "a.wav", [0, 16384, -32768, 32767])
    samples = read_wav(tmp_path / "a.wav")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.array([0, 0.5, -1, 32767 / 32768], dtype=np.float32))


@pytest.mark.parametrize("wrong", [{"rate": 16000}, {"channels": 2}])
def test_a_wav_file_of_another_format_is_named(tmp_path, wrong):
    write_wav(tmp_path / "odd.wav", [0, 0], **wrong)
    with pytest.raises(ValueError, match="odd.wav: need 8000 Hz, 1 channel, 16 bits"):
        read_wav(tmp_path / "odd.wav")


def test_the_splits_follow_the_index_in_the_file_name(recordings):
    splits = {split: Dataset(split, str(recordings)) for split in ("train", "valid", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 80, "valid": 10, "test": 10}
    assert [path.name for path in splits["test"].paths[:2]] == ["3_ada_0.wav", "3_ada_1.wav"]
    names = [path.name for dataset in splits.values() for path in dataset.paths]
    assert len(set(names)) == 100
    item = splits["test"][5]
    assert item["text"] == "seven" and item["speech"].shape == (1600,)


def test_a_missing_folder_and_an_empty_one_say_what_to_do(tmp_path):
    for missing in (None, str(tmp_path / "nowhere")):
        with pytest.raises(MisconfigurationException, match="data_dir=<folder>"):
            Dataset("train", missing)
    with pytest.raises(MisconfigurationException, match="with index 10 to 49"):
        Dataset("train", str(tmp_path))
    with pytest.raises(ValueError, match="got 'dev'"):
        Dataset("dev", str(tmp_path))


def test_every_word_can_be_spelt():
    assert set("".join(WORDS)) == set(LETTERS)
    assert [decode(encode(word)) for word in WORDS] == list(WORDS)
    assert SpellText()({"text": "two", "speech": 1})["text"].dtype == np.int64


def test_greedy_decoding_merges_repetitions_and_keeps_double_letters():
    e, t, h, r = (int(encode(letter)[0]) for letter in "ethr")
    frames = torch.tensor([[t, t, h, r, e, 0, e, e], [0, t, 0, 0, h, h, r, r]])
    logits = torch.nn.functional.one_hot(frames, 1 + len(LETTERS)).float()
    assert greedy_decode(logits, torch.tensor([8, 6])) == ["three", "th"]


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "six", 3), ("six", "six", 0), ("three", "thre", 1), ("four", "five", 3)]
)
def test_edit_distance(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_mel_filters_are_triangles_that_add_up_to_one():
    bank = mel_filterbank(8000, 256, 20)
    assert bank.shape == (129, 20)
    peaks = bank.argmax(dim=0)
    assert (peaks.diff() > 0).all()
    # Neighbouring triangles overlap so that, between the first centre and the last, they sum to one.
    torch.testing.assert_close(bank.sum(1)[peaks[0] + 1 : peaks[-1]], torch.ones(peaks[-1] - peaks[0] - 1))
    # A tone's energy lies in the filter around it: 1000 Hz is 1000 mel of 2146, the 10th of 20 filters
    tone = torch.sin(torch.arange(8000) * 2 * torch.pi * 1000 / 8000).unsqueeze(0)
    features, lengths = LogMel(filters=20)(tone, torch.tensor([8000]))
    assert features.shape == (1, 101, 20) and lengths.tolist() == [101]
    assert features[0, 50].argmax() in (8, 9)


def test_global_mvn_reads_what_collect_stats_writes(tmp_path):
    values = np.random.RandomState(0).normal(3.0, 2.0, size=(500, 4))
    file = tmp_path / "feats_stats.npz"
    np.savez(file, count=500, sum=values.sum(0), sum_square=(values**2).sum(0))
    normalized = GlobalMVN(str(file), 4)(torch.from_numpy(values).float())
    torch.testing.assert_close(normalized.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"shape \(4,\), the features need \(40,\)"):
        GlobalMVN(str(file), 40)
    assert GlobalMVN(str(tmp_path / "missing.npz"), 4).state_dict().keys() == {"mean", "std"}


def test_hidden_bands_lie_within_the_recording_and_respect_the_width():
    torch.manual_seed(0)
    length = torch.tensor([10.0, 50.0]).repeat(200)
    bands = random_bands(length, 0.2 * length, 50)
    assert not bands[0::2, 10:].any()
    assert bands.sum(1).amax() <= 11 and bands[1::2, 40:].any()
    x = torch.ones(3, 20, 12)
    assert (HideBands()(x, torch.tensor([20, 10, 5])) == 0).any()
    assert HideBands().eval()(x, torch.tensor([20, 10, 5])) is x


def test_tempo_changes_frames_and_lengths_together():
    torch.manual_seed(1)
    vary = VaryTempoAndLoudness(tempo=0.15, loudness=0.0)
    frames = torch.arange(100.0).reshape(1, 100, 1).expand(2, 100, 3)
    seen = set()
    for _ in range(20):
        stretched, lengths = vary(frames, torch.tensor([100, 50]))
        assert 85 <= stretched.size(1) <= 115 and lengths.max() <= stretched.size(1)
        assert abs(lengths[0] - 2 * lengths[1]) <= 1
        seen.add(stretched.size(1))
    assert len(seen) > 5
    assert vary.eval()(frames, torch.tensor([100, 50]))[0] is frames


def test_a_recording_is_spelt_the_same_alone_and_in_a_batch():
    torch.manual_seed(0)
    model = SpellingRecognizer(size=16).eval()
    lengths = torch.tensor([3111, 6000, 1200])
    speech = torch.randn(3, 6000) * (torch.arange(6000) < lengths.unsqueeze(1))
    together, frames = model.encode(speech, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone, n = model.encode(speech[i : i + 1, :length], lengths[i : i + 1])
        assert n.item() == frames[i] == alone.size(1)
        torch.testing.assert_close(together[i, : n.item()], alone[0], atol=1e-5, rtol=1e-4)


def test_the_contract_and_the_scores():
    torch.manual_seed(0)
    model = SpellingRecognizer(size=16)
    batch = {
        "speech": torch.randn(2, 4000),
        "speech_lengths": torch.tensor([4000, 2400]),
        "text": torch.tensor([[*encode("three")], [*encode("six"), -1, -1]]),
        "text_lengths": torch.tensor([5, 3]),
    }
    loss, stats, weight = model(**batch)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert list(stats) == ["loss"] and weight == 2
    _, stats, _ = model.eval()(**batch)
    assert set(stats) == {"loss", "acc", "cer"}
    symbols = torch.tensor([[*encode("thre"), 0], [*encode("six"), 0, 0]])  # `ee` without a blank is heard as `e`
    logits = torch.nn.functional.one_hot(symbols, 1 + len(LETTERS)).float()
    assert model.score(logits, torch.tensor([5, 5]), batch["text"]) == {"acc": 0.5, "cer": 1 / 8}
    features = model.collect_feats(**batch)
    assert features["feats"].shape == (2, 51, 40) and features["feats_lengths"].tolist() == [51, 31]


def test_training_repeats_from_torchs_random_state():
    torch.manual_seed(0)
    model, speech = SpellingRecognizer(size=16), torch.randn(2, 3000)
    state = torch.get_rng_state()
    first = model.encode(speech, torch.tensor([3000, 2000]))[0]
    torch.set_rng_state(state)
    assert torch.equal(model.encode(speech, torch.tensor([3000, 2000]))[0], first)


def test_evaluation_counts_letters_and_words(recordings, monkeypatch):
    model = SpellingRecognizer(size=16)
    monkeypatch.setattr(model, "recognize", lambda speech, lengths: ["seven"])
    error_rate, accuracy, mistakes = evaluate(model, Dataset("test", str(recordings)))
    assert accuracy == 0.5 and error_rate == edit_distance("three", "seven") * 5 / 50
    assert mistakes[0] == ("3_ada_0.wav", "three", "seven")
