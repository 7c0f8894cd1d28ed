"""Strategies as objects, for ``Trainer(strategy=...)``: how several processes train together.

>>> from espnet3_lite.strategies import DDPStrategy
>>> DDPStrategy(find_unused_parameters=True).find_unused_parameters
True
"""

from typing import TYPE_CHECKING

from espnet3_lite.lazy_names import lazy_names

if TYPE_CHECKING:
    from espnet3_lite.distributed.ddp import DDPStrategy
    from espnet3_lite.distributed.fsdp import FSDPStrategy
    from espnet3_lite.distributed.single import Strategy

__all__ = ["DDPStrategy", "FSDPStrategy", "Strategy"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DDPStrategy": "espnet3_lite.distributed.ddp",
        "FSDPStrategy": "espnet3_lite.distributed.fsdp",
        "Strategy": "espnet3_lite.distributed.single",
    },
)
