"""Metrics for TensorBoard, on `torch.utils.tensorboard`; needs the extra `tensorboard`."""

import argparse
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.distributed.rank import is_global_zero, rank_zero_only, rank_zero_warn
from espnet3_lite.loggers.base import (
    HPARAMS_FILE,
    FolderLogger,
    SilentExperiment,
    as_dict,
    flattened,
    keeps_training,
    write_hyperparams,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(FolderLogger):
    """Writes event files and ``hparams.yaml`` to ``<save_dir>/<name>/version_N``, as Lightning's does.

    Look at them with ``tensorboard --logdir <save_dir>``. Only rank zero writes.

    Args:
        save_dir: The folder of all experiments; ``~`` and ``$VARIABLES`` are filled in.
        name: The experiment's folder in it; ``""`` or None for none. Default: ``"lightning_logs"``.
        version: N, or a string for a folder of that name. Default: one more than the highest there is.
        log_graph: Let `log_graph` draw the model. Default: False.
        default_hp_metric: Log ``hp_metric`` -1 with hyper-parameters that come without metrics, for
            TensorBoard shows no hyper-parameters without a metric. Default: True.
        prefix: Put before every metric's name, with a ``-`` between. Default: none.
        sub_dir: A folder below the version's. Default: none.
        **kwargs: For `torch.utils.tensorboard.SummaryWriter`, such as `max_queue` and `flush_secs`.

    Raises:
        ImportError: If tensorboard is not installed.

    >>> import tempfile
    >>> logger = TensorBoardLogger(tempfile.mkdtemp(), name="digits", sub_dir="train")
    >>> logger.log_metrics({"train/loss": 0.5}, step=0)
    >>> logger.finalize("success")
    >>> os.path.relpath(logger.log_dir, logger.save_dir)
    'digits/version_0/train'
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | Path | None = None,
        **kwargs: object,
    ):
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "TensorBoardLogger needs tensorboard, which is not installed: "
                'pip install "espnet3_lite[tensorboard]"; or use CSVLogger, which needs nothing'
            )
        super().__init__(os.path.expanduser(os.path.expandvars(os.fspath(save_dir))), name, version, prefix)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = kwargs
        self._last_step = -1
        self.hparams: dict[str, object] = {}

    @property
    def sub_dir(self) -> str | None:
        """The folder below the version's, if there is one."""
        return self._sub_dir

    @property
    def log_dir(self) -> str | None:
        """This run's folder. None on other ranks than zero, unless the version was given."""
        log_dir = super().log_dir
        return log_dir if log_dir is None or self.sub_dir is None else os.path.join(log_dir, self.sub_dir)

    @property
    def experiment(self) -> "SummaryWriter | SilentExperiment":
        """torch's `SummaryWriter`, for images, audio and histograms: ``experiment.add_image(...)``."""
        if self._experiment is None:
            if not is_global_zero():
                return SilentExperiment()
            from torch.utils.tensorboard import SummaryWriter

            self._experiment = SummaryWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    @keeps_training
    def log_metrics(self, metrics: dict[str, float | torch.Tensor | dict], step: int | None = None) -> None:
        """Add points to curves.

        Args:
            metrics: By name, a number, a tensor with one element, or a dict of these, which become several curves in
                one picture.
            step: The points' place on the horizontal axis.

        Raises:
            ValueError: If a value is of another type.
        """
        self._last_step = self._last_step if step is None else step
        for name, value in self._with_prefix(metrics).items():
            if isinstance(value, dict):
                self.experiment.add_scalars(name, value, step)
                continue
            try:
                number = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"metric {name!r} is {value!r}; TensorBoardLogger takes a number, a tensor of one element, "
                    "or a dict of these"
                ) from error
            self.experiment.add_scalar(name, number, step)

    @rank_zero_only
    @keeps_training
    def log_hyperparams(
        self,
        params: Mapping | argparse.Namespace | None,
        metrics: dict[str, float] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Record hyper-parameters for TensorBoard's HPARAMS page and for ``hparams.yaml``, which `save` writes.

        Args:
            params: The hyper-parameters by name. Nested names are joined as ``outer/inner``.
            metrics: Values to show beside the hyper-parameters, by name. A single number gets the name ``hp_metric``.
                Default: ``hp_metric`` with the value -1 if the logger was made with `default_hp_metric`, else none.
            step: The place of `metrics` on the horizontal axis.
        """
        self.hparams.update(as_dict(params))
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if metrics:
            from torch.utils.tensorboard.summary import hparams

            self.log_metrics(metrics, step)
            # Not SummaryWriter.add_hparams, which would open a folder of its own for them.
            file_writer = self.experiment._get_file_writer()
            for summary in hparams(flattened(as_dict(params)), dict(self._with_prefix(metrics))):
                file_writer.add_summary(summary, step)

    @rank_zero_only
    def log_graph(self, model: torch.nn.Module, input_array: torch.Tensor | tuple | None = None) -> None:
        """Draw the model, if the logger was made with ``log_graph=True``.

        Args:
            model: The module; traced once.
            input_array: A batch for its `forward`. Default: the model's `example_input_array`.
        """
        if not self._log_graph:
            return
        if input_array is None:
            input_array = getattr(model, "example_input_array", None)
        if not isinstance(input_array, (torch.Tensor, tuple)):
            rank_zero_warn(
                f"The model's graph is not logged: `example_input_array` is {type(input_array).__name__}; set "
                "it to a tensor or a tuple of `forward`'s arguments"
            )
            return
        self.experiment.add_graph(model, input_array)

    @rank_zero_only
    @keeps_training
    def save(self) -> None:
        """Write all points to disk, and ``hparams.yaml`` if it does not exist."""
        self.experiment.flush()
        assert self.log_dir is not None  # rank zero has found a version
        if not os.path.exists(os.path.join(self.log_dir, HPARAMS_FILE)):
            write_hyperparams(self.log_dir, self.hparams)

    def _position(self) -> dict[str, Any]:
        if self._experiment is not None:
            self.save()
        return {"last_step": self._last_step}

    def _go_on(self, state: dict[str, Any]) -> None:
        self._last_step = state["last_step"]
        # TensorBoard then forgets the points of later steps that the cut run wrote.
        self._kwargs = {**self._kwargs, "purge_step": self._last_step + 1}

    @rank_zero_only
    @keeps_training
    def finalize(self, status: str) -> None:
        """Write and close the event file. A logger that was never used makes no folder."""
        if self._experiment is not None:
            self.save()
            self._experiment.close()
