"""What the tests' configs name by `_target_`: a transform, preprocessors, a model with `collect_feats`."""

import numpy as np
import torch

from espnet3_lite.data.preprocessor import AbsPreprocessor


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
