"""The data: a plain torch data set. `conf/training.yaml` names the class and its arguments."""

import torch
from torch.utils.data import Dataset

SIZES = {"train": 1197, "valid": 300, "test": 300}


class Digits(Dataset):
    """Scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels.

    An item is an image, ``(1, 8, 8)`` float32 in [0, 1], and its digit, ``()`` int64 in 0..9.

    Args:
        split: ``train`` (1,197 images), ``valid`` (300) or ``test`` (300).

    Raises:
        KeyError: another split.

    >>> image, digit = Digits("valid")[0]
    >>> image.shape, int(digit)
    (torch.Size([1, 8, 8]), 5)
    """

    def __init__(self, split: str):
        from sklearn.datasets import load_digits  # pip install scikit-learn

        images, digits = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        first = sum(SIZES[name] for name in list(SIZES)[: list(SIZES).index(split)]) if split in SIZES else 0
        chosen = order[first : first + SIZES[split]]
        self.images = torch.tensor(images[chosen] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.digits = torch.tensor(digits[chosen])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.digits[index]
