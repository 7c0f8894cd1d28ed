"""Lightning's and ESPnet3's own names for ours: change the import, keep the code.

::

    from espnet3_lite.compat import LightningModule, Trainer, ESPnetLightningModule, BaseDataset, Field

All callbacks, loggers and schedulers are here too. Configuration files need not even that: a ``_target_`` under
Lightning's or ESPnet3's packages is looked up here by its last part. Each name is imported when it is first used.
"""

import importlib

from espnet3_lite.espnet.import_aliases import HOMES as _DATA_HOMES
from espnet3_lite.lazy_names import lazy_names


def _names_in(package: str) -> list[str]:
    return importlib.import_module(f"espnet3_lite.{package}").__all__


_HOME = {
    # Lightning
    "LightningModule": ("module.lite_module", "LiteModule"),
    "LightningDataModule": ("module.data_module", "LiteDataModule"),
    "Trainer": ("trainer.trainer", "Trainer"),
    "Callback": ("callbacks.base", "Callback"),
    "seed_everything": ("seed", "seed_everything"),
    "MisconfigurationException": ("exceptions", "MisconfigurationException"),
    "rank_zero_only": ("distributed.rank", "rank_zero_only"),
    "rank_zero_warn": ("distributed.rank", "rank_zero_warn"),
    "rank_zero_info": ("distributed.rank", "rank_zero_info"),
    # ESPnet3
    "ESPnetLightningModule": ("espnet.module", "ESPnetModule"),
    "ESPnet3LightningTrainer": ("espnet.trainer", "ESPnetTrainer"),
    "OptimizationStep": ("optim.slots", "OptimizationStep"),
    "AverageCheckpointsCallback": ("callbacks.average_checkpoints", "AverageCheckpointsCallback"),
    "MetricsLogger": ("callbacks.metrics_logger", "MetricsLogger"),
    "get_default_callbacks": ("espnet.default_callbacks", "get_default_callbacks"),
    "AbsESPnetModel": ("espnet.task_models", "AbsESPnetModel"),
    "initialize": ("espnet.initialization", "initialize"),
    **{name: (home, name) for name, home in _DATA_HOMES.items()},
    **{name: (home, name) for home in ("callbacks", "loggers", "espnet.schedulers") for name in _names_in(home)},
}

__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"espnet3_lite.{home}:{original}" for name, (home, original) in _HOME.items()}
)
