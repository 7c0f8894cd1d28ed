"""ESPnet3's training without Lightning: a small, readable PyTorch trainer.

Names are loaded when they are first used, so that ``import espnet3_lite`` costs little beyond ``import torch``.
"""

from typing import TYPE_CHECKING

from espnet3_lite.lazy_names import lazy_names
from espnet3_lite.version import __version__

_HOME = {
    "Trainer": "trainer.trainer",
    "LiteModule": "module.lite_module",
    "LiteDataModule": "module.data_module",
    "ESPnetModule": "espnet.module",
    "ESPnetTrainer": "espnet.trainer",
    "OptimizationStep": "optim.slots",
    "Callback": "callbacks.base",
    "CallbackHandler": "callbacks.calling.handler",
    "get_default_callbacks": "espnet.default_callbacks",
    "seed_everything": "seed",
    "load_config": "config",
    "instantiate": "config.targets",
    "collect_stats": "espnet.data.collect_stats",
    "average_checkpoints": "callbacks.checkpoints.averaging",
    "MisconfigurationException": "exceptions",
    "StopTrainingError": "exceptions",
}

__all__ = [*_HOME, "__version__"]
if TYPE_CHECKING:  # for editors and type checkers: the same names (a test compares them)
    from espnet3_lite.callbacks.base import Callback as Callback
    from espnet3_lite.callbacks.calling.handler import CallbackHandler as CallbackHandler
    from espnet3_lite.callbacks.checkpoints.averaging import average_checkpoints as average_checkpoints
    from espnet3_lite.config import load_config as load_config
    from espnet3_lite.config.targets import instantiate as instantiate
    from espnet3_lite.espnet.data.collect_stats import collect_stats as collect_stats
    from espnet3_lite.espnet.default_callbacks import get_default_callbacks as get_default_callbacks
    from espnet3_lite.espnet.module import ESPnetModule as ESPnetModule
    from espnet3_lite.espnet.trainer import ESPnetTrainer as ESPnetTrainer
    from espnet3_lite.exceptions import MisconfigurationException as MisconfigurationException
    from espnet3_lite.exceptions import StopTrainingError as StopTrainingError
    from espnet3_lite.module.data_module import LiteDataModule as LiteDataModule
    from espnet3_lite.module.lite_module import LiteModule as LiteModule
    from espnet3_lite.optim.slots import OptimizationStep as OptimizationStep
    from espnet3_lite.seed import seed_everything as seed_everything
    from espnet3_lite.trainer.trainer import Trainer as Trainer
else:
    __getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOME.items()})
