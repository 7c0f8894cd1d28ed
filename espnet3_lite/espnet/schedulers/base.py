"""What the schedules share: rates given in closed form, and the check of arguments."""

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from espnet3_lite.exceptions import MisconfigurationException


class ClosedFormScheduler(LRScheduler):
    """A schedule given in closed form: subclasses say which rates the coming update has."""

    def rates(self, step: int) -> list[float]:
        """One learning rate for each parameter group, for the update number ``step`` (1, 2, ...)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """What PyTorch asks for after each `step`: the coming update's rates."""
        return self.rates(self.last_epoch + 1)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a MisconfigurationException about an argument unless the condition holds."""
    if not condition:
        raise MisconfigurationException(f"{name}={value!r}: it must be {allowed}")
