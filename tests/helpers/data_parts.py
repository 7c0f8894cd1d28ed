"""A small recipe on disk, and what its configs name by `_target_`: a transform, preprocessors, a model."""

import wave

import numpy as np
import torch

from espnet3_lite.espnet.data.preprocessor import AbsPreprocessor

DATASET = """
import wave
from pathlib import Path

import numpy as np
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field

WORDS = ["zero", "one", "two"]


class Digits(BaseDataset):
    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, folder, start=0, stop=None):
        self.files = sorted(Path(folder).glob("*.wav"))[start:stop]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[int(index)]
        with wave.open(str(file)) as recording:
            samples = np.frombuffer(recording.readframes(recording.getnframes()), dtype=np.int16)
        return {"speech": samples.astype(np.float32) / 32768, "text": WORDS[int(file.name[0])]}
"""


def write_recipe(folder):
    """A recipe with ``dataset/`` and, in ``wav/``, 11 short recordings of different lengths; returns its folder."""
    (folder / "dataset").mkdir(parents=True)
    (folder / "wav").mkdir()
    (folder / "dataset" / "__init__.py").write_text("from .dataset import Digits as Dataset\n")
    (folder / "dataset" / "dataset.py").write_text(DATASET)
    random = np.random.RandomState(3)
    for i in range(11):
        samples = (random.randn(300 + 90 * (i * 7 % 11)) * 3000).astype(np.int16)
        with wave.open(str(folder / "wav" / f"{i % 3}_speaker_{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(samples.tobytes())
    return folder


def entries_of(recipe):
    """What `DataOrganizer` is given: 8 recordings for training, 3 for validation."""
    return {
        "recipe_dir": str(recipe),
        "train": [{"data_src_args": {"folder": str(recipe / "wav"), "stop": 8}}],
        "valid": [{"data_src_args": {"folder": str(recipe / "wav"), "start": 8}}],
    }


class Spell(AbsPreprocessor):
    """Text to letters as numbers; louder by `gain` in training."""

    def __init__(self, train, gain=1.0, settings=None):
        super().__init__(train)
        self.gain = gain
        self.settings = settings

    def __call__(self, uid, data):
        speech = data["speech"] * np.float32(self.gain) if self.train else data["speech"]
        return {"speech": speech, "text": np.array([ord(letter) - 96 for letter in data["text"]])}


class Jitter(Spell):
    """Adds noise in training, from numpy's global generator."""

    def __call__(self, uid, data):
        data = super().__call__(uid, data)
        if self.train:
            data["speech"] = data["speech"] + np.random.randn(len(data["speech"])).astype(np.float32)
        return data


def shout(sample):
    return {**sample, "text": sample["text"].upper()}


class Suffix:
    """A plain callable, as recipes write their own preprocessors."""

    def __init__(self, suffix="!"):
        self.suffix = suffix

    def __call__(self, sample):
        return {**sample, "text": sample["text"] + self.suffix}


class LogEnergy(torch.nn.Module):
    """Log energy in four bands of each frame of 200 samples, every 80."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def collect_feats(self, speech, speech_lengths, **batch):
        frames = self.dropout(speech.unfold(1, 200, 80))
        power = torch.fft.rfft(frames).abs().square()[..., :100]
        bands = power.reshape(*power.shape[:2], 4, 25).sum(-1)
        return {"feats": torch.log(bands + 1e-3), "feats_lengths": (speech_lengths - 200) // 80 + 1}


class NotANumber(LogEnergy):
    def collect_feats(self, speech, speech_lengths, **batch):
        features = super().collect_feats(speech, speech_lengths)
        features["feats"][-1, 0, 0] = float("nan")
        return features
