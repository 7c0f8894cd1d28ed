"""``pl.utilities``: small tools that code written for Lightning imports."""

from espnet3_lite.compat.names import served

__getattr__, __dir__, __all__ = served("utilities")
