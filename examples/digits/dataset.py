"""Scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, shipped inside its wheel.

``data_src: examples.digits.dataset`` in the YAML names this file: a module with a class called `Dataset`.
"""

import numpy as np

from espnet3_lite.compat import BaseDataset, Field

SIZES = {"train": 1197, "valid": 300, "test": 300}


class Dataset(BaseDataset):
    """One part of a fixed, seeded split; what a part holds never depends on the run's own seed.

    An item is ``{"image": (8, 8) float32 in [0, 1], "label": (1,) int64 in 0..9}``. Every array has at least
    one axis, since the collate function pads along the first.

    Args:
        split: ``train`` (1,197 images), ``valid`` (300) or ``test`` (300).
        seed: Seed of the shuffle that makes the split.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If the split is none of the three.

    >>> Dataset("valid")[0]["image"].shape
    (8, 8)
    """

    fields = (Field("image", "array"), Field("label", "array"))

    def __init__(self, split: str, seed: int = 0):
        if split not in SIZES:
            raise ValueError(f"split must be one of {list(SIZES)}, got {split!r}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('the digits are part of scikit-learn: pip install "espnet3_lite[examples]"') from error
        images, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(seed).permutation(len(images))
        first = sum(SIZES[name] for name in list(SIZES)[: list(SIZES).index(split)])
        chosen = order[first : first + SIZES[split]]
        self.images = (images[chosen] / 16.0).astype(np.float32).reshape(-1, 8, 8)  # pixels count 0 to 16
        self.labels = labels[chosen].astype(np.int64).reshape(-1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}
