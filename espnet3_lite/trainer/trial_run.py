"""Trials: a few steps on a copy of the module, of which neither the trainer nor the module notices anything.

`BatchSizeFinder` asks for them. What runs is the loops of every fit and evaluation.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from espnet3_lite.callbacks.handler import CallbackHandler
from espnet3_lite.loaders.epochs import TrainData
from espnet3_lite.loaders.requests import request_loaders
from espnet3_lite.loops.evaluation import EvaluationLoop
from espnet3_lite.loops.fit import FitLoop
from espnet3_lite.metrics.collector import Metrics
from espnet3_lite.trainer import setup

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class Trial:
    """A trainer like the given one, with copies of its module and data module; counters at zero, nobody listening.

    The module's own hooks are called. Data sets are shared: they are only read. Random numbers are drawn as ever; see
    ``trainer.isolated_random_state``.

    Args:
        trainer: In a call whose module is set up; one process.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trial = copy.copy(trainer)
        known = {id(trainer): trial, **_data_sets(trainer.lightning_module), **_data_sets(trainer.datamodule)}
        owners = trainer.lightning_module, trainer.datamodule
        trial.lightning_module, trial.datamodule = copy.deepcopy(owners, known)
        trial.lightning_module.trainer = trial
        trial.precision_plugin, trial.state = copy.deepcopy(trainer.precision_plugin), copy.copy(trainer.state)
        trial.metrics, trial.fit_loop, trial.train_data = Metrics(trial), FitLoop(trial), TrainData(trial)
        trial.evaluation_loops = {prefix: EvaluationLoop(trial, prefix) for prefix in trainer.evaluation_loops}
        trial.slots, trial.lr_scheduler_configs, trial.loggers = {}, [], []
        trial.resumed_random_states, trial.validation_ran, trial.return_predictions = None, False, False
        trial.callback_handler = CallbackHandler()
        trial.callback_handler.trainer = trial
        setup.find_hooks(trial, trial.lightning_module, trial.datamodule)

    @property
    def prefix(self) -> str:
        """``train``, ``val``, ``test`` or ``predict``: which loader the call is about."""
        return self.trainer.state.stage.dataloader_prefix

    def count_samples(self) -> int | None:
        """Samples in the loader's data set; None where it does not say."""
        data = getattr(request_loaders(self.trainer, self.prefix), "dataset", None)
        return len(data) if hasattr(data, "__len__") else None

    def run(self, steps: int) -> None:
        """Train for `steps` optimizer steps (with validations of as many batches), or evaluate `steps` batches."""
        trial, module = self.trainer, self.trainer.lightning_module
        trial.strategy.setup(trial, module)
        if trial.state.fn != "fit":
            setattr(trial, f"limit_{self.prefix}_batches", steps)
            loop = trial.evaluation_loops[self.prefix]
            loop.setup()
            loop.run()
            return
        setup.configure_optimizers(trial, module)  # by the run's own limits
        trial.training_step = trial.strategy.wrap(trial, module)
        trial.limit_train_batches, trial.val_check_interval = 1.0, 1.0
        trial.limit_val_batches = steps if trial.limit_val_batches else 0
        trial.max_steps = steps
        trial.validates = trial._validates_in_fit()
        trial.call("on_fit_start")
        trial.train_data.setup()
        if trial.validates:
            trial.evaluation_loops["val"].setup()
        setup.check_intervals(trial)
        trial.fit_loop.run()

    def close(self) -> None:
        """Free the memory now: a trainer and its parts know each other, and would wait for the garbage collector."""
        vars(self.trainer).clear()


def _data_sets(owner: Any) -> dict[int, Any]:
    """What a copy of a module or data module shares with it, for `copy.deepcopy`."""
    held = vars(owner).values() if owner is not None else ()
    return {id(value): value for value in held if isinstance(value, (Dataset, DataLoader))}


class TrialRuns:
    """What a callback that tries things out needs of a `Trainer`; mixed into it."""

    def make_trial(self) -> Trial:
        """A trial of what this call does, with the module as it is now."""
        return Trial(self)

    def renew_loaders(self, before_training: bool = False) -> None:
        """Ask for the loaders anew: a callback changed how they are made.

        Args:
            before_training: Make the optimizers and schedulers anew too, if they knew how many batches there are.
        """
        if self.state.fn != "fit":
            self.evaluation_loops[self.state.stage.dataloader_prefix].setup()
        elif self.train_data.loader is not None:
            self.train_data.setup()
            if self.evaluation_loops["val"].loaders:
                self.evaluation_loops["val"].setup()
            if before_training:
                setup.configure_optimizers(self, self.lightning_module)
                self.training_step = self.strategy.wrap(self, self.lightning_module)
            setup.check_intervals(self)
