"""Metrics as a table, hyper-parameters as YAML: the default log, which needs nothing but an editor.

(Not named `csv.py`, which a script started in this folder would take for Python's own module.)
"""

import argparse
import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from espnet3_lite.checkpoint.atomic_files import replacing
from espnet3_lite.distributed.rank import is_global_zero, rank_zero_only, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers.base import FolderLogger, SilentExperiment, as_dict, write_hyperparams


class CSVLogger(FolderLogger):
    """Writes ``<save_dir>/<name>/version_N/metrics.csv`` and ``hparams.yaml``, as Lightning's does.

    One row a call; the columns are all metrics so far and ``step``, in alphabetical order. Only rank zero
    writes. A run that was killed and goes on by itself goes on in the same file: each row is there once.

    Args:
        save_dir: The folder of all experiments.
        name: The experiment's folder in it; ``""`` or None for none. Default: ``"lightning_logs"``.
        version: N, or a string for a folder of that name. Default: one more than the highest there is. A
            `metrics.csv` that is there already is replaced, with a warning.
        prefix: Put before every metric's name, with a ``-`` between. Default: none.
        flush_logs_every_n_steps: Rows are written to disk when so many steps have passed, and on `save` and
            `finalize`. Default: 100.

    Raises:
        MisconfigurationException: If `flush_logs_every_n_steps` is below 1.

    >>> import tempfile
    >>> logger = CSVLogger(tempfile.mkdtemp(), name="digits")
    >>> logger.log_metrics({"train/loss": 0.5}, step=0)
    >>> logger.log_metrics({"valid/loss": 0.25}, step=1)
    >>> logger.finalize("success")
    >>> print(Path(logger.log_dir, "metrics.csv").read_text())
    step,train/loss,valid/loss
    0,0.5,
    1,,0.25
    <BLANKLINE>
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ):
        super().__init__(save_dir, name, version, prefix)
        if flush_logs_every_n_steps < 1:
            raise MisconfigurationException(
                f"CSVLogger(flush_logs_every_n_steps={flush_logs_every_n_steps}): must be at least 1"
            )
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._flushed_at = -1
        self._moved = False  # to another version than it began in, since that could not be written

    @property
    def experiment(self) -> "ExperimentWriter | SilentExperiment":
        """The writer of this run's files, whose folder is made when it is first asked for."""
        if self._experiment is None:
            if not is_global_zero():
                return SilentExperiment()
            assert self.log_dir is not None  # rank zero has found a version
            try:
                self._experiment = ExperimentWriter(str(self.log_dir))
            except OSError as error:
                self._move_on(error, held=[], hparams={})
        assert self._experiment is not None
        return self._experiment

    def _move_on(self, error: Exception, held: list[dict[str, object]], hparams: dict[str, object]) -> None:
        """The files cannot be written: go on in a new version, where that is possible. It never ends the run."""
        if not self._moved:
            self._moved = True
            before, version, self._version = self.log_dir, self._version, self._next_version()
            reason = f"{before}: the log cannot be written: {type(error).__name__}: {error}. Training goes on, "
            try:
                writer = ExperimentWriter(str(self.log_dir))
                writer.metrics, writer.rows_logged = held, len(held)
                if hparams:
                    writer.log_hparams(hparams)
                writer.save()
            except OSError as second:
                reason += f"{self.log_dir} cannot be written either: {second}. "
                if self._experiment is None:
                    self._experiment = SilentExperiment()
                    rank_zero_warn(f"{reason}This run writes no metrics.csv")
                else:
                    self._version = version
                    rank_zero_warn(f"{reason}Rows are kept, and tried again at each save")
            else:
                rank_zero_warn(f"{reason}and the log in {self.log_dir}")
                self._experiment = writer
        del held[:-_MOST_ROWS_HELD]  # the newest stay, for the case that the disk takes them again

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | torch.Tensor], step: int | None = None) -> None:
        """Add a row.

        Args:
            metrics: Numbers, or tensors of one element.
            step: The value of the column ``step``. Default: how many rows there were before.
        """
        writer = self.experiment
        if step is None:
            step = writer.rows_logged
        writer.log_metrics(self._with_prefix(metrics), step)
        # The first condition is Lightning's; the second holds where the steps that log never hit it.
        every = self._flush_logs_every_n_steps
        if (step + 1) % every == 0 or step - self._flushed_at >= every:
            self._flushed_at = step
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: Mapping | argparse.Namespace | None = None) -> None:
        """Write `params`, with those of earlier calls, to ``hparams.yaml``."""
        writer = self.experiment
        try:
            writer.log_hparams(as_dict(params))
        except OSError as error:
            self._move_on(error, writer.metrics, writer.hparams)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are held back to disk."""
        writer = self.experiment
        try:
            writer.save()
        except (OSError, ValueError, csv.Error) as error:  # the file may have been replaced by anything meanwhile
            self._move_on(error, writer.metrics, writer.hparams)

    def _position(self) -> dict[str, Any]:
        if self._experiment is not None:
            self.save()
        return {"rows": self._experiment.rows_logged if self._experiment is not None else 0}

    def _go_on(self, state: dict[str, Any]) -> None:
        assert self.log_dir is not None  # the version was given
        self._experiment = ExperimentWriter(self.log_dir, keep_rows=state["rows"])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are held back; a logger that was never used makes no folder."""
        if self._experiment is not None:
            self.save()


#: Rows that are kept in memory while the disk takes none.
_MOST_ROWS_HELD = 10_000


class ExperimentWriter:
    """Holds rows and writes them to one folder.

    Rows are appended; the file is written anew only when a metric comes that it has no column for, and then
    beside its name, so that a crash loses no row that was on disk.

    Args:
        log_dir: The folder, which is made.
        keep_rows: How many rows of a `metrics.csv` that is there already to go on after. Default None: it is replaced.
    """

    def __init__(self, log_dir: str, keep_rows: int | None = None):
        self.log_dir = log_dir
        self.metrics_file_path = os.path.join(log_dir, "metrics.csv")
        self.metrics: list[dict[str, object]] = []
        self.metrics_keys: list[str] = []
        self.hparams: dict[str, object] = {}
        self.rows_logged = 0
        os.makedirs(log_dir, exist_ok=True)
        if not os.access(log_dir, os.W_OK):
            raise PermissionError(f"{log_dir} is read-only")
        if not os.path.exists(self.metrics_file_path):
            return
        if keep_rows is not None:
            self._keep(keep_rows)
        else:
            rank_zero_warn(
                f"{self.metrics_file_path} exists and is replaced. To keep it, give CSVLogger another `version`, or "
                "none, for the next free number."
            )
            os.remove(self.metrics_file_path)

    def log_metrics(self, metrics: Mapping[str, object], step: int) -> None:
        """Hold a row back."""
        row = {
            name: _number(name, value) if isinstance(value, torch.Tensor) else value for name, value in metrics.items()
        }
        row["step"] = step
        self.metrics.append(row)
        self.rows_logged += 1

    def log_hparams(self, params: Mapping[str, object]) -> None:
        """Write ``hparams.yaml``."""
        self.hparams.update(params)
        write_hyperparams(self.log_dir, self.hparams)

    def save(self) -> None:
        """Write all rows that are held back."""
        if not self.metrics:
            return
        new_keys = set().union(*self.metrics).difference(self.metrics_keys)
        if new_keys or not os.path.exists(self.metrics_file_path):
            os.makedirs(self.log_dir, exist_ok=True)  # somebody may have removed it
            self._rewrite(sorted([*self.metrics_keys, *new_keys]))
        else:
            with open(self.metrics_file_path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        self.metrics = []

    def _keep(self, count: int) -> None:
        """Drop all rows but the first `count`, and columns that these have nothing in."""
        rows = self._rows_on_disk()[:count]
        if len(rows) < count:
            rank_zero_warn(f"{self.metrics_file_path} had {count} rows when the checkpoint was made, now {len(rows)}")
        self.rows_logged = len(rows)
        columns = sorted({name for row in rows for name, value in row.items() if value != ""})
        self._write(columns, [{name: row[name] for name in columns} for row in rows])

    def _rewrite(self, columns: list[str]) -> None:
        """Write all rows, those on disk and those held back, with new columns."""
        self._write(columns, [*self._rows_on_disk(), *self.metrics])

    def _rows_on_disk(self) -> list[dict[str, object]]:
        if not os.path.exists(self.metrics_file_path):
            return []
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(None in row or None in row.values() or "step" not in row for row in rows):
            raise ValueError(f"{self.metrics_file_path} is not a table that CSVLogger wrote")
        return rows

    def _write(self, columns: list[str], rows: list[dict[str, object]]) -> None:
        with replacing(Path(self.metrics_file_path)) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, columns)
                table.writeheader()
                table.writerows(rows)
        self.metrics_keys = columns


def _number(name: str, value: torch.Tensor) -> float:
    if value.numel() != 1:
        raise ValueError(
            f"metric {name!r} is a tensor of shape {tuple(value.shape)}; log one number, such as its mean()"
        )
    return value.item()
