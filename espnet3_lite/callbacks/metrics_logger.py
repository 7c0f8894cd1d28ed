"""`MetricsLogger`: what a person reads in a training log, as lines of text.

Numbers for programs go to the loggers (`espnet3_lite.loggers`); the lines' handlers are set up by the command line.
"""

from __future__ import annotations

import logging
import operator
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from espnet3_lite.callbacks.base import Callback, looks_at_no_gradients, looks_at_no_outputs
from espnet3_lite.callbacks.showing.screen import epoch_in_work
from espnet3_lite.callbacks.showing.step_means import RunningMeans, StepValues
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from espnet3_lite.metrics.collector import Metrics
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


logger = logging.getLogger(__name__)

#: Of a parameter group.
_RATE = operator.itemgetter("lr")
#: What is noted of a batch beside what it logged: the wait for it; when it began; when its backward passes began, and
#: were over; when it was over; each optimizer's learning rates; what others published.
_OfBatch: TypeAlias = tuple[float, float, list[tuple[float, float]], float, list[list[Any]], dict[str, Any]]
_TIMES = ("iter_time", "forward_time", "backward_time", "train_time", "valid_time")


class MetricsLogger(Callback):
    """Writes ESPnet3's lines, with ``logging`` at INFO, on rank zero.

    ``20epoch:train:4201-4400batch: iter_time=6.2e-05, ..., loss=46.669, optim0_lr0=0.001`` after each
    `log_every_n_steps` batches; at each epoch's end ``epoch_summary:20epoch:train: ...`` and after each validation
    ``epoch_summary:20epoch:valid: valid_time=1.42, acc=0.91`` (outside a fit ``summary:valid: ...``). Epochs and
    batches count from 1.

    A training value is the mean over the batches in which it was logged, with this rank's values; ``optim<i>_lr<j>``
    is the mean of the learning rate after each batch. A validation value is the epoch's mean over all ranks. ``train/``
    and ``valid/`` are left out of the names. Times are means a batch in seconds by the host's clock: waiting for the
    training loader, forward, all backward passes, and the batch without the wait; ``valid_time`` is the whole
    validation's.

    On a terminal, lines are shorter: see `screen_values`; and a learning rate is the last one that a step used.
    Nothing is read from the device until a line is written.

    Args:
        log_every_n_steps: Batches that make a line; 0: epoch summaries alone. Default 500.

    Raises:
        MisconfigurationException: a negative number.

    Example:
        >>> MetricsLogger(log_every_n_steps=200).log_every_n_steps
        200
    """

    def __init__(self, log_every_n_steps: int = 500):
        if log_every_n_steps < 0:
            raise MisconfigurationException(f"MetricsLogger(log_every_n_steps={log_every_n_steps!r}): give 0 or more")
        self.log_every_n_steps = int(log_every_n_steps)
        self._window, self._epoch = _means_in_lines(), _means_in_lines()
        self._first_batch: int | None = None  # of the window in work, from 1
        self._steps = StepValues()
        #: What `_published_anew` has given.
        self._seen: dict[str, Any] = {}
        self._looked_at = 0  # what `Metrics.looked_at` was then
        #: The learning rates of each optimizer's last step, by its `id`.
        self._rates_used: dict[int, list[Any]] = {}
        self._waited = self._batch_started = self._backward_started = self._validation_started = 0.0
        #: When each backward pass of the batch in work began, and when it was over.
        self._passes: list[tuple[float, float]] = []
        #: Of each batch that `_steps` has noted.
        self._batches: list[_OfBatch] = []
        self._valid_time: float | None = None  # of the epoch's last validation
        #: The last epoch's means, or those so far of one that was broken off, by the names that the values were logged
        #: under; but for those that have no mean.
        self.epoch_means: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The means so far, so that the lines of a resumed run, and its report, are those of one that was never cut."""
        self._take_batches()
        return {
            "window": self._window.state_dict(),
            "epoch": self._epoch.state_dict(),
            "first_batch": self._first_batch,
            "epoch_means": dict(sorted(self.epoch_means.items())),  # a resumed run logs its names in another order
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the means."""
        self._window.load_state_dict(state_dict["window"])
        self._epoch.load_state_dict(state_dict["epoch"])
        self._first_batch = state_dict["first_batch"]
        self.epoch_means = state_dict.get("epoch_means", {})  # files of earlier versions hold none

    # ---- training --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """What is there already (a resumed run's, say) is not new."""
        self._take_batches()  # of a fit that this one goes on with
        self._seen, self._steps = {}, StepValues()
        self._published_anew(trainer.metrics)
        self._rates_used = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """The data is there."""
        self._batch_started = time.perf_counter()
        self._waited, self._passes = trainer.train_data.seconds_waited, []
        if self._first_batch is None:
            self._first_batch = batch_idx + 1

    def on_before_backward(self, trainer: Trainer, pl_module: LiteModule, loss: torch.Tensor) -> None:
        """Forward ends with the batch's first backward pass."""
        self._backward_started = time.perf_counter()

    @looks_at_no_gradients
    def on_after_backward(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """One backward pass is over."""
        self._passes.append((self._backward_started, time.perf_counter()))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LiteModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """By the batch's end the scheduler has set the next step's rate."""
        self._rates_used[id(optimizer)] = _rates_of(optimizer)

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's values; write the line where its window is full."""
        metrics, every = trainer.metrics, self.log_every_n_steps
        due = every and (batch_idx + 1) % every == 0
        published = self._published_anew(metrics) if due or metrics.looked_at != self._looked_at else {}
        rates = [_rates_of(slot.optimizer) for slot in trainer.plan.slots.values()]
        self._batches.append((self._waited, self._batch_started, self._passes, time.perf_counter(), rates, published))
        if self._steps.note(metrics) or due:
            self._take_batches()
        if due:
            place = f"{trainer.current_epoch + 1}epoch:train:{self._first_batch}-{batch_idx + 1}batch"
            self._write(trainer, place, self._window.means())
            self._close_window()

    def _take_batches(self) -> None:
        """The batches that were noted are the window's: at once, which takes a fraction of the time between steps."""
        values: list[tuple[str, Any]] = []
        for (waited, began, passes, ended, rates, published), logged in zip(
            self._batches, self._steps.anew(), strict=True
        ):
            values.append(("iter_time", waited))
            values += [("forward_time", started - began) for started, _ in passes[:1]]
            values += [("backward_time", over - started) for started, over in passes]
            values += published.items()
            values += [(f"optim{index}_lr", of_groups) for index, of_groups in enumerate(rates)]
            values.append(("train_time", ended - began))
            values += logged.items()
        self._window.take(values)
        self._batches.clear()

    def __getstate__(self) -> dict[str, Any]:
        """A copy goes on from the means so far."""
        self._take_batches()
        return super().__getstate__()

    def _close_window(self) -> None:
        """What is in the window is the epoch's."""
        self._take_batches()
        self._epoch.merge(self._window)
        self._window, self._first_batch = _means_in_lines(), None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The epoch's summary; values that are logged on epochs alone are in it as they are."""
        self._close_window()
        means = self._epoch.means()
        metrics = trainer.metrics
        self._steps.note(metrics)
        for name, value in {**self._published_anew(metrics), **self._steps.anew()[-1]}.items():
            means.setdefault(name.removeprefix("train/"), float(value))
        self._write(trainer, f"epoch_summary:{trainer.current_epoch + 1}epoch:train", means, left_out=_TIMES[:3])
        self._log_epoch(trainer, means)
        self._epoch = _means_in_lines()

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run that was stopped within an epoch reports that one's means so far."""
        self._take_batches()
        so_far = _means_in_lines()
        so_far.merge(self._epoch)
        so_far.merge(self._window)
        if means := so_far.means():
            self._name_means(trainer, means)

    def _log_epoch(self, trainer: Trainer, means: dict[str, float]) -> None:
        """Hand the epoch's means to the loggers: of values that are logged at steps alone, of times, of rates."""
        self._name_means(trainer, means)
        on_epoch = {entry.name for entry in trainer.metrics.training.values() if entry.on_epoch}
        row = {f"{name}_epoch": self.epoch_means[name] for name in self.epoch_means.keys() - on_epoch
               if name.startswith("train/")}  # fmt: skip
        row |= {name: value for name, value in means.items() if name in _TIMES or name.startswith("optim")}
        if self._valid_time is not None:
            row["valid_time"], self._valid_time = self._valid_time, None
        row["epoch"] = trainer.current_epoch
        for log in trainer.loggers:
            log.log_metrics(row, step=trainer.logging_step - 1)

    def _name_means(self, trainer: Trainer, means: dict[str, float]) -> None:
        """Keep the means by the names that were logged.

        A value that is logged with another `reduce_fx` than the mean is left out: what it came to is its last one.
        """
        trained = {f"train/{name.removeprefix('train/')}": name for name in trainer.callback_metrics}
        short = {full.removeprefix("train/"): name for full, name in trained.items() if not name.startswith("valid/")}
        counts = {entry.name for entry in trainer.metrics.training.values() if entry.reduce != "mean"}
        self.epoch_means = {short[n]: value for n, value in means.items() if n in short and short[n] not in counts}

    # ---- validation ------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Start its clock; what was logged before is not the validation's."""
        self._validation_started = time.perf_counter()
        self._published_anew(trainer.metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The validation's summary, but for a sanity check's."""
        values = {"valid_time": time.perf_counter() - self._validation_started}
        for name, value in self._published_anew(trainer.metrics).items():
            values[name.removeprefix("valid/")] = float(value)
        if trainer.sanity_checking:
            return
        self._valid_time = values["valid_time"]
        # Weights that are validated on their own may be an average: of no epoch.
        epoch = f"epoch_summary:{trainer.current_epoch + 1}epoch" if trainer.state.fn == "fit" else "summary"
        self._write(trainer, f"{epoch}:valid", values)

    def _published_anew(self, metrics: Metrics) -> dict[str, Any]:
        """The callback metrics that were set since it was last called, but for those of training steps.

        Only objects are compared: no value is looked at.
        """
        # Between two batches hooks log the values of an epoch.
        published = metrics.callback if metrics.batch is None else metrics.callback_as_published
        anew = {name: value for name, value in published.items() if self._seen.get(name) is not value}
        self._seen.update(anew)
        self._looked_at = metrics.looked_at
        for entry in metrics.training.values():
            if entry.on_step and entry.last is not None:
                anew.pop(entry.name, None)
                anew.pop(entry.step_name, None)
        return anew

    def _write(self, trainer: Trainer, place: str, values: dict[str, float], left_out: tuple[str, ...] = ()) -> None:
        """A line; what is `left_out` of ESPnet3's has its part in the screen's."""
        if trainer.is_global_zero and values:
            place_on_screen = place.removeprefix("epoch_summary:").removesuffix("batch").split(":")
            if trainer.state.fn == "fit":  # 20epoch:train:1-5batch
                place_on_screen[0] = f"epoch {epoch_in_work(trainer)}"
            used = {
                f"optim{index}_lr{position}": float(rate)
                for index, optimizer in enumerate(trainer.optimizers)
                for position, rate in enumerate(self._rates_used.get(id(optimizer), ()))
            }
            shown = {name: used.get(name, value) for name, value in values.items()}
            short = f"{' '.join(place_on_screen)}: {screen_values(shown, rate_names(trainer))}"
            line = {name: value for name, value in values.items() if name not in left_out}
            logger.info("%s: %s", place, format_values(line), extra={"screen": short})


def format_values(values: dict[str, float]) -> str:
    """Times first, learning rates of optimizers last, the rest by name; six significant digits.

    >>> format_values({"optim0_lr0": 0.1, "loss": 2 / 3, "acc": 1.0, "train_time": 0.5})
    'train_time=0.5, acc=1, loss=0.666667, optim0_lr0=0.1'
    """
    times = [name for name in _TIMES if name in values]
    rates = sorted(name for name in values if name.startswith("optim") and "_lr" in name)
    others = sorted(values.keys() - set(times) - set(rates))
    return ", ".join(f"{name}={values[name]:.6g}" for name in (*times, *others, *rates))


def _means_in_lines() -> RunningMeans:
    return RunningMeans(left_out="train/")


def _rates_of(optimizer: Optimizer) -> list[Any]:
    """Each group's learning rate; one that is a tensor, which schedulers write to, is copied."""
    rates = list(map(_RATE, optimizer.param_groups))
    return [rate.clone() for rate in rates] if torch.Tensor in map(type, rates) else rates


def rate_names(trainer: Trainer) -> dict[str, str]:
    """What people call each learning rate, by its name in the log: ``lr``, of several optimizers ``lr-<name>``."""
    names = {}
    for index, slot in enumerate(trainer.plan.slots.values()):
        groups = len(slot.optimizer.param_groups)
        name = "lr" if len(trainer.plan.slots) == 1 else f"lr-{index if slot.name is None else slot.name}"
        for group in range(groups):
            names[f"optim{index}_lr{group}"] = name if groups == 1 else f"{name}/pg{group + 1}"
    return names


def screen_values(values: dict[str, float], rates: dict[str, str]) -> str:
    """What a person reads of a line's values: losses first, four digits, each rate once.

    ``s/batch`` is the whole time of a batch, ``wait`` the part of it that went by until its data was there.

    Args:
        values: By their names in the log.
        rates: What the learning rates are called here.

    >>> rates = {"optim0_lr0": "lr"}
    >>> times = {"iter_time": 0.3, "train_time": 0.9}
    >>> screen_values({**times, "acc": 0.5, "loss": 2 / 3, "lr-SGD": 0.1, "optim0_lr0": 0.1}, rates)
    'loss=0.6667, acc=0.5, lr=0.1, s/batch=1.2, wait=25%'
    """
    names = sorted((n for n in values if n not in _TIMES and n not in rates and not n.startswith("lr-")),
                   key=lambda name: ("loss" not in name, name))  # fmt: skip
    parts = [f"{name}={values[name]:.4g}" for name in names]
    parts += [f"{rates[name]}={values[name]:.4g}" for name in sorted(values.keys() & rates.keys())]
    if "valid_time" in values:
        parts.append(f"seconds={values['valid_time']:.4g}")
    if "train_time" in values:
        waiting = values.get("iter_time", 0.0)
        parts.append(f"s/batch={values['train_time'] + waiting:.4g}")
        parts += [f"wait={waiting / (values['train_time'] + waiting):.0%}"] if waiting else []
    return ", ".join(parts)
