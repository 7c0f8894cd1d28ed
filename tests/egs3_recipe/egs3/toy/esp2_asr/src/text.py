"""From letters to numbers, as a preprocessor of ESPnet's kind."""

import numpy as np
from espnet2.train.preprocessor import AbsPreprocessor


class Spell(AbsPreprocessor):
    """Gives each letter its place in `letters`, from 0."""

    def __init__(self, letters, train=True):
        super().__init__(train)
        self.letters = letters

    def __call__(self, uid, data):
        """Return the utterance with its text as int64, ``(letters,)``."""
        return {**data, "text": np.array([self.letters.index(letter) for letter in data["text"]], dtype=np.int64)}
