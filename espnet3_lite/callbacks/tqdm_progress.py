"""`TQDMProgressBar`: bars in a terminal or a notebook, a plain line now and then in a log file."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from espnet3_lite.callbacks.base import looks_at_no_outputs
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.callbacks.showing.screen import epoch_in_work, results
from espnet3_lite.callbacks.showing.tqdm_bars import (
    DRAW_EVERY,
    LINE_EVERY,
    STANDS_STILL,
    LogLines,
    NotebookBar,
    Tqdm,
    bar_for,
    takes_colours,
    writable,
)
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class _Bar:
    """One of the callback's four bars; who asks for it too early is told so."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, callback: TQDMProgressBar | None, owner: type) -> Any:
        if callback is None:
            return self
        bar = callback.bars.get(self.name)
        if bar is None:
            raise TypeError(f"The `{owner.__name__}.{self.name}` reference has not been set yet.")
        return bar

    def __set__(self, callback: TQDMProgressBar, bar: tqdm) -> None:
        callback.bars[self.name] = bar


class TQDMProgressBar(ProgressBar):
    """Shows progress on stderr: bars where there is a terminal or a notebook, else one line now and then.

    Epochs count from 1: ``Epoch 3/12``. Bars are drawn at most ten times a second. A value that has no room in the
    terminal's line is left out whole. In a notebook a table has one line an epoch. In a log file (stderr is no
    terminal) a line is written at the end of each epoch, validation (alone), test and prediction, and in between after
    each 30 seconds. Metrics are read from the device only for what is drawn or written.

    Args:
        refresh_rate: The bar moves each n-th batch, or after five seconds if those take longer; 0: no bar. The
            environment's ``TQDM_MINITERS`` may raise it.
        process_position: Leave this many bars' room above, for bars of your own.
        leave: Keep the bar of each finished epoch on the screen. Default False.

    Raises:
        MisconfigurationException: a negative number.

    Example:
        >>> class WithStep(TQDMProgressBar):
        ...     def get_metrics(self, trainer, pl_module):
        ...         return {"step": trainer.global_step, **super().get_metrics(trainer, pl_module)}
        >>> WithStep(refresh_rate=10).refresh_rate
        10
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    LINE_FORMAT = "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    train_progress_bar = _Bar()
    val_progress_bar = _Bar()
    test_progress_bar = _Bar()
    predict_progress_bar = _Bar()

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False):
        for name, value in (("refresh_rate", refresh_rate), ("process_position", process_position)):
            if value < 0:
                raise MisconfigurationException(f"TQDMProgressBar({name}={value!r}): give 0 or more")
        if refresh_rate:
            refresh_rate = max(int(os.environ.get("TQDM_MINITERS", 0)), refresh_rate)
        self._refresh_rate, self._process_position, self._leave = refresh_rate, process_position, leave
        self.bars: dict[str, tqdm] = {}
        self._draw_at = self._move_at = 0.0  # not before this time (`time.monotonic`), and not later than this

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no trainer yet, and open bars hold streams and locks."""
        return {**vars(self), "bars": {}, "_trainer": None}

    @property
    def refresh_rate(self) -> int:
        """The bar moves each n-th batch."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """Room for other bars, in lines."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        """True where a bar is shown."""
        return self._enabled and self._refresh_rate > 0

    # ---- making bars: override these to change how one looks -------------------------------------------------------

    def init_train_tqdm(self) -> tqdm:
        """The bar of the training epochs."""
        return self._make_bar(self.train_description, leave=True, smoothing=0)

    def init_sanity_tqdm(self) -> tqdm:
        """The bar of the sanity check."""
        return self._make_bar(self.sanity_check_description, leave=False)

    def init_validation_tqdm(self) -> tqdm:
        """The bar of a validation; within a fit it stands below the training bar."""
        alone = self.trainer.state.fn == "validate"
        return self._make_bar(self.validation_description, leave=alone, line=0 if alone else 1)

    def init_test_tqdm(self) -> tqdm:
        """The bar of a test."""
        return self._make_bar(self.test_description, leave=True)

    def init_predict_tqdm(self) -> tqdm:
        """The bar of a prediction."""
        return self._make_bar(self.predict_description, leave=True, smoothing=0)

    def _make_bar(self, description: str, leave: bool, line: int = 0, **arguments: Any) -> tqdm:
        stream = writable(sys.stderr)
        kind = bar_for(stream)
        if kind is Tqdm and takes_colours(stream):
            arguments["colour"] = "green"
        return kind(
            desc=description, leave=leave, position=2 * self._process_position + line, disable=self.is_disabled,
            dynamic_ncols=kind is Tqdm, file=stream,
            bar_format=self.LINE_FORMAT if kind is LogLines else self.BAR_FORMAT, **arguments,
        )  # fmt: skip

    # ---- moving and drawing them -----------------------------------------------------------------------------------

    def _begin(self, bar: tqdm, total: int | float, description: str, done: int = 0) -> None:
        """A new epoch or loader: `total` batches, `done` of them already (a run that resumes)."""
        bar.reset()
        bar.total = None if math.isinf(total) else total  # tqdm's word for "nobody knows"
        bar.n = bar.initial = done
        bar.set_description(description, refresh=not _is_log(bar))
        self._wait(bar, 0.0)

    def _wait(self, bar: tqdm, seconds: float) -> None:
        """Draw a bar again after so many seconds, if it moves; move it after some more in any case."""
        now, log = time.monotonic(), _is_log(bar)
        self._draw_at = now + (LINE_EVERY if log else seconds)
        self._move_at = self._draw_at if log else now + STANDS_STILL

    def _move(self, bar: tqdm, done: int, pl_module: LiteModule | None = None) -> None:
        """After each batch: two comparisons, and a look at the clock."""
        if done % self._refresh_rate and done != bar.total and time.monotonic() < self._move_at:
            return
        bar.n = done
        complete = done == bar.total and not _is_log(bar)  # a log's last line waits for the validation
        if complete or time.monotonic() >= self._draw_at:
            self._draw(bar, pl_module)

    def _draw(self, bar: tqdm, pl_module: LiteModule | None = None) -> None:
        """Draw the bar or write its line; with metrics where there is a module."""
        if bar.disable:
            return
        if pl_module is not None:
            bar.set_postfix(self.get_metrics(self.trainer, pl_module), refresh=False)
        if isinstance(bar, LogLines) and _is_log(bar):
            bar.print_line()
        else:
            bar.refresh()
        self._wait(bar, DRAW_EVERY)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars; the arguments are those of Python's `print`."""
        with tqdm.external_write_mode(file=kwargs.get("file")):
            print(*args, **kwargs)

    def _finish(self, bar: tqdm) -> None:
        """An evaluation of its own is over: a log file gets its line."""
        if _is_log(bar):
            self._draw(bar)
        bar.close()
        self.reset_dataloader_idx_tracker()

    # ---- training --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Make the bar; a run that resumes within an epoch goes on where it was."""
        self.train_progress_bar = self.init_train_tqdm()
        if trainer.fit_loop.batches_done:
            self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Begin at zero."""
        if self._leave and self.is_enabled and self.train_progress_bar.disable:  # the last epoch's stays on the screen
            self.train_progress_bar = self.init_train_tqdm()
        self._step_values = self._step_means = None
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: Trainer) -> None:
        description = f"Epoch {epoch_in_work(trainer)}"
        self._begin(self.train_progress_bar, self.total_train_batches, description, trainer.fit_loop.batches_done)

    @looks_at_no_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch further."""
        if self.is_enabled:
            if self._keeps_means:
                self._note_step_values(trainer)
            self._move(self.train_progress_bar, batch_idx + 1, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Show the epoch's means."""
        bar = self.train_progress_bar
        if self.is_enabled:
            bar.n = trainer.fit_loop.batches_done
            if isinstance(bar, NotebookBar) and (values := results(trainer)):
                bar.add_row({"epoch": trainer.current_epoch + 1, **values})
            self._draw(bar, pl_module)
        if self._leave:
            bar.close()

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Leave the last bar as it is."""
        self.train_progress_bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LiteModule, exception: BaseException) -> None:
        """The traceback begins on a line of its own."""
        for bar in self.bars.values():
            bar.close()

    # ---- validation ------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A bar for the few batches."""
        self.val_progress_bar = self.init_sanity_tqdm()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """It goes away."""
        self.val_progress_bar.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A bar below the training's, or alone."""
        if not trainer.sanity_checking:
            self.val_progress_bar = self.init_validation_tqdm()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With each new loader, begin at zero."""
        if self.has_dataloader_changed(dataloader_idx):
            word = self.sanity_check_description if trainer.sanity_checking else self.validation_description
            total = self.total_val_batches_current_dataloader
            self._begin(self.val_progress_bar, total, f"{word} DataLoader {dataloader_idx}")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One batch further."""
        if self.is_enabled:
            self._move(self.val_progress_bar, batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Within a fit the training bar shows the new values."""
        if trainer.state.fn == "validate":
            self._finish(self.val_progress_bar)
            return
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if not trainer.sanity_checking and not _is_log(self.train_progress_bar):
            self._draw(self.train_progress_bar, pl_module)

    # ---- test and prediction ---------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Make the bar."""
        self.test_progress_bar = self.init_test_tqdm()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With each new loader, begin at zero."""
        if self.has_dataloader_changed(dataloader_idx):
            description = f"{self.test_description} DataLoader {dataloader_idx}"
            self._begin(self.test_progress_bar, self.total_test_batches_current_dataloader, description)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One batch further."""
        if self.is_enabled:
            self._move(self.test_progress_bar, batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Leave it as it is."""
        self._finish(self.test_progress_bar)

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Make the bar."""
        self.predict_progress_bar = self.init_predict_tqdm()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LiteModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With each new loader, begin at zero."""
        if self.has_dataloader_changed(dataloader_idx):
            description = f"{self.predict_description} DataLoader {dataloader_idx}"
            self._begin(self.predict_progress_bar, self.total_predict_batches_current_dataloader, description)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One batch further."""
        if self.is_enabled:
            self._move(self.predict_progress_bar, batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Leave it as it is."""
        self._finish(self.predict_progress_bar)


def _is_log(bar: tqdm) -> bool:
    """Whether the bar writes lines to a log file, and draws nothing."""
    return isinstance(bar, LogLines) and not isinstance(bar, NotebookBar)
