"""A small recipe on disk: WAV files, and a data set that imports its base class from espnet3."""

import wave

import numpy as np
import pytest

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


@pytest.fixture
def recipe(tmp_path):
    """A recipe folder with ``dataset/`` and 11 short recordings of different lengths in ``wav/``."""
    folder = tmp_path / "recipe"
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


@pytest.fixture
def entries(recipe):
    """What `DataOrganizer` is given: 8 recordings for training, 3 for validation."""
    return {
        "recipe_dir": str(recipe),
        "train": [{"data_src_args": {"folder": str(recipe / "wav"), "stop": 8}}],
        "valid": [{"data_src_args": {"folder": str(recipe / "wav"), "start": 8}}],
    }
