"""`ProgressBar`: what every progress bar knows about a run. How one looks is in `tqdm_progress.py`."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.metrics_logger import MetricsLogger
from espnet3_lite.callbacks.showing.step_means import RunningMeans, StepValues

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class ProgressBar(Callback):
    """Base class: counts, descriptions and metrics; derive from it to show progress in your own way.

    It shows nothing by itself. On all ranks but zero it is disabled at the start of each call.

    Example:
        >>> class Dots(ProgressBar):
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         if self.is_enabled:
        ...             print(f"{batch_idx + 1} of {self.total_train_batches}")
        >>> bar = Dots()
        >>> bar.disable()
        >>> bar.is_enabled
        False
    """

    _enabled = True
    #: What steps logged in this epoch.
    _step_values: StepValues | None = None
    _step_means: RunningMeans | None = None
    #: No `MetricsLogger` before it has the same means, and keeps them in checkpoints.
    _keeps_means = True
    _trainer: Trainer | None = None
    _current_eval_dataloader_idx: int | None = None

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Remember the trainer, and disable the bar on all ranks but zero."""
        self._trainer = trainer
        before = trainer.callbacks[: trainer.callbacks.index(self)]
        self._keeps_means = not any(isinstance(callback, MetricsLogger) for callback in before)
        if not trainer.is_global_zero:
            self.disable()

    # ---- the epoch's means -----------------------------------------------------------------------------------------

    @property
    def epoch_means(self) -> dict[str, float]:
        """The means, over the epoch's batches so far, of the values that are logged with ``on_step=True`` alone.

        They are this rank's own: nothing is exchanged between the ranks. There are none where a `MetricsLogger` stands
        before the bar: that one's `epoch_means` are those of a resumed run, too.
        """
        if self._step_means is None:
            return {}
        self._add_means()
        training = self.trainer.metrics.training.values()
        alone = {e.name for e in training if e.on_step and not e.on_epoch and e.reduce == "mean"}
        return {name: mean for name, mean in self._step_means.means().items() if name in alone}

    def _note_step_values(self, trainer: Trainer) -> None:
        """The batch's step values will be in the means. They stay on the device."""
        if self._step_values is None:
            self._step_values, self._step_means = StepValues(), RunningMeans()
        if self._step_values.note(trainer.metrics):
            self._add_means()

    def _add_means(self) -> None:
        if self._step_values is not None and self._step_means is not None:
            self._step_means.take(chain.from_iterable(values.items() for values in self._step_values.anew()))

    # ---- on and off ------------------------------------------------------------------------------------------------

    def enable(self) -> None:
        """Show progress from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    @property
    def is_enabled(self) -> bool:
        """True where progress is shown."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """True where progress is not shown."""
        return not self.is_enabled

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar; the arguments are those of Python's `print`."""
        print(*args, **kwargs)

    # ---- what it may show ------------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Trainer:
        """The trainer of the call in work.

        Raises:
            TypeError: before the first call.
        """
        if self._trainer is None:
            raise TypeError(f"`{type(self).__name__}.trainer` is not set yet: it is set when fit, validate, test or "
                            "predict begins")  # fmt: skip
        return self._trainer

    def get_metrics(self, trainer: Trainer, pl_module: LiteModule) -> dict[str, int | str | float]:
        """What to show beside the bar: what was logged with ``prog_bar=True``.

        Values are read from the device here, so a bar calls this only when it is drawn. Override it to show other
        things. (Lightning's shows the logger's version too, as ``v_num``.)

        Args:
            trainer: Whose values.
            pl_module: The module that is trained.
        """
        return dict(trainer.progress_bar_metrics)

    sanity_check_description = "Sanity Checking"
    train_description = "Training"
    validation_description = "Validation"
    test_description = "Testing"
    predict_description = "Predicting"

    # ---- counts ----------------------------------------------------------------------------------------------------

    @property
    def train_batch_idx(self) -> int:
        """Training batches done in this epoch."""
        return self.trainer.fit_loop.batches_done

    @property
    def val_batch_idx(self) -> int:
        """Validation batches done with the current loader."""
        return self.trainer.evaluation_loops["val"].batches_done

    @property
    def test_batch_idx(self) -> int:
        """Test batches done with the current loader."""
        return self.trainer.evaluation_loops["test"].batches_done

    @property
    def predict_batch_idx(self) -> int:
        """Prediction batches done with the current loader."""
        return self.trainer.evaluation_loops["predict"].batches_done

    @property
    def total_train_batches(self) -> int | float:
        """The number of training batches in this epoch, or infinity where the loader has no length.

        Where `max_steps` alone ends the run, no more batches are counted than are left until then.
        """
        trainer = self.trainer
        if trainer.max_epochs == -1 and trainer.max_steps > 0:
            left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches  # in batches
            return min(trainer.num_training_batches, left)
        return trainer.num_training_batches

    @property
    def total_val_batches(self) -> int | float:
        """Validation batches of all loaders; 0 in an epoch without validation."""
        trainer = self.trainer
        every = trainer.check_val_every_n_epoch
        if trainer.state.fn == "fit" and every is not None and (trainer.current_epoch + 1) % every != 0:
            return 0
        return sum(trainer.num_val_batches)

    @property
    def total_test_batches(self) -> int | float:
        """Test batches of all loaders."""
        return sum(self.trainer.num_test_batches)

    @property
    def total_predict_batches(self) -> int | float:
        """Prediction batches of all loaders."""
        return sum(self.trainer.num_predict_batches)

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Validation batches of the loader in work; in a sanity check those that it takes."""
        trainer = self.trainer
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return counts[self._current_eval_dataloader_idx or 0]

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Test batches of the loader in work."""
        return self.trainer.num_test_batches[self._current_eval_dataloader_idx or 0]

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Prediction batches of the loader in work."""
        return self.trainer.num_predict_batches[self._current_eval_dataloader_idx or 0]

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Remember `dataloader_idx`, the loader in use, and return whether it differs from the one before."""
        before, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """An evaluation is over: the next one begins with a new loader."""
        self._current_eval_dataloader_idx = None


#: The name in Lightning before 2.0.
ProgressBarBase = ProgressBar
