"""Metrics, hyper-parameters and checkpoints for Weights & Biases, on its own package; needs the extra ``wandb``."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.distributed.rank import rank_zero_only, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers.base import as_dict, plain_values, rank_zero_experiment, with_prefix
from espnet3_lite.loggers.hosted import HostedLogger

if TYPE_CHECKING:
    import wandb

    from espnet3_lite.callbacks.model_checkpoint import ModelCheckpoint

#: The horizontal axis of everything that is logged with a step.
STEP = "trainer/global_step"


class WandbLogger(HostedLogger):
    """Logs to a run of wandb, with Lightning's arguments and names. The run begins with the first thing logged.

    As with Lightning, the run is not finished by the trainer: a script's end does it, or `wandb.finish`, which a
    program calls that trains several times. Only rank zero logs.

    Args:
        name: The run's name. Default: wandb makes one up.
        save_dir: Where wandb keeps its files. Default: the current folder.
        version: The run's id, to go on with it. Default: a new one.
        offline: Keep everything on disk; ``wandb sync`` sends it later. Default: False.
        dir: An older name of `save_dir`.
        id: An older name of `version`.
        anonymous: Let wandb log without an account. Default: None.
        project: The project's name. Default: ``WANDB_PROJECT`` in the environment, else ``"lightning_logs"``.
        log_model: Send checkpoints too: True those that are left at the end, ``"all"`` each one as it is saved.
        experiment: A run that `wandb.init` gave, to log to. Default: one is begun.
        prefix: Put before every metric's name, with a ``-`` between. Default: none.
        checkpoint_name: What checkpoints are called there. Default: ``"model-<id>"``.
        **kwargs: For `wandb.init`, such as `entity`, `group` and `tags`.

    Raises:
        ImportError: If wandb is not installed.
        MisconfigurationException: If checkpoints should be sent although the run is offline.

    Example::

        trainer = Trainer(logger=WandbLogger(project="digits", offline=True))
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | str = False,
        experiment: wandb.Run | None = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        **kwargs: Any,
    ):
        if importlib.util.find_spec("wandb") is None:
            raise ImportError(
                'WandbLogger needs wandb, which is not installed: pip install "espnet3_lite[wandb]"; or use CSVLogger, '
                "which needs nothing"
            )
        if offline and log_model:
            raise MisconfigurationException(
                f"WandbLogger(log_model={log_model!r}, offline=True): checkpoints cannot be sent from an offline run; "
                f"leave one of them out"
            )
        super().__init__(log_model, prefix)
        folder = save_dir if save_dir is not None else dir
        self._init = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": None if folder is None else os.path.expanduser(os.fspath(folder)),
            "id": version or id,
            "resume": "allow",
            **({"anonymous": "allow"} if anonymous else {}),
            **({"mode": "offline"} if offline else {}),
            **kwargs,
        }
        self._checkpoint_name, self._experiment = checkpoint_name, experiment

    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """wandb's run, for images, tables and whatever else it can do: ``experiment.log({...})``."""
        if self._experiment is None:
            import wandb

            if wandb.run is not None:
                rank_zero_warn(
                    "WandbLogger logs to the wandb run that is active. Call `wandb.finish()` first for a new one"
                )
                self._experiment = wandb.run
            else:
                if self._init["dir"] is not None:
                    os.makedirs(self._init["dir"], exist_ok=True)  # else wandb takes the system's temporary folder
                self._experiment = wandb.init(**self._init)
                self._experiment.define_metric(STEP)
                self._experiment.define_metric("*", step_metric=STEP, step_sync=True)
        return self._experiment

    @property
    def name(self) -> str | None:
        """The project's name, as with Lightning; the run's is ``experiment.name``."""
        return self._init["project"]

    @property
    def version(self) -> str | None:
        """The run's id; None before it has begun, if none was given."""
        return self._experiment.id if self._experiment is not None else self._init["id"]

    @property
    def save_dir(self) -> str | None:
        """Where wandb keeps its files."""
        return self._init["dir"]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add `metrics` to their curves, at `step` on the axis ``trainer/global_step``."""
        values = dict(with_prefix(metrics, self._prefix, self.LOGGER_JOIN_CHAR))
        self.experiment.log(values if step is None else {**values, STEP: step})

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | argparse.Namespace) -> None:
        """Put `params`, the hyper-parameters, into the run's ``config``."""
        self.experiment.config.update(plain_values(as_dict(params)), allow_val_change=True)

    def watch(
        self, model: torch.nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Log histograms of `model`'s gradients or parameters each `log_freq` steps.

        Args:
            model: The module to watch.
            log: ``gradients``, ``parameters``, ``all``, or None for the graph alone.
            log_freq: Steps between two histograms.
            log_graph: Log the model's graph, too.
        """
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table as `key` at `step`: `columns` and rows of `data`, or a `dataframe`."""
        import wandb

        self.log_metrics({key: wandb.Table(columns=columns, data=data, dataframe=dataframe)}, step)

    log_text = log_table

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Log `images`, tensors, arrays or files, as `key` at `step`. `kwargs`: a list each, such as `caption`."""
        self._log_media("Image", key, images, step, kwargs)

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Log `audios`, arrays or files, as `key` at `step`. `kwargs`: a list each, such as `sample_rate` in Hz."""
        self._log_media("Audio", key, audios, step, kwargs)

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Log `videos`, arrays or files, as `key` at `step`. `kwargs`: a list each, such as `fps`."""
        self._log_media("Video", key, videos, step, kwargs)

    @rank_zero_only
    def _log_media(
        self, kind: str, key: str, items: list[Any], step: int | None, arguments: Mapping[str, Sequence[Any]]
    ) -> None:
        for name, values in arguments.items():
            if len(values) != len(items):
                raise ValueError(f"WandbLogger: {len(items)} items for {key!r}, but {len(values)} values of {name!r}")
        import wandb

        each = [{name: values[index] for name, values in arguments.items()} for index in range(len(items))]
        make = getattr(wandb, kind)
        self.log_metrics({key: [make(item, **of_it) for item, of_it in zip(items, each, strict=True)]}, step)

    def send_checkpoint(self, callback: ModelCheckpoint, path: str) -> None:
        """Send `callback`'s checkpoint `path`, a file or a sharded checkpoint's folder, as an artifact of the run."""
        import wandb

        score = {callback.best_model_path: callback.best_model_score, **callback.best_k_models}.get(path)
        artifact = wandb.Artifact(
            name=self._checkpoint_name or f"model-{self.experiment.id}",
            type="model",
            metadata={
                "score": None if score is None else float(score),
                "original_filename": Path(path).name,
                type(callback).__name__: {"monitor": callback.monitor, "mode": callback.mode},
            },
        )
        add = artifact.add_dir if os.path.isdir(path) else artifact.add_file
        add(path, name="model.ckpt")
        aliases = ["latest", "best"] if path == callback.best_model_path else ["latest"]
        self.experiment.log_artifact(artifact, aliases=aliases)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """At the end of a run that went well, send the checkpoints that are left."""
        if status == "success" and self._experiment is not None:
            self.send_what_is_left()

    def log_home(self) -> dict[str, str]:
        """The project."""
        return {"project": self._init["project"]}

    def known_id(self) -> str | None:
        """The run's id; None before it has begun, if none was given."""
        return self.version

    def go_on_with(self, run_id: str | None) -> None:
        """Log to the run `run_id`, if none has begun and no other was asked for."""
        if self._experiment is None:
            self._init["id"] = self._init["id"] or run_id
