"""ESPnet3's training without Lightning: a small, readable PyTorch trainer.

Names are loaded when they are first used, so that ``import espnet3_lite`` costs little beyond ``import torch``.
"""

import importlib

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


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
