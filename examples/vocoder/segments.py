"""The preprocessor: recordings of any length become segments of one, so that a batch needs no padding."""

import numpy as np

SEGMENT = 4080  # samples, 0.51 s: 51 steps of 10 ms; half of the recordings are shorter


class CutSegment:
    """Keeps the middle of a recording, with silence around a short one, and nothing but the speech.

    >>> CutSegment()({"speech": np.ones(100, dtype=np.float32), "text": "one"})["speech"].shape
    (4080,)
    """

    def __call__(self, item: dict) -> dict:
        speech = item["speech"]
        missing = max(0, SEGMENT - len(speech))
        padded = np.pad(speech, (missing // 2, missing - missing // 2))
        first = (len(padded) - SEGMENT) // 2
        return {"speech": padded[first : first + SEGMENT]}
