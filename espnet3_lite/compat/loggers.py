"""``pl.loggers``: our loggers under Lightning's names."""

from typing import TYPE_CHECKING

from espnet3_lite.compat.names import served

if TYPE_CHECKING:
    from espnet3_lite.loggers import *  # noqa: F403
else:
    __getattr__, __dir__, __all__ = served("loggers")
