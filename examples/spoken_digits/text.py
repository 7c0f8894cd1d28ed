"""Letters to numbers and back: the preprocessor of the training data, and greedy CTC decoding."""

import numpy as np
import torch

LETTERS = "efghinorstuvwxz"  # those that spell zero to nine; CTC's blank is symbol 0, `e` is 1
NUMBER_OF_SYMBOLS = 1 + len(LETTERS)


def encode(text: str) -> np.ndarray:
    """Spell a word in symbols, ``(letters,)`` int64.

    >>> encode("nine").tolist()
    [6, 5, 6, 1]
    """
    return np.array([1 + LETTERS.index(letter) for letter in text], dtype=np.int64)


def decode(symbols) -> str:
    """The word that symbols spell; blanks and padding (0 and below) are left out.

    >>> decode([6, 5, 6, 1, -1, -1])
    'nine'
    """
    return "".join(LETTERS[symbol - 1] for symbol in symbols if symbol > 0)


class SpellText:
    """Preprocessor: replaces an item's ``text``, a string, by its symbols. ESPnet's place for tokenising."""

    def __call__(self, item: dict) -> dict:
        return {**item, "text": encode(item["text"])}


def greedy_decode(logits: torch.Tensor, lengths: torch.Tensor) -> list[str]:
    """The best path of CTC: the best symbol of each frame, repetitions merged, blanks removed.

    Args:
        logits: ``(batch, frames, symbols)``.
        lengths: ``(batch,)``, the frames that are not padding.

    >>> frames = torch.tensor([[0, 4, 4, 0, 5, 0, 5, 1]])
    >>> greedy_decode(torch.nn.functional.one_hot(frames, NUMBER_OF_SYMBOLS), torch.tensor([7]))
    ['hii']
    """
    best = logits.argmax(dim=2).cpu()
    rows = [row[:length] for row, length in zip(best, lengths.tolist(), strict=True)]
    return [decode(torch.unique_consecutive(row).tolist()) for row in rows]


def edit_distance(first: str, second: str) -> int:
    """The least number of insertions, deletions and substitutions from one word to the other (Levenshtein).

    >>> edit_distance("seven", "sven"), edit_distance("six", "nine")
    (1, 3)
    """
    row = list(range(len(second) + 1))  # row[j]: from the letters of `first` seen so far to second[:j]
    for i, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]
