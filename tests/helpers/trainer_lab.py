"""A laboratory in which one and the same case runs with Lightning or with espnet3_lite, and notes what a user sees.

A case is a function of a `Lab`: it builds a module and a trainer from the lab's classes, calls `fit` and its sisters,
and notes what it likes. Run with Lightning by `golden/make_lightning_trainer.py`, the notes become data; run with
espnet3_lite by `test_trainer.py`, they must be the same. Nothing here imports either.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from quiet import QUIET
from torch.utils.data import DataLoader, IterableDataset

#: Name -> case; filled by the decorators below when the modules `trainer_cases_*` are imported.
CASES: dict[str, Callable[[Lab], None]] = {}

_STAGED = ("setup", "teardown")
_EVALUATION = tuple(
    f"on_{word}_{moment}"
    for word in ("validation", "test", "predict")
    for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
)
HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start", "on_train_epoch_start",
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
    *_EVALUATION, "teardown", "on_exception",
)  # fmt: skip


def case(function: Callable[[Lab], None]) -> Callable[[Lab], None]:
    """Enter a function as a case under its name."""
    return cases(**{"": {}})(function)


def cases(**variants: dict[str, Any]) -> Callable:
    """Enter a function once for each variant, which gives keyword arguments; `name` or `name[variant]`."""

    def enter(function: Callable) -> Callable:
        for variant, arguments in variants.items():
            name = f"{function.__name__}[{variant}]" if variant else function.__name__
            if name in CASES:
                raise ValueError(f"two cases are called {name!r}")
            CASES[name] = lambda lab, arguments=arguments: function(lab, **arguments)
        return function

    return enter


class Rows(torch.utils.data.Dataset):
    """`count` rows of two features, the same ones always."""

    def __init__(self, count: int, offset: float = 0.0):
        self.rows = torch.sin(torch.arange(count * 2, dtype=torch.float64).reshape(count, 2) + offset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index].to(torch.get_default_dtype())


class Stream(IterableDataset):
    """The same rows without a length."""

    def __init__(self, count: int):
        self.rows = Rows(count)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.rows[index] for index in range(len(self.rows)))


class SizedStream(Stream):
    """The same rows as an iterable data set that knows its length."""

    def __len__(self) -> int:
        return len(self.rows)


def loader(batches: int, batch_size: int = 2, offset: float = 0.0, **arguments: Any) -> DataLoader:
    """`batches` batches of `batch_size` rows."""
    return DataLoader(Rows(batches * batch_size, offset), batch_size=batch_size, **arguments)


class Lab:
    """One case's classes, and its notes.

    Args:
        library: Has the attributes `LightningModule`, `LightningDataModule`, `Trainer`, `Callback`, `Logger`,
            `ModelCheckpoint`, `EarlyStopping`.
        folder: Where files may go.
    """

    def __init__(self, library: SimpleNamespace, folder: Path):
        self.library, self.folder = library, Path(folder)
        self.notes: list[Any] = []
        self.Module, self.Recorder = _make_module(library), _make_recorder(library, self)
        self.DataModule, self.Callback = library.LightningDataModule, library.Callback

    def note(self, what: str, *values: Any) -> None:
        """Write something down."""
        self.notes.append([what, *map(plain, values)])

    def trainer(self, watch: str = "metrics", callbacks: Any = (), logger: Any = True, **settings: Any) -> Any:
        """A quiet trainer whose hooks, metrics and logs are written down.

        Args:
            watch: What is noted at each hook: words of ``order`` (each call, with the counters), ``flags``,
                ``counts``, ``metrics``, ``lr``; the logger's values always are.
            callbacks: Further ones, after the recorder.
            logger: True: the recording logger.
            settings: The trainer's.
        """
        quiet = {**QUIET, "devices": 1, "default_root_dir": str(self.folder)}
        loggers = _make_logger(self.library, self) if logger is True else logger
        recorder = self.Recorder(watch.split())
        return self.library.Trainer(**{**quiet, "logger": loggers, "callbacks": [recorder, *callbacks], **settings})

    def fit(
        self, module: Any = None, train: int = 4, val: int | None = None, watch: str = "metrics", **settings
    ) -> Any:
        """Fit a module (the plain one by default) on so many batches; writes down how it ended. Gives the trainer."""
        module = self.Module() if module is None else module
        settings = {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **settings}
        trainer = self.trainer(watch=watch, **settings)
        trainer.fit(module, loader(train), None if val is None else loader(val, offset=1.0))
        self.end(trainer)
        return trainer

    def extend(self, trainer: Any, epochs: int) -> None:
        """Let the next `fit` go on; the one thing that is spelt differently."""
        holder = trainer.fit_loop if hasattr(trainer.fit_loop, "max_epochs") else trainer
        holder.max_epochs = epochs

    def end(self, trainer: Any) -> None:
        """How a call ended: counters, state, weights, what is left in the three dicts of metrics."""
        module = trainer.lightning_module
        self.note("end", trainer.global_step, trainer.current_epoch, trainer.state.status, trainer.state.fn,
                  trainer.should_stop)  # fmt: skip
        self.note("weights", {name: value for name, value in module.state_dict().items()})
        self.note("callback_metrics", trainer.callback_metrics)
        self.note("logged_metrics", trainer.logged_metrics)
        self.note("progress_bar_metrics", trainer.progress_bar_metrics)

    @contextlib.contextmanager
    def error(self, *words: str) -> Iterator[None]:
        """An error is due here: its type is noted, its text must hold the words."""
        try:
            yield
        except Exception as error:
            text = str(error).lower()
            missing = [word for word in words if word.lower() not in text]
            if missing:
                raise AssertionError(f"{missing} not in the message: {error}") from error
            self.note("error", kind_of(error))
        else:
            self.note("error", None)


def kind_of(error: Exception) -> str:
    """The name of an error's class; of one that is Python's own error as well, the name of that one."""
    own = (FileNotFoundError, ValueError, RuntimeError, TypeError, AttributeError)
    return next((kind.__name__ for kind in own if isinstance(error, kind)), type(error).__name__)


def plain(value: Any) -> Any:
    """Anything as JSON holds it: tensors as numbers or lists, NaN and infinities as text, enums as text."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.Tensor):
        return plain(value.detach().double().tolist() if value.is_floating_point() else value.tolist())
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return value.name
    return value


def run_case(name: str, library: SimpleNamespace, folder: Path) -> list[Any]:
    """Run one case in float64; gives its notes."""
    dtype, level = torch.get_default_dtype(), logging.root.manager.disable
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    lab = Lab(library, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CASES[name](lab)
    finally:
        torch.set_default_dtype(dtype)
        logging.disable(level)
    return lab.notes


def _make_module(library: SimpleNamespace) -> type:
    class Module(library.LightningModule):
        """A line through two features; logs its loss in each step."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            with torch.no_grad():
                self.layer.weight.copy_(torch.tensor([[0.5, -0.25]]))
                self.layer.bias.fill_(0.125)

        def loss(self, batch):
            return (self.layer(batch) - 1).square().mean()

        def forward(self, batch):
            return self.layer(batch)

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("test_loss", self.loss(batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def _make_recorder(library: SimpleNamespace, lab: Lab) -> type:
    """A callback that notes at each hook what changed since the hook before."""

    def recording(hook: str) -> Callable:
        def record(self, trainer, pl_module, *arguments, **keywords):
            self.record(hook, trainer, [*arguments, *keywords.values()])

        return record

    class Recorder(library.Callback):
        def __init__(self, watch):
            self.watch, self.before = watch, {}

        def record(self, hook, trainer, arguments):
            text = hook
            if hook in _STAGED:
                text += f":{plain(arguments[-1])}"
            elif hook == "on_exception":
                text += f":{type(arguments[-1]).__name__}"
            elif "_batch_" in hook:  # (outputs), batch, batch_idx, (dataloader_idx)
                after_batch = arguments[1:] if hook.endswith("start") else arguments[2:]
                text += str(list(after_batch))
            now = self.snapshot(trainer)
            changed = {key: value for key, value in now.items() if self.before.get(key) != value}
            self.before = {**self.before, **now}
            if changed or "order" in self.watch:
                lab.notes.append([text, changed])

        def snapshot(self, trainer):
            state = {}
            if "order" in self.watch:
                state.update(step=trainer.global_step, epoch=trainer.current_epoch, stop=trainer.should_stop)
            if "flags" in self.watch:
                names = ("training", "validating", "testing", "predicting", "sanity_checking", "is_last_batch",
                         "interrupted", "is_global_zero", "world_size")  # fmt: skip
                state.update({name: getattr(trainer, name) for name in names})
                state.update(status=trainer.state.status, fn=trainer.state.fn, stage=trainer.state.stage)
                state.update(grad=torch.is_grad_enabled(), train=trainer.lightning_module.training)
            if "counts" in self.watch:
                names = ("num_training_batches", "num_val_batches", "num_sanity_val_batches", "num_test_batches",
                         "num_predict_batches")  # fmt: skip
                state.update({name: getattr(trainer, name) for name in names})
            if "metrics" in self.watch and trainer.state.stage is not None:
                for kind, metrics in (("callback", trainer.callback_metrics), ("logged", trainer.logged_metrics),
                                      ("bar", trainer.progress_bar_metrics)):  # fmt: skip
                    state.update({f"{kind} {name}": value for name, value in metrics.items()})
            if "lr" in self.watch:
                state["lr"] = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
            return plain(state)

    for hook in HOOKS:
        setattr(Recorder, hook, recording(hook))
    return Recorder


def _make_logger(library: SimpleNamespace, lab: Lab) -> Any:
    class RecordingLogger(library.Logger):
        name = "recording"
        version = 0

        def log_metrics(self, metrics, step=None):
            lab.note("log", step, metrics)

        def log_hyperparams(self, params, *args, **kwargs):
            lab.note("hyperparameters", dict(params))

        def finalize(self, status):
            lab.note("finalize", status)

    return RecordingLogger()
