"""`check`: tries out a configured training, and reports what would fail or surprise, before hours are spent on it.

It trains two batches and validates one, saves and resumes, all in a temporary folder. What is a mistake in the
configuration itself is found by `config/schema.py`, which comes first.
"""

from __future__ import annotations

import copy
import itertools
import resource
import tempfile
import time
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.model_summary import ModelSummary
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.callbacks.showing.screen import report_left_to_the_caller
from espnet3_lite.config import Config
from espnet3_lite.config.container import merge
from espnet3_lite.config.schema import check_config
from espnet3_lite.espnet.data.organizer import data_sets
from espnet3_lite.espnet.experiment import build_to_train
from espnet3_lite.espnet.import_aliases import espnet_stand_ins
from espnet3_lite.exceptions import nearest
from espnet3_lite.loops.nonfinite import returned_nothing
from espnet3_lite.report.images import RunImages

if TYPE_CHECKING:
    from espnet3_lite.espnet.trainer import ESPnetTrainer
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: So many samples of each data set are loaded, from its first to its last, and so many batches are timed.
SAMPLES, BATCHES_TIMED = 20, 6
#: Two training batches and one validation batch, with everything else as configured.
_SHORT = {
    "max_epochs": 2, "min_epochs": None, "max_steps": -1, "min_steps": None, "max_time": None, "fast_dev_run": False,
    "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "overfit_batches": 0.0,
    "val_check_interval": 1.0, "check_val_every_n_epoch": 1, "log_every_n_steps": 1, "profiler": None,
}  # fmt: skip


class Finding(NamedTuple):
    """One thing that was looked at. `kind` is ``ok``, ``note`` (it may surprise) or ``problem`` (it will break)."""

    kind: str
    text: str


@espnet_stand_ins()
def check(config: Config) -> Iterator[Finding]:
    """Rehearse a training, and tell what was found, one thing after the other.

    Args:
        config: A loaded configuration; it stays as it is.

    Raises:
        ConfigError: every mistake in the configuration, in one message.
    """
    check_config(config)
    yield Finding("ok", "the configuration has no unknown key and no value that is not allowed")
    sound = True
    for finding in _look_at_data(config):
        sound = sound and finding.kind != "problem"
        yield finding
    if not sound:
        return
    with tempfile.TemporaryDirectory() as folder:
        short = copy.deepcopy(config)
        if "fit" in short:
            del short["fit"]
        settings = _SHORT if (config.get("trainer") or {}).get("logger") is False else {**_SHORT, "logger": True}
        merge(short, {"exp_dir": folder, "trainer": {**settings, "default_root_dir": folder}})
        try:
            yield from _rehearse(short)
        except Exception as error:  # whatever it is, it would have ended the training
            yield Finding("problem", f"{type(error).__name__}: {error}")


def _look_at_data(config: Config) -> Iterator[Finding]:
    """Load samples of each data set: missing files, wrong paths."""
    try:
        sets = data_sets(config)
    except (OSError, KeyError, ValueError) as error:
        yield Finding("problem", f"dataset: {type(error).__name__}: {error}")
        return
    for split in ("train", "valid"):
        data = getattr(sets, split, None)
        if not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
            continue
        indices = sorted({round(i * (len(data) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}) if len(data) else []
        broken = []
        for index in indices:
            try:
                data[index]
            except Exception as error:  # a data set is a user's code, and any error of its ends a training
                broken.append(f"dataset.{split}[{index}]: {type(error).__name__}: {error}")
        yield from (Finding("problem", text) for text in broken)
        if not broken:
            yield Finding("ok", f"dataset.{split}: {len(data)} samples; {len(indices)} of them were loaded")


def _rehearse(config: Config) -> Iterator[Finding]:
    """Two runs: the second goes on from the first one's checkpoint."""
    first, saw = _run(config)  # it ends after its first epoch
    run, module = first.trainer, first.model
    if returned_nothing(run):
        yield Finding("problem", f"{type(module).__name__}.training_step returned None for both batches: nothing is "
                                 f"trained; end it with `return loss`")  # fmt: skip
        return
    validated = ", validated 1 batch" if run.validation_ran else ""
    yield Finding("ok", f"trained {run.global_step} step(s) on 2 batches{validated}")
    if not run.validation_ran:
        lacks = "there is no validation data" if run.enable_validation else "the model has no `validation_step`"
        yield Finding(
            "note", f"nothing is validated, because {lacks}: no best checkpoint is kept, and none is averaged"
        )
    yield from saw.findings(run, module)
    yield from _compare_speed(run.train_dataloader, saw.seconds[-1])
    yield Finding("ok", _memory(module))
    if lost := [name for name, value in module.named_parameters() if not value.isfinite().all()]:
        text = f"after {run.global_step} step(s) {lost[0]} is not finite, nor are {len(lost) - 1} other parameters"
        yield Finding("problem", f"{text}: is the learning rate too large?")
    weights = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    _, saw = _run(config)
    same = saw.weights.keys() == weights.keys() and all(_same(saw.weights[name], weights[name]) for name in weights)
    if saw.first_epoch == 1 and same:
        yield Finding("ok", "saved a checkpoint, and a second run went on from it")
    else:
        begun = f"began with epoch {saw.first_epoch + 1} and {'the same' if same else 'other'} weights"
        yield Finding("problem", f"a second run {begun}: it did not go on from the first one's checkpoint")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, where not a number is equal to itself."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _run(config: Config) -> tuple[ESPnetTrainer, _Watch]:
    trainer, watch = build_to_train(config), _Watch()
    run = trainer.trainer
    shown = (ProgressBar, ModelSummary, RunImages)
    run.callbacks = [watch, *(callback for callback in run.callbacks if not isinstance(callback, shown))]
    run.auto_resume = True
    with report_left_to_the_caller():
        trainer.fit()
    return trainer, watch


class _Watch(Callback):
    """Notes what `check` wants to know of a run."""

    def __init__(self) -> None:
        self.with_gradient: set[str] = set()
        self.seconds: list[float] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.first_epoch = -1
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Where it begins."""
        self.first_epoch = trainer.current_epoch
        state = pl_module.state_dict()
        self.weights = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int) -> None:
        """The clock starts."""
        self._began = time.perf_counter()

    def on_after_backward(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Who has a gradient."""
        self.with_gradient |= {name for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The clock stops."""
        self.seconds.append(time.perf_counter() - self._began)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """One epoch is enough; the next one is for the run that goes on."""
        trainer.should_stop = True

    def findings(self, trainer: Trainer, module: LiteModule) -> Iterator[Finding]:
        """What the run showed."""
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        without = [name for name in trained if name not in self.with_gradient]
        if without:
            more = f" and {len(without) - 5} more" if len(without) > 5 else ""
            yield Finding(
                "note",
                f"{len(without)} of {len(trained)} parameters got no gradient in two batches: "
                f"{', '.join(without[:5])}{more}; freeze them (freeze_param), or use them in the loss",
            )
        else:
            yield Finding("ok", f"each of {len(trained)} parameters got a gradient")
        logged = set(trainer.callback_metrics)
        watched = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in trainer.callbacks]
        watched += [(config.name or "a scheduler", config.monitor) for config in trainer.plan.schedulers
                    if config.reduce_on_plateau]  # fmt: skip
        missing = {(who, name) for who, name in watched if name and name not in logged}
        for who, name in sorted(missing):
            yield Finding("problem", f"{who} watches {name!r}, which nobody logs{nearest(name, logged)}")
        if not missing:
            yield Finding("ok", f"logged: {', '.join(sorted(logged))}")


def _compare_speed(loader: Any, training: float) -> Iterator[Finding]:
    """How long batches take to load, the first one left out, beside how long they take to train on."""
    batches = iter(loader)
    next(batches, None)
    began = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, BATCHES_TIMED))
    if not count:
        return
    loading = (time.perf_counter() - began) / count
    said = f"loading a batch takes {loading:.2g} s, training on it {training:.2g} s"
    if loading > training:
        workers = getattr(loader, "num_workers", 0)
        yield Finding("note", f"{said}: training waits for data; raise dataloader.train.num_workers (now {workers})")
    else:
        yield Finding("ok", said)


def _memory(module: LiteModule) -> str:
    size = sum(parameter.numel() for parameter in module.parameters())
    if torch.cuda.is_available():
        peak, whole = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        return f"{size:,} parameters; at most {peak / 2**30:.2f} of {whole / 2**30:.0f} GiB of the GPU were in use"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # given in KiB
    return f"{size:,} parameters; the process took {taken:.2f} GiB at most"
