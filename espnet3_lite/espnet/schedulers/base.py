"""What the schedules share: rates given in closed form, and the check of arguments."""

from typing import Any, TypeAlias

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from espnet3_lite.exceptions import MisconfigurationException

#: One learning rate for each parameter group; a tensor ``()`` where the optimizer was given one.
Rates: TypeAlias = list[float | Tensor]


class ClosedFormScheduler(LRScheduler):
    """A schedule given in closed form: subclasses say which rates the coming update has."""

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
