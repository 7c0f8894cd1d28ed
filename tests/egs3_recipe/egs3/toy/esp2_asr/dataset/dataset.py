"""Words, spoken as a sequence of small vectors: one for each letter, three times, with noise."""

import numpy as np
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field

FIRST = {"train": 0, "valid": 100, "test": 200}
COUNT = {"train": 22, "valid": 6, "test": 4}


class Words(BaseDataset):
    """Word number `index` of a split, always the same."""

    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, split):
        self.first, self.count = FIRST[split], COUNT[split]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.RandomState(self.first + int(index))
        letters = random.randint(4, size=random.randint(2, 6))
        speech = np.repeat(np.eye(4, dtype=np.float32)[letters][:, :3], 3, axis=0)
        speech = speech + 0.1 * random.standard_normal(speech.shape).astype(np.float32)
        return {"speech": speech, "text": "".join("abcd"[letter] for letter in letters)}
