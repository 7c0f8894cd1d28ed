"""The contract of ESPnet's preprocessors, and nothing else: tokenizers and augmentation live in recipes."""

from abc import ABC, abstractmethod
from typing import Any


class AbsPreprocessor(ABC):
    """A function of an utterance's id and its data, which knows whether it runs in training.

    `DataOrganizer` calls a preprocessor of this class with ``(uid, data)``, any other with ``(data)``, and
    sets ``train`` itself: true for the training split, false for the others.

    Args:
        train: whether what should happen in training alone (random augmentation, say) happens.

    >>> class Lower(AbsPreprocessor):
    ...     def __call__(self, uid, data):
    ...         return {**data, "text": data["text"].lower()}
    >>> Lower(train=False)("utt1", {"text": "ONE"})
    {'text': 'one'}
    """

    def __init__(self, train: bool):
        self.train = train

    @abstractmethod
    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, Any]:
        """Return what the model is given of the utterance `uid`, usually a dict of numpy arrays."""
