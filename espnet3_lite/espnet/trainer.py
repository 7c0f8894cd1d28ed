"""`ESPnetTrainer`: the trainer with ESPnet3's default callbacks, from the configuration's ``trainer:`` block."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from espnet3_lite.callbacks.average_checkpoints import AverageCheckpointsCallback
from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.lr_monitor import LearningRateMonitor
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.config import Config
from espnet3_lite.config.targets import instantiate
from espnet3_lite.distributed.rank import is_global_zero
from espnet3_lite.espnet.default_callbacks import get_default_callbacks
from espnet3_lite.espnet.folder_lock import locked
from espnet3_lite.espnet.run_folder import not_writable
from espnet3_lite.espnet.status_file import StatusFile
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.trainer.trainer import Trainer


class ESPnetTrainer:
    """A `Trainer` with ESPnet3's default callbacks, for an `ESPnetModule`.

    Args:
        model: What to train.
        exp_dir: Where checkpoints, averages and logs go.
        config: The ``trainer:`` block: arguments of `Trainer`; `callbacks` are appended to the default ones, `logger`
            may be a list of ``_target_`` entries. ``logger: false``, ``enable_progress_bar: false`` and
            ``enable_checkpointing: false`` leave out the default callbacks that would need them.
        best_model_criterion: ``[metric, how many, "min" or "max"]`` for each list of best checkpoints.

    Raises:
        MisconfigurationException: clipping in `config` for a model with several optimizers.
    """

    def __init__(
        self,
        model: LiteModule | None = None,
        exp_dir: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        best_model_criterion: Sequence[Sequence[Any]] | None = None,
    ):
        self.model = cast(LiteModule, model)  # what a call does with None is the trainer's to say
        self.exp_dir = Path(os.path.expanduser(exp_dir if exp_dir is not None else "exp"))
        self.config = config if isinstance(config, Config) else Config.create(dict(config or {}))
        given = self.config.to_container()
        settings = {name: value for name, value in given.items() if value is not None}
        if given.get("check_val_every_n_epoch", 1) is None and isinstance(settings.get("val_check_interval"), int):
            settings["check_val_every_n_epoch"] = None  # the one null with a meaning: count batches over epochs
        self._refuse_global_clipping(settings)
        if settings.pop("init", None) is not None:
            raise MisconfigurationException("trainer.init: `init` belongs to the top of the configuration")
        gan = settings.pop("gan", None)  # the module's
        if gan and gan.get("no_forward_run"):
            settings["enable_checkpointing"] = False  # there is nothing to keep
        criterion = [tuple(item) for item in best_model_criterion or [("valid/loss", 3, "min")]]
        callbacks = get_default_callbacks(self.exp_dir, settings.get("log_every_n_steps", 500), criterion)
        callbacks = [callback for callback in callbacks if _is_wanted(callback, settings)]
        more = settings.pop("callbacks", None) or []
        callbacks += [instantiate(c) for c in (more if isinstance(more, list) else [more])]
        callbacks.append(StatusFile(self.exp_dir / "status.json"))
        loggers = settings.pop("logger", None)
        if isinstance(loggers, (dict, list)):
            loggers = [
                entry if isinstance(entry, str) else instantiate(entry)
                for entry in (loggers if isinstance(loggers, list) else [loggers])
            ]
        if isinstance(settings.get("strategy"), dict):
            settings["strategy"] = instantiate(settings["strategy"])
        settings.setdefault("default_root_dir", str(self.exp_dir))
        #: The trainer itself.
        self.trainer = Trainer(callbacks=callbacks, logger=loggers, **settings)

    def _refuse_global_clipping(self, settings: dict[str, Any]) -> None:
        config = getattr(self.model, "config", None)
        if not isinstance(config, Config) or not config.get("optimizers"):
            return
        for name in ("gradient_clip_val", "gradient_clip_algorithm"):
            if settings.get(name) not in (None, 0, "norm"):
                raise MisconfigurationException(
                    f"trainer.{name}={settings[name]!r}: with several optimizers clipping is set for each of them, in "
                    f"optimizers.<name>.{name}"
                )
        for name in ("gradient_clip_val", "gradient_clip_algorithm"):
            settings.pop(name, None)  # 0 and the default say nothing

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """`Trainer.fit` of the model.

        Raises:
            MisconfigurationException: another run is at work in `exp_dir`.
        """
        if self.trainer.fast_dev_run:  # leaves nothing there
            self.trainer.fit(self.model, *args, **kwargs)
            return
        if is_global_zero():
            try:
                self.exp_dir.resolve().mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise not_writable(self.exp_dir, error) from error
        with locked(self.exp_dir):
            self.trainer.fit(self.model, *args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> list[dict[str, float]]:
        """`Trainer.validate` of the model."""
        return self.trainer.validate(self.model, *args, **kwargs)

    def collect_stats(self) -> None:
        """`ESPnetModule.collect_stats` of the model."""
        cast(Callable[[], None], self.model.collect_stats)()  # an ESPnetModule's


def _is_wanted(callback: Callback, settings: Mapping[str, Any]) -> bool:
    """False for a default callback that would need what the settings switch off."""
    unwanted: tuple[type, ...] = ()
    if settings.get("enable_checkpointing") is False:
        unwanted += (Checkpoint, AverageCheckpointsCallback)
    if settings.get("enable_progress_bar") is False:
        unwanted += (ProgressBar,)
    if settings.get("logger") in (False, []):
        unwanted += (LearningRateMonitor,)
    return not isinstance(callback, unwanted)
