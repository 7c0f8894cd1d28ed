"""The Free Spoken Digit Dataset, read from a folder of WAV files with the standard library.

File names are ``{digit}_{speaker}_{index}.wav``. The official test set is index 0 to 4; of the official
training set, 5 to 49, we hold out 5 to 9 for validation.
"""

import wave
from pathlib import Path

import numpy as np

from espnet3_lite.compat import BaseDataset, Field
from espnet3_lite.exceptions import MisconfigurationException

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE = 8000  # Hz
INDICES = {"train": range(10, 50), "valid": range(5, 10), "test": range(0, 5)}


def read_wav(path: str | Path) -> np.ndarray:
    """Read a mono 16-bit PCM file of 8 kHz.

    Returns:
        ``(samples,)`` float32 in [-1, 1).

    Raises:
        ValueError: If the file has another rate, width or number of channels; the message names the file.
    """
    with wave.open(str(path), "rb") as file:
        found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
        if found != (SAMPLE_RATE, 1, 16):
            raise ValueError(f"{path}: need {SAMPLE_RATE} Hz, 1 channel, 16 bits; got {found}")
        frames = file.readframes(file.getnframes())
    return np.frombuffer(frames, dtype="<i2").astype(np.float32) / 32768.0


class Dataset(BaseDataset):
    """Recordings and their spelling: ``{"speech": (samples,) float32, "text": "seven"}``.

    The recordings (22 minutes, 42 MB as float32) are read once and kept in memory.

    Args:
        split: ``train`` (index 10 to 49), ``valid`` (5 to 9) or ``test`` (0 to 4).
        data_dir: The folder ``recordings`` of the data set.

    Raises:
        MisconfigurationException: If the folder is missing, or holds no recording of this split.
        ValueError: If the split is none of the three.
    """

    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, split: str, data_dir: str | None):
        if split not in INDICES:
            raise ValueError(f"split must be one of {list(INDICES)}, got {split!r}")
        if data_dir is None or not Path(data_dir).is_dir():
            raise MisconfigurationException(
                f"data_dir: {data_dir!r} is not a folder. Name the folder of FSDD's WAV files with "
                "data_dir=<folder>; they are in the folder 'recordings' of the public repository "
                "Jakobovski/free-spoken-digit-dataset"
            )
        # sorted: the order of a folder's files differs between machines, and so would the batches
        self.paths = sorted(
            path for path in Path(data_dir).glob("[0-9]_*_*.wav") if int(path.stem.split("_")[-1]) in INDICES[split]
        )
        if not self.paths:
            raise MisconfigurationException(
                f"data_dir: {data_dir!r} holds no {{digit}}_{{speaker}}_{{index}}.wav with index "
                f"{INDICES[split].start} to {INDICES[split].stop - 1} (split {split!r})"
            )
        self.recordings = [read_wav(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        digit = int(self.paths[index].name[0])
        return {"speech": self.recordings[index], "text": WORDS[digit]}
