"""ESPnet's learning-rate schedules that PyTorch has no equal of, under ESPnet's names and arguments.

All of them are stepped once an optimizer step (``scheduler_interval: step``, the default); ``step`` in the
formulas is the number of the coming update, from 1. Each class states its formula and where it comes from.
Not here: when a scheduler steps (the loop), and PyTorch's own schedules (``torch.optim.lr_scheduler``).
"""

from espnet3_lite.espnet.schedulers.planned_length import (
    CosineAnnealingWarmupRestarts,
    ExponentialDecayWarmup,
    LinearWarmupDecayLR,
    TristageLR,
)
from espnet3_lite.espnet.schedulers.plateau import WarmupReduceLROnPlateau
from espnet3_lite.espnet.schedulers.warmup import NoamLR, PiecewiseLinearWarmupLR, WarmupLR, WarmupStepLR

__all__ = [
    "CosineAnnealingWarmupRestarts",
    "ExponentialDecayWarmup",
    "LinearWarmupDecayLR",
    "NoamLR",
    "PiecewiseLinearWarmupLR",
    "TristageLR",
    "WarmupLR",
    "WarmupReduceLROnPlateau",
    "WarmupStepLR",
]
