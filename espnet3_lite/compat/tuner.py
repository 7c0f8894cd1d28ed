"""``pl.tuner``: Lightning's `Tuner`. Calls the trainer with a callback that searches and then ends the call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.batch_size_finder import BatchSizeFinder
from espnet3_lite.callbacks.learning_rate_finder import Found, LearningRateFinder, Ramp
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, SearchIsOverError, nearest
from espnet3_lite.report.pictures import HOW_TO_INSTALL, can_draw

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

__all__ = ["Tuner", "_LRFinder"]
_METHODS = ("fit", "validate", "test", "predict")


class Tuner:
    """Searches before a training, as Lightning's does: a few steps on a copy of the module, whose results are set.

    The module, its optimizer's state and the random numbers are as before afterwards. (Lightning's search for a batch
    size moves the random numbers on.)

    Args:
        trainer: Runs the searches, with its settings.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def lr_find(
        self,
        model: LiteModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Literal["fit"] = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: Literal["linear", "exponential"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> FoundAsLightning | None:
        """Train a few steps with a growing rate, and set the suggested one; as Lightning, which `max_epochs` may stop.

        Args:
            model: Whose rate.
            train_dataloaders: The training loader, or a data module.
            val_dataloaders: Validation loaders.
            dataloaders: Must be None.
            datamodule: Provides the loaders instead.
            method: ``fit``.
            min_lr: The first rate.
            max_lr: The last one.
            num_training: How many steps.
            mode: ``exponential``: the rate is multiplied at each step; ``linear``: it is added to.
            early_stop_threshold: Stop where the smoothed loss is so many times its lowest value; None: never.
            update_attr: Set the rate. False: only return what was found.
            attr_name: The attribute or hyperparameter; by default ``lr`` or ``learning_rate``.

        Returns:
            What was found, by Lightning's curve and suggestion; None with ``fast_dev_run``.

        Raises:
            MisconfigurationException: another method, `dataloaders`; see `LearningRateFinder`.
            ValueError: the trainer has a `LearningRateFinder` already; another mode.
        """
        if method != "fit":
            raise MisconfigurationException("method='fit' is the only valid configuration to run lr finder.")
        finder = _RateSearch(min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr, attr_name)
        self._search(finder, LearningRateFinder, method, model, train_dataloaders, val_dataloaders, dataloaders,
                     datamodule)  # fmt: skip
        return finder.optimal_lr  # type: ignore[return-value]  # of its ramp

    def scale_batch_size(
        self,
        model: LiteModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Literal["fit", "validate", "test", "predict"] = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Try growing batch sizes until memory is short, and set the largest that fits.

        Args:
            model: What to train or evaluate.
            train_dataloaders: A data module, or None: loaders that are given cannot be made anew.
            val_dataloaders: Must be None.
            dataloaders: A data module for another method, or None.
            datamodule: Provides the loaders instead.
            method: Which call to try.
            mode: ``power``: double the size while it fits. ``binsearch``: then close in on the limit.
            steps_per_trial: Optimizer steps (or evaluation batches) of a trial.
            init_val: Where to begin.
            max_trials: At most so many trials that fit.
            batch_arg_name: Name of the attribute or hyperparameter.
            margin: For ``binsearch``: by which share the found size is reduced.
            max_val: The largest size to try.

        Returns:
            The size; None with ``fast_dev_run``.

        Raises:
            MisconfigurationException: loaders of another method; see `BatchSizeFinder`.
            ValueError: the trainer has a `BatchSizeFinder` already; an unknown method or mode.
        """
        finder = _SizeSearch(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)
        self._search(finder, BatchSizeFinder, method, model, train_dataloaders, val_dataloaders, dataloaders,
                     datamodule)  # fmt: skip
        return finder.optimal_batch_size

    def _search(
        self, finder: Callback, kind: type, method: str, model: Any, train: Any, val: Any, other: Any, data: Any
    ) -> None:
        """Call the trainer with this callback before the others, and take it out again."""
        trainer = self._trainer
        if method not in _METHODS:
            raise ValueError(f"method {method!r} is invalid; it is one of {_METHODS}{nearest(method, _METHODS)}")
        if method == "fit" and other is not None:
            raise MisconfigurationException("Tuner with method='fit': pass `train_dataloaders` and `val_dataloaders`, "
                                            "not `dataloaders`")  # fmt: skip
        if method != "fit" and (train is not None or val is not None):
            raise MisconfigurationException(f"Tuner with method={method!r}: pass `dataloaders`, not "
                                            f"`train_dataloaders` or `val_dataloaders`")  # fmt: skip
        if any(isinstance(callback, kind) for callback in trainer.callbacks):
            raise ValueError(f"Trainer is already configured with a `{kind.__name__}` callback. Please remove it if "
                             f"you want to use the Tuner.")  # fmt: skip
        trainer.callbacks = [finder, *trainer.callbacks]
        try:
            if method == "fit":
                trainer.fit(model, train, val, datamodule=data)
            else:
                getattr(trainer, method)(model, other, datamodule=data)
        finally:
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not finder]


class _SizeSearch(BatchSizeFinder):
    """Ends the call once it has searched."""

    def scale_batch_size(self, trainer: Trainer, pl_module: LiteModule, before_training: bool = False) -> None:
        """Search, and train nothing."""
        super().scale_batch_size(trainer, pl_module, before_training)
        raise SearchIsOverError("the search for a batch size is over")


class _RateSearch(LearningRateFinder):
    """Searches with Lightning's trial, and ends the call after that."""

    def make_ramp(self) -> Ramp:
        """What sets the rates of a search."""
        return _LightningsRamp(*self._ramp)

    def lr_find(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search, and train nothing."""
        super().lr_find(trainer, pl_module)
        raise SearchIsOverError("the search for a learning rate is over")


class _LightningsRamp(Ramp):
    """The trial keeps the run's limits and validates; the running mean of the loss begins at half of it.

    A step that an epoch's end made of a window that was not full is not noted.
    """

    behind = 1

    def prepare(self, trial: Trainer) -> None:
        """Before a trial's plan is made: note the limits."""
        self._trial = trial
        self._limits = trial.limit_train_batches, trial.val_check_interval, trial.max_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Put them back."""
        trial = self._trial
        trial.limit_train_batches, trial.val_check_interval, trial.max_epochs = self._limits

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One loss a full window."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def found(self) -> Found:
        """Lightning's curve."""
        found = FoundAsLightning({"lr": self.results["lr"], "loss": self.means})
        found.mode, found.lr_min, found.lr_max, found.num_training = self.mode, self.first, self.last, self.steps
        return found


class FoundAsLightning(Found):
    """Lightning's `_LRFinder`: the curve is a running mean, and the suggestion is where that falls fastest.

    >>> found = FoundAsLightning({"lr": [0.001, 0.01, 0.1, 1.0], "loss": [4.0, 3.9, 1.0, 1.1]})
    >>> found.suggestion(skip_begin=0)
    0.1
    """

    mode, lr_min, lr_max, num_training = "exponential", 1e-8, 1.0, 100
    _optimal_idx: int | None = None

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The rate at which the curve falls fastest over the rate itself; None, with a warning, for too few steps.

        Args:
            skip_begin: So many of the first steps are not looked at.
            skip_end: So many of the last ones.
        """
        rates, losses = self.results["lr"], self.results["loss"]
        kept = [step for step in range(skip_begin, len(losses) - skip_end) if math.isfinite(losses[step])]
        self._optimal_idx = None
        if len(kept) < 2:
            rank_zero_warn(
                "Failed to compute suggestion for learning rate because there are not enough points. Increase the loop "
                "iteration limits or the size of your dataset/dataloader."
            )
            return None
        over = torch.tensor([rates[step] for step in kept])
        (slopes,) = torch.gradient(torch.tensor([losses[step] for step in kept]), spacing=[over])
        self._optimal_idx = kept[int(slopes.argmin())]
        return rates[self._optimal_idx]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw the loss over the rate with matplotlib (extra ``plot``).

        Args:
            suggest: Mark the suggested rate.
            show: Open a window.
            ax: matplotlib's axes to draw on; by default those of a new figure.

        Returns:
            The figure.

        Raises:
            MisconfigurationException: matplotlib is not installed.
        """
        if not can_draw():
            raise MisconfigurationException(HOW_TO_INSTALL)
        import matplotlib.pyplot as plt

        rates, losses = self.results["lr"], self.results["loss"]
        ax = plt.subplots()[1] if ax is None else ax
        ax.plot(rates, losses)
        ax.set(xlabel="Learning rate", ylabel="Loss", xscale="log" if self.mode == "exponential" else "linear")
        if suggest and self.suggestion() is not None and (place := self._optimal_idx) is not None:
            ax.plot(rates[place], losses[place], markersize=10, marker="o", color="red")
        if show:
            plt.show()
        return ax.figure


_LRFinder = FoundAsLightning
