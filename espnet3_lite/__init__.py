"""ESPnet3's training without Lightning: a small, readable PyTorch trainer.

Names are loaded when they are first used, so that ``import espnet3_lite`` costs little beyond ``import torch``.
"""

from espnet3_lite.lazy_names import lazy_names
from espnet3_lite.version import __version__

_HOME = {
    "Trainer": "trainer.trainer",
    "LiteModule": "module.lite_module",
    "LiteDataModule": "module.lite_module",
    "ESPnetModule": "espnet.module",
    "ESPnetTrainer": "espnet.trainer",
    "OptimizationStep": "optim.slots",
    "Callback": "callbacks.base",
    "CallbackHandler": "callbacks.handler",
    "get_default_callbacks": "espnet.default_callbacks",
    "seed_everything": "seed",
    "load_config": "config",
    "instantiate": "config.targets",
    "collect_stats": "espnet.data.collect_stats",
    "average_checkpoints": "checkpoint.files",
    "MisconfigurationException": "exceptions",
    "StopTrainingError": "exceptions",
}

__all__ = [*_HOME, "__version__"]
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOME.items()})
