"""ESPnet3's training without Lightning: a small, readable PyTorch trainer.

Names are loaded when they are first used, so that ``import espnet3_lite`` costs little beyond ``import torch``.
"""

from espnet3_lite.lazy_names import lazy_names
from espnet3_lite.version import __version__

_HOME = {
    "Trainer": "trainer",
    "LiteModule": "module",
    "LiteDataModule": "module",
    "ESPnetModule": "espnet",
    "ESPnetTrainer": "espnet",
    "OptimizationStep": "optimization",
    "Callback": "callbacks.base",
    "CallbackHandler": "callbacks.handler",
    "get_default_callbacks": "callbacks.default",
    "seed_everything": "seed",
    "load_config": "config",
    "instantiate": "config.targets",
    "collect_stats": "data.collect_stats",
    "average_checkpoints": "checkpoint_io",
    "MisconfigurationException": "exceptions",
    "StopTrainingError": "exceptions",
}

__all__ = [*_HOME, "__version__"]
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOME.items()})
