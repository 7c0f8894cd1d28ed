"""What a run says by itself: its log lines where nobody has set up logging, and the report at its end.

The commands set up logging of their own (`cli/log_lines.py`). What is drawn while a run lasts is the progress bars'.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint
from espnet3_lite.callbacks.showing.tqdm_bars import takes_colours, writable
from espnet3_lite.checkpoint.lightning_format import own_state
from espnet3_lite.distributed.launch import under_torchrun
from espnet3_lite.distributed.rank import is_global_zero, rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import nearest
from espnet3_lite.trainer.settings import DEFAULT_EPOCHS

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)

PACKAGE_LOGGER = logging.getLogger("espnet3_lite")
_left_to_the_caller = ContextVar("left_to_the_caller", default=False)

#: A log line on a terminal takes at most this many columns; what is longer goes on in the next line.
WIDEST_LINE = 100
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}


class AboveBars(logging.StreamHandler):
    """Writes lines to a terminal so that a progress bar that is drawn there moves down, and is not written over.

    >>> AboveBars().level
    0
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the bars, write the line, draw them again; in a log file, where no bar is drawn, write the line."""
        for stream in (sys.stdout, sys.stderr):  # while rich draws a bar, it stands in for both, and moves the bar
            if getattr(stream, "rich_proxied_file", None) is self.stream:
                print(self.format(record), file=stream)
                return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Who reads the lines may have seen enough."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            read_no_further(self.stream)
        else:
            super().handleError(record)


class ScreenLines(logging.Formatter):
    """Formats lines for a terminal: short forms, at most `WIDEST_LINE` columns wide, warnings and errors coloured.

    A record's ``screen`` (given in ``extra``) is what a person reads of it on a terminal. In files stands its message.
    """

    def __init__(self, stream: Any, form: str, times: str | None = None):
        super().__init__(form, times)
        self.stream = stream

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        if not self.stream.isatty():
            return super().format(record)
        screen = getattr(record, "screen", None)
        if screen is not None:
            record = copy.copy(record)
            record.msg, record.args = screen, ()
        text = super().format(record)
        if screen is not None:
            width = min(WIDEST_LINE, shutil.get_terminal_size().columns)
            text = textwrap.fill(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        colour = _COLOURS.get(record.levelno) if takes_colours(self.stream) else None
        return f"{colour}{text}\x1b[0m" if colour else text


def read_no_further(stream: Any) -> None:
    """Whoever read this stream has gone (``| head``): what is still written to it, also at the end, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def log_lines_shown() -> Iterator[None]:
    """Within the block, show the package's lines at INFO on stderr, on rank zero, if nobody has set up logging.

    Whoever has, with `logging.basicConfig` or a level of the package's logger, decides alone what is shown.
    """
    if not is_global_zero() or PACKAGE_LOGGER.hasHandlers() or PACKAGE_LOGGER.level != logging.NOTSET:
        yield
        return
    handler = AboveBars(writable(sys.stderr))
    handler.setFormatter(ScreenLines(handler.stream, "%(message)s"))
    handler.addFilter(lambda record: not logging.getLogger().handlers)  # set up meanwhile: each line is shown once
    PACKAGE_LOGGER.addHandler(handler)
    PACKAGE_LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        PACKAGE_LOGGER.removeHandler(handler)
        PACKAGE_LOGGER.setLevel(logging.NOTSET)


@contextmanager
def report_left_to_the_caller() -> Iterator[None]:
    """Within the block, `fit` does not report its end: the caller prints a report of its own."""
    token = _left_to_the_caller.set(True)
    try:
        yield
    finally:
        _left_to_the_caller.reset(token)


def results(trainer: Trainer) -> dict[str, float]:
    """What a run came to, by name: means over the last epoch, also of values that are logged at steps alone."""
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    forked = {name for name in values if name.endswith("_epoch") and name.removesuffix("_epoch") in values}
    for callback in trainer.callbacks:
        means = getattr(callback, "epoch_means", {})
        values.update({name: means[name] for name in values.keys() & means.keys() if f"{name}_epoch" not in forked})
    steps = {name.removesuffix("_epoch") + "_step" for name in forked}
    return {name: values[name] for name in sorted(values.keys() - forked - steps)}


def epoch_in_work(trainer: Trainer) -> str:
    """The epoch in work as people count, from 1, and how many there will be: ``3/12``, or ``3`` without a limit."""
    return f"{trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if trainer.max_epochs > 0 else "")


def end_report(
    trainer: Trainer, seconds: float | None = None, within: Path | None = None, went_on: bool = False
) -> list[str]:
    """Lines that say where a fit ended, what it came to, and its best checkpoints.

    Args:
        trainer: After a fit.
        seconds: How long it took.
        within: A folder that the reader knows: files in it are named without it.
        went_on: Some of the epochs were trained before, and took time of their own.
    """
    epochs, steps = trainer.current_epoch, trainer.global_step
    took = "" if seconds is None else f"{timedelta(seconds=round(seconds))}"
    took = took and (f" in all; this call took {took}" if went_on else f" in {took}")
    lines = [f"trained {epochs} epoch{'s' * (epochs != 1)}, {steps} step{'s' * (steps != 1)}{took}"]
    lines += [f"  {name} {value:.4g}" for name, value in results(trainer).items() if not name.startswith("lr-")]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            best = float(callback.best_model_score)
            path = Path(callback.best_model_path)
            if within is not None and path.resolve().is_relative_to(within.resolve()):
                path = path.resolve().relative_to(within.resolve())
            lines.append(f"  best {callback.monitor} {best:.4g} in {path}")
    return lines


@contextmanager
def told(trainer: Trainer) -> Iterator[None]:
    """Around a call: its log lines are shown; a fit's end is reported at INFO, unless the progress bar is off."""
    began, earlier_steps = time.monotonic(), trainer.global_step
    with log_lines_shown():
        try:
            yield
        except (SystemExit, KeyboardInterrupt):  # a signal or Ctrl-C, after all was saved
            if trainer.is_global_zero and trainer.state.fn == "fit" and not _left_to_the_caller.get():
                logger.warning("The run was cut by a signal; %s", _how_to_go_on(trainer))
            raise
        if trainer.state.fn == "fit" and trainer.ckpt_path is None and trainer.global_step == earlier_steps > 0:
            _warn_if_over(trainer)
        silent = _left_to_the_caller.get() or trainer.fast_dev_run or trainer.progress_bar_callback is None
        silent = silent or trainer.state.fn != "fit"  # the results of `validate` and `test` are printed in any case
        if trainer.is_global_zero and not silent:
            went_on = earlier_steps > 0 or trainer.ckpt_path is not None
            logger.info("%s", "\n".join(end_report(trainer, time.monotonic() - began, went_on=went_on)))


def warn_of_missing_processes(devices: int | str | list[int]) -> None:
    """``Trainer(devices=...)`` starts no processes: torchrun does, and who wants several is told so."""
    wanted = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    if wanted > 1 and not under_torchrun():
        as_command = sys.argv[0].endswith(("__main__.py", "espnet3-lite"))
        script = "YOUR_SCRIPT.py" if hasattr(sys, "ps1") else os.path.basename(sys.argv[0])
        program = "-m espnet3_lite train" if as_command else script
        rank_zero_warn(
            f"devices={devices}, but this is one process. To train on {wanted}, start it with `torchrun "
            f"--nproc-per-node {wanted} {program} ...`"
        )


def warn_at_begin(trainer: Trainer) -> None:
    """A fit begins of which nobody has said how long it is, or of another model than the fit before."""
    before = trainer.plan.built
    if before and trainer.ckpt_path is None and before.isdisjoint(trainer.lightning_module.parameters()):
        rank_zero_warn(
            f"this trainer has trained another model before: its epochs and steps are counted on (epoch "
            f"{trainer.current_epoch}, step {trainer.global_step}), and its callbacks keep what they saw of that one "
            f"(the best score and file, how long to wait). Make a new Trainer for each model"
        )
    if not trainer.epochs_given and trainer.max_epochs == DEFAULT_EPOCHS:
        rank_zero_warn(f"`max_epochs` was not set. Setting it to {DEFAULT_EPOCHS} epochs. To train without an epoch "
                       f"limit, set `max_epochs=-1`.")  # fmt: skip


def warn_of_unknown_monitors(trainer: Trainer) -> None:
    """Behind a sanity check: who follows a validation metric that it did not log would fail an epoch later.

    What is no validation metric by its first word (``valid/loss``, ``val_loss``) cannot be known yet.
    """
    logged = list(trainer.callback_metrics)
    kinds = {_first_word(name) for name in logged}
    followers = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in trainer.callbacks]
    followers += [(type(config.scheduler).__name__, config.monitor) for config in trainer.lr_scheduler_configs]
    for follower, monitor in followers:
        if isinstance(monitor, str) and monitor not in logged and _first_word(monitor) in kinds:
            rank_zero_warn(
                f"{follower} follows {monitor!r}, which the validation of the sanity check did not log: there are "
                f"{', '.join(map(repr, logged))}{nearest(monitor, logged)}. If no validation logs it, the run will end "
                f"with an error after the first one"
            )


def _first_word(name: str) -> str:
    return re.split("[/_]", name)[0]


def tell_if_over(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Say at once that nothing is left to train: optimizers, loaders and the end of the run take some time yet."""
    epochs = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    counts = {"max_epochs": epochs.get("processed", 0), "max_steps": own_state(checkpoint).get("global_step", 0)}
    for limit, reached in counts.items():
        if 0 <= getattr(trainer, limit) <= reached:
            rank_zero_info("The run of this checkpoint is finished: it has reached %s=%d. Nothing is left to train; "
                           "raise %s to go on", limit, getattr(trainer, limit), limit)  # fmt: skip


def _warn_if_over(trainer: Trainer) -> None:
    """A further fit of the same trainer, as in a notebook's cell that runs again, may have nothing to do."""
    for limit, reached in {"max_epochs": trainer.current_epoch, "max_steps": trainer.global_step}.items():
        if 0 <= getattr(trainer, limit) <= reached:
            rank_zero_warn(
                f"Nothing was trained: this trainer had reached {limit}={getattr(trainer, limit)} before. Raise "
                f"trainer.{limit} to train on; make a new Trainer to train another model"
            )


def _how_to_go_on(trainer: Trainer) -> str:
    """What a fit that was cut has saved last, as a whole state, and what goes on from it."""
    saved = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and not c.save_weights_only]
    newest = max(saved, key=lambda callback: callback._batches_at_save, default=None)
    path = newest and (newest.last_model_path or newest._last_checkpoint_saved)
    if not path:
        return "no state was saved that it could go on from"
    return f"fit(..., ckpt_path={str(path)!r}) goes on, as does the same call with Trainer(auto_resume=True)"


def print_results(results: list[dict[str, float]], word: str) -> None:
    """The results of `validate` or `test`, a line a value."""
    for index, result in enumerate(results):
        title = f"{word} metric" + (f" (loader {index})" if len(results) > 1 else "")
        width = max((len(name) for name in (*result, title)), default=0)
        print(f"{title:<{width}}  value")
        for name, value in sorted(result.items()):
            print(f"{name:<{width}}  {value:.6g}")
