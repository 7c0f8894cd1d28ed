"""``pl.strategies``: our strategies under Lightning's names."""

from espnet3_lite.compat.names import served

__getattr__, __dir__, __all__ = served("strategies")
