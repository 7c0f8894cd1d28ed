"""What pytorch-accelerated's callbacks expect of a trainer: `run_history`, `run_config`, `gather` and a few more.

Nothing of it runs, and nothing is recorded, until somebody asks: a `TrainerCallback` among the callbacks, or a look at
``trainer.run_history``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.exceptions import nearest
from espnet3_lite.loaders.transfer import loss_of, map_tensors

if TYPE_CHECKING:
    from espnet3_lite.distributed.single import Strategy
    from espnet3_lite.metrics.collector import Metrics
    from espnet3_lite.metrics.logged_value import Key, LoggedValue
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


class RunHistory:
    """``trainer.run_history``: each metric's values, one an epoch, in order.

    The trainer records ``train_loss_epoch`` and ``eval_loss_epoch`` (means over the epoch, weighted by batch size, over
    all ranks) and every value that is logged for an epoch, as numbers: from the start where a `TrainerCallback` is
    among the callbacks, else from the first look on. What `update_metric` is given can be monitored by any callback, as
    a logged value can.

    Attributes:
        current_epoch: The epoch in work, from 1.

    Example:
        >>> history = RunHistory()
        >>> history.update_metric("accuracy", 0.5)
        >>> history.update_metric("accuracy", 0.75)
        >>> history.get_latest_metric("accuracy"), history.get_metric_values("accuracy")
        (0.75, [0.5, 0.75])
    """

    def __init__(self, trainer: Trainer | None = None):
        self._trainer = trainer
        self._values: dict[str, list[Any]] = {}
        self.current_epoch = 1

    def update_metric(self, metric_name: str, metric_value: Any) -> None:
        """Add a value: a number, a tensor, or anything that you want to find again."""
        self._values.setdefault(metric_name, []).append(metric_value)
        if self._trainer is not None and _is_number(metric_value):
            self._trainer.metrics.publish(metric_name, metric_value)

    def record(self, name: str, value: float) -> None:
        """Add a value that was logged, and stands in ``trainer.callback_metrics`` already."""
        self._values.setdefault(name, []).append(value)

    def get_metric_names(self) -> set[str]:
        """The names of all metrics that have a value."""
        return set(self._values)

    def get_metric_values(self, metric_name: str) -> list[Any]:
        """All values of a metric, oldest first; none for a name that is not known."""
        return list(self._values.get(metric_name, ()))

    def items(self) -> Iterator[tuple[str, list[Any]]]:
        """Name and values of each metric."""
        return iter(self._values.items())

    def get_latest_metric(self, metric_name: str) -> Any:
        """The newest value.

        Raises:
            ValueError: the metric has none, with the nearest name that has.
        """
        if metric_name not in self._values:
            raise ValueError(
                f"No values have been recorded for the metric {metric_name}{nearest(metric_name, self._values)} "
                f"(recorded: {', '.join(sorted(self._values)) or 'nothing'})"
            )
        return self._values[metric_name][-1]

    def increment_epoch(self) -> None:
        """The next epoch begins."""
        self.current_epoch += 1

    def reset(self) -> None:
        """Forget all values; a fit that does not resume begins with this."""
        self._values.clear()
        self.current_epoch = 1


class RunHistoryRecorder(Callback):
    """Fills a `RunHistory`; added to the trainer's callbacks, ahead of all others, when somebody wants one.

    Args:
        history: What to fill.
    """

    place = -1  # every other callback finds the new values

    def __init__(self, history: RunHistory):
        self.history = history
        self._versions: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The numbers; other things that `update_metric` was given are not kept."""
        return {"values": {name: [float(v) for v in values if _is_number(v)] for name, values in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.history.reset()
        for name, values in state_dict["values"].items():
            for value in values:
                self.history.record(name, value)

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A run that begins anew has no history."""
        self._versions.clear()
        if trainer.ckpt_path is None:
            self.history.reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Epochs count from 1."""
        self.history.current_epoch = trainer.current_epoch + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The loss as the training step returned it: its share in an accumulation window is undone.

        None where it returned none, which manual optimization allows.
        """
        if (loss := _loss_of(outputs)) is not None:
            loss = loss * trainer.accumulate_grad_batches
            pl_module.log("train_loss_epoch", loss, on_step=False, on_epoch=True, logger=False)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The evaluation's loss, where the step returned one."""
        if (loss := _loss_of(outputs)) is not None:
            pl_module.log("eval_loss_epoch", loss, on_step=False, on_epoch=True, logger=False)

    on_test_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The training epoch's means."""
        self._record(trainer.metrics, trainer.metrics.training)

    def on_training_run_epoch_end(self, trainer: Trainer) -> None:
        """What the module's own `on_train_epoch_end` logged."""
        self._record(trainer.metrics, trainer.metrics.training)

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The evaluation's means."""
        if not trainer.sanity_checking:
            self._record(trainer.metrics, trainer.metrics.evaluation)

    on_test_end = on_validation_end

    def _record(self, metrics: Metrics, entries: dict[Key, LoggedValue]) -> None:
        """Every value that was logged for this epoch."""
        for name in dict.fromkeys(entry.epoch_name for entry in entries.values() if entry.on_epoch):
            version = metrics.versions.get(name)
            if version is not None and version != self._versions.get(name):
                self._versions[name] = version
                self.history.record(name, float(metrics.callback[name]))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """``trainer.run_config``: how the run is set up, by pytorch-accelerated's names. Also ``run_config["name"]``.

    Attributes:
        num_epochs: ``max_epochs``.
        train_per_device_batch_size: Of the training loader; None where it does not say.
        eval_per_device_batch_size: Of the first validation loader; None where there is none.
        gradient_accumulation_steps: ``accumulate_grad_batches``.
        gradient_clip_value: ``gradient_clip_val``.
        mixed_precision: ``precision``.
        num_processes: Processes that train together.
        is_distributed: More than one.
        is_local_process_zero: This is its machine's first process.
        is_world_process_zero: This is the first of all.
    """

    num_epochs: int
    train_per_device_batch_size: int | None
    eval_per_device_batch_size: int | None
    gradient_accumulation_steps: int
    gradient_clip_value: float | None
    mixed_precision: str
    num_processes: int
    is_distributed: bool
    is_local_process_zero: bool
    is_world_process_zero: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)

    def __getitem__(self, name: str) -> Any:
        settings = self.to_dict()
        if name not in settings:
            raise KeyError(f"run_config has no {name!r}{nearest(name, settings)}")
        return settings[name]


def run_history_of(trainer: Trainer) -> RunHistory:
    """The history of a trainer's run. Recording begins with the first look."""
    for callback in trainer.callbacks:
        if isinstance(callback, RunHistoryRecorder):
            return callback.history
    recorder = RunHistoryRecorder(RunHistory(trainer))
    trainer.callback_handler.add_callback(recorder)
    return recorder.history


def run_config_of(trainer: Trainer) -> RunConfig:
    """How a trainer's run is set up. In a fit it asks for the loaders."""
    validation = trainer.evaluation_loops["val"]
    if trainer.state.fn == "fit":
        trainer.train_data.setup_if_due()
        if not validation.loaders and trainer.plan.validation.enabled:
            validation.setup()
    return RunConfig(
        num_epochs=trainer.max_epochs,
        train_per_device_batch_size=_batch_size(trainer.train_dataloader),
        eval_per_device_batch_size=_batch_size(validation.loaders[0].given if validation.loaders else None),
        gradient_accumulation_steps=trainer.accumulate_grad_batches,
        gradient_clip_value=trainer.gradient_clip_val,
        mixed_precision=trainer.precision,
        num_processes=trainer.world_size,
        is_distributed=trainer.world_size > 1,
        is_local_process_zero=trainer.local_rank == 0,
        is_world_process_zero=trainer.is_global_zero,
    )


def gather(strategy: Strategy, tensors: Any) -> Any:
    """See `Trainer.gather`."""

    def join(tensor: torch.Tensor) -> torch.Tensor:
        parts = strategy.gather_objects(tensor.detach().cpu())  # collective: the ranks' batches may differ in size
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise RuntimeError(
                "trainer.gather was called on some ranks only. (Each sample is evaluated once, so one rank may have a "
                "batch less than another.) Collect on each rank, and gather when the evaluation is over: in "
                "on_eval_epoch_end"
            )
        return torch.cat([part if part.dim() else part.reshape(1) for part in parts]).to(tensor.device)

    return tensors if strategy.world_size == 1 else map_tensors(tensors, join)


class AcceleratorStandIn:
    """``trainer._accelerator``: as much of Accelerate's object as callbacks use."""

    def __init__(self, strategy: Strategy):
        self._strategy = strategy

    def wait_for_everyone(self) -> None:
        """Collective: all ranks call it."""
        self._strategy.barrier()


def _loss_of(outputs: Any) -> torch.Tensor | None:
    """The loss among what a step returned, if it is one number."""
    loss = loss_of(outputs)
    return loss if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _batch_size(loader: Any) -> int | None:
    return getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
