"""Metrics, hyper-parameters and checkpoints for MLflow, on its own package; needs the extra ``mlflow``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet3_lite.distributed.rank import rank_zero_only, rank_zero_warn
from espnet3_lite.loggers.base import as_dict, flattened, rank_zero_experiment, with_prefix
from espnet3_lite.loggers.hosted import HostedLogger

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint

#: MLflow takes no more parameters than this in one call, and no longer values.
_MOST_PARAMETERS, _LONGEST_VALUE = 100, 250


class MLFlowLogger(HostedLogger):
    """Logs to a run of MLflow, with Lightning's arguments and names. The run begins with the first thing logged.

    Only rank zero logs.

    Args:
        experiment_name: The experiment, which is made where there is none. Default: ``"lightning_logs"``.
        run_name: The run's name. Default: MLflow makes one up.
        tracking_uri: The server or database, such as ``"sqlite:///mlflow.db"``. Default: ``MLFLOW_TRACKING_URI`` in
            the environment, else a database ``mlflow.db`` in `save_dir` (MLflow 3 writes no plain files any more).
        tags: The run's tags, by name.
        save_dir: The folder of the default `tracking_uri` and of its files. Default: ``"./mlruns"``.
        log_model: Send checkpoints too: True those that are left at the end, ``"all"`` each one as it is saved.
        prefix: Put before every metric's name, with a ``-`` between. Default: none.
        artifact_location: Where a new experiment keeps its files. Default: MLflow decides.
        run_id: The id of a run to go on with. Default: a new run.
        synchronous: Wait for each call to MLflow. Default: None, as MLflow is set up.

    Raises:
        ImportError: If mlflow is not installed.

    Example::

        trainer = Trainer(logger=MLFlowLogger("digits", tracking_uri="sqlite:///mlflow.db"))
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: bool | str = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ):
        if importlib.util.find_spec("mlflow") is None:
            raise ImportError(
                'MLFlowLogger needs mlflow, which is not installed: pip install "espnet3_lite[mlflow]"; or use '
                "CSVLogger, which needs nothing"
            )
        super().__init__(log_model, prefix)
        folder = None if save_dir is None else os.path.expanduser(os.fspath(save_dir))
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        #: Where the data base and the files are, unless a `tracking_uri` says otherwise.
        self._folder = None if given or folder is None else Path(folder).absolute()
        self._tracking_uri = given or (None if self._folder is None else f"sqlite:///{self._folder}/mlflow.db")
        self._experiment_name, self._run_name = experiment_name, run_name
        self._tags, self._artifact_location = dict(tags or {}), artifact_location
        self._options: dict[str, Any] = {} if synchronous is None else {"synchronous": synchronous}
        self._run_id, self._experiment_id = run_id, None
        self._client: MlflowClient | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """MLflow's client, whose calls take ``run_id``: ``experiment.log_artifact(logger.run_id, path)``."""
        if self._client is None:
            from mlflow.tracking import MlflowClient

            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self._tracking_uri)
            self._begin_run(self._client)
        return self._client

    def _begin_run(self, client: MlflowClient) -> None:
        if self._run_id is not None:
            self._experiment_id = client.get_run(self._run_id).info.experiment_id
            return
        found = client.get_experiment_by_name(self._experiment_name)
        self._experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(
                self._experiment_name,
                artifact_location=self._artifact_location or (self._folder.as_uri() if self._folder else None),
            )
        )
        self._run_id = client.create_run(self._experiment_id, tags=self._tags, run_name=self._run_name).info.run_id

    @property
    def run_id(self) -> str | None:
        """The run's id, which begins with this question. None on other ranks than zero, unless it was given."""
        _ = self.experiment
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id; likewise."""
        _ = self.experiment
        return self._experiment_id

    @property
    def name(self) -> str | None:
        """The experiment's id, as with Lightning."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """The folder that MLflow writes to; None where it writes to none."""
        return None if self._folder is None else str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add `metrics` to their curves at `step`. What MLflow allows in no name becomes ``_``, with a warning."""
        from mlflow.entities import Metric

        now, points = int(time.time() * 1000), []
        for name, value in with_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR).items():
            allowed = re.sub(r"[^\w/. -]+", "_", name, flags=re.ASCII)
            if allowed != name:
                rank_zero_warn(
                    f"MLFlowLogger: {name!r} is logged as {allowed!r}: MLflow takes letters, digits and _/. -"
                )
            points.append(Metric(key=allowed, value=float(value), timestamp=now, step=step or 0))
        self.experiment.log_batch(run_id=self.run_id, metrics=points, **self._options)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | argparse.Namespace) -> None:
        """Record `params`; nested ones as ``outer/inner``, long ones cut at 250 characters."""
        from mlflow.entities import Param

        found = [
            Param(key=name, value=str(value)[:_LONGEST_VALUE]) for name, value in flattened(as_dict(params)).items()
        ]
        for start in range(0, len(found), _MOST_PARAMETERS):
            part = found[start : start + _MOST_PARAMETERS]
            self.experiment.log_batch(run_id=self.run_id, params=part, **self._options)

    def send_checkpoint(self, callback: ModelCheckpoint, path: str) -> None:
        """Send `callback`'s checkpoint `path`, a file or a sharded checkpoint's folder, to a folder of its name."""
        send = self.experiment.log_artifacts if os.path.isdir(path) else self.experiment.log_artifact
        send(self.run_id, path, f"model/checkpoints/{Path(path).stem}")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run; before, if all went well, send the checkpoints that are left."""
        if self._client is None:
            return
        if status == "success":
            self.send_what_is_left()
        self.experiment.set_terminated(self.run_id, {"success": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))

    def log_home(self) -> dict[str, str]:
        """The experiment, by its name."""
        return {"experiment": self._experiment_name}

    def known_id(self) -> str | None:
        """The run's id; None for one that has not begun."""
        return self._run_id

    def go_on_with(self, run_id: str | None) -> None:
        """Log to the run `run_id`, if none has begun and no other was asked for."""
        if self._client is None:
            self._run_id = self._run_id or run_id
