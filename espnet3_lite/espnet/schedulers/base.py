"""What the schedules share: rates given in closed form, and the check of arguments."""

import math
from typing import Any, TypeAlias

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espnet3_lite.exceptions import MisconfigurationException

#: One learning rate for each parameter group; a tensor ``()`` where the optimizer was given one.
Rates: TypeAlias = list[float | Tensor]


class ClosedFormScheduler(LRScheduler):
    """A schedule given in closed form: subclasses say which rates the coming update has.

    Args:
        optimizer: The optimizer.
        last_epoch: The last step that was taken; -1 for none.

    Raises:
        MisconfigurationException: an argument, which a subclass has set as an attribute before, is NaN or infinite.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        for name, value in vars(self).items():
            numbers = value if isinstance(value, list) else [value]
            sound = all(math.isfinite(number) for number in numbers if isinstance(number, (int, float)))
            require(sound, name, value, "finite")
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> Rates:
        """One learning rate for each parameter group, for the update number ``step`` (1, 2, ...)."""
        raise NotImplementedError

    def get_lr(self) -> Rates:
        """What PyTorch asks for after each `step`: the coming update's rates."""
        return self.rates(self.last_epoch + 1)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a MisconfigurationException about an argument unless the condition holds."""
    if not condition:
        raise MisconfigurationException(f"{name}={value!r}: it must be {allowed}")
