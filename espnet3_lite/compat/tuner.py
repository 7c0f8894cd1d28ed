"""``pl.tuner``: Lightning's `Tuner`, which packages make beforehand; what it does is done here by callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

__all__ = ["Tuner"]


class Tuner:
    """May be made, since many a program makes one and seldom uses it; its methods say which callback to take instead.

    Args:
        trainer: For which trainer.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def lr_find(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            MisconfigurationException: always; it names the callback.
        """
        raise MisconfigurationException(
            "Tuner.lr_find: pass `callbacks=[LearningRateFinder(...)]`, with the same arguments, to the Trainer, and "
            "call `fit`; its `optimal_lr` is what was found"
        )

    def scale_batch_size(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            MisconfigurationException: always; it names the callback.
        """
        raise MisconfigurationException(
            "Tuner.scale_batch_size: pass `callbacks=[BatchSizeFinder(...)]`, with the same arguments, to the Trainer, "
            "and call `fit`; its `optimal_batch_size` is what was found"
        )
