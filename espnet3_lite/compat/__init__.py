"""Lightning's and ESPnet3's own names for ours: change the import, keep the code.

::

    import espnet3_lite.compat as pl

    class Model(pl.LightningModule): ...

    pl.Trainer(callbacks=[pl.callbacks.ModelCheckpoint()], logger=pl.loggers.CSVLogger("logs"))

All callbacks, loggers, strategies and schedulers, and ESPnet3's names, are here at the top too. ``python -m
espnet3_lite.compat FILE...`` changes the imports of files. What was left out says so, by name, when it is imported.
Configuration files need none of this: a ``_target_`` under Lightning's or ESPnet3's packages is looked up here by its
last part. The tables are in `names.py`.
"""

from typing import TYPE_CHECKING, Any

from espnet3_lite.compat.names import served
from espnet3_lite.version import CHECKPOINT_FORMAT

#: The version of Lightning whose names and checkpoints these are, for programs that ask.
__version__ = CHECKPOINT_FORMAT

if TYPE_CHECKING:  # for editors and type checkers: what a program names most
    from espnet3_lite import callbacks as callbacks
    from espnet3_lite import loggers as loggers
    from espnet3_lite.callbacks.base import Callback as Callback
    from espnet3_lite.espnet.module import ESPnetModule as ESPnetLightningModule  # noqa: F401
    from espnet3_lite.espnet.trainer import ESPnetTrainer as ESPnet3LightningTrainer  # noqa: F401
    from espnet3_lite.module.data_module import LiteDataModule as LightningDataModule  # noqa: F401
    from espnet3_lite.module.lite_module import LiteModule as LightningModule  # noqa: F401
    from espnet3_lite.optim.slots import OptimizationStep as OptimizationStep
    from espnet3_lite.seed import seed_everything as seed_everything
    from espnet3_lite.trainer.trainer import Trainer as Trainer

    def __getattr__(name: str) -> Any: ...

else:
    __getattr__, __dir__, __all__ = served("")
