"""Trials: a few steps on a copy of the module, of which neither the trainer nor the module notices anything.

`BatchSizeFinder` and `LearningRateFinder` make them. What runs is the loops of every fit and evaluation.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class Trial:
    """A trainer like the given one, with copies of its module and data module; counters at zero, nobody listening.

    The module's own hooks are called. Data sets are shared: they are only read. Random numbers are drawn as ever; see
    `seed.isolated_random_state`.

    Args:
        trainer: In a call whose module is set up; one process.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trial = copy.copy(trainer)
        known = {id(trainer): trial, **_data_sets(trainer.lightning_module), **_data_sets(trainer.datamodule)}
        owners = trainer.lightning_module, trainer.datamodule, trainer.data_provider
        trial.lightning_module, trial.datamodule, trial.data_provider = copy.deepcopy(owners, known)
        trial.lightning_module.trainer = trial
        vars(trial).update(strategy=copy.copy(trainer.strategy))  # it knows the module that it has set up
        trial.precision_plugin, trial.state = copy.deepcopy(trainer.precision_plugin), copy.copy(trainer.state)
        trial.loggers, trial.return_predictions = [], False
        trial.stopping = copy.copy(trainer.stopping)  # it hears of the same signals
        trial.stopping.trainer = trial
        trial.stopping.begin()
        trial.make_loops()
        trial.plan.begin()

    def run(self, steps: int) -> None:
        """Train for `steps` optimizer steps (with validations of as many batches), or evaluate `steps` batches."""
        trial, module = self.trainer, self.trainer.lightning_module
        trial.strategy.setup(trial, module)
        if trial.state.fn != "fit":
            setattr(trial, f"limit_{trial.evaluation_loop.prefix}_batches", steps)
            trial.evaluation_loop.setup()
            trial.evaluation_loop.run()
            return
        trial.plan.plan_training()  # by the run's own limits
        trial.limit_train_batches, trial.val_check_interval = 1.0, 1.0
        trial.limit_val_batches = steps if trial.limit_val_batches else 0
        trial.max_steps = trial.max_epochs = steps  # an epoch makes a step at least: short ones follow each other
        trial.num_sanity_val_steps = 0
        trial.plan.validation.prepare()
        trial.call("on_fit_start")
        trial.plan.prepare_loaders()
        trial.fit_loop.run()

    def close(self) -> None:
        """Free the memory now: a trainer and its parts know each other, and would wait for the garbage collector."""
        vars(self.trainer).clear()


def _data_sets(owner: Any) -> dict[int, Any]:
    """What a copy of a module or data module shares with it, for `copy.deepcopy`."""
    held = vars(owner).values() if owner is not None else ()
    return {id(value): value for value in held if isinstance(value, (Dataset, DataLoader))}
