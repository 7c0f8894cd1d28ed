"""What can be read from a trainer: everything here is a property, nothing changes anything."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.distributed.rank import local_rank, node_rank
from espnet3_lite.exceptions import MisconfigurationException, StopTrainingError
from espnet3_lite.loops.evaluation import EvaluationLoop
from espnet3_lite.optim.slots import LRSchedulerConfig, OptimizerSlot
from espnet3_lite.trainer.parts import TrainerParts
from espnet3_lite.trainer.settings import SETTINGS, Settings
from espnet3_lite.trainer.states import RunningStage

if TYPE_CHECKING:
    from espnet3_lite.callbacks.early_stopping import EarlyStopping
    from espnet3_lite.loggers.base import Logger
    from espnet3_lite.module.lite_module import LiteModule

_Kind = TypeVar("_Kind", bound=Callback)


class TrainerProperties(TrainerParts, Settings):
    """The public state of a `Trainer`."""

    def __repr__(self) -> str:
        """The settings that differ from the defaults."""
        changed = {name: getattr(self, name) for name in SETTINGS.keys() - {"logger", "callbacks", "strategy"}}
        shown = sorted(f"{n}={v!r}" for n, v in changed.items() if v != SETTINGS[n].default and v is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    # ---- where we are ----------------------------------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        """The epoch in work, from 0; after a run the number of epochs that were trained."""
        return self.fit_loop.epoch

    @property
    def global_step(self) -> int:
        """Batches in which at least one optimizer stepped."""
        return self.fit_loop.global_step

    @property
    def is_last_batch(self) -> bool:
        """The training batch in work is its epoch's last."""
        return self.fit_loop.is_last_batch

    @property
    def logging_step(self) -> int:
        """The loggers' axis: batches that stepped before the one in work."""
        return self.fit_loop.batches_stepped

    @property
    def should_log_step(self) -> bool:
        """True on each `log_every_n_steps`-th step, and where the run is about to stop (no `min_epochs` holds it)."""
        every, stops = self.log_every_n_steps, self.should_stop and self.stopping.allowed
        return every > 0 and ((self.fit_loop.batches_stepped + 1) % every == 0 or stops)

    @property
    def should_stop(self) -> bool:
        """Somebody wants the run to end in order. Set it to True in any hook, on any rank."""
        return self.stopping.wanted

    @should_stop.setter
    def should_stop(self, wanted: bool) -> None:
        self.stopping.wanted = wanted

    @property
    def stopped_by_signal(self) -> bool:
        """A signal, on any rank, ends the run: it will be resumed."""
        return self.stopping.by_signal

    @property
    def stop_error(self) -> StopTrainingError | None:
        """The `StopTrainingError` that ended the run, or None."""
        return self.stopping.error

    @property
    def validation_ran(self) -> bool:
        """There has been a validation within a fit."""
        return self.fit_loop.validation_ran

    @property
    def training(self) -> bool:
        """A fit is training (not validating)."""
        return self.state.stage == RunningStage.TRAINING

    @property
    def validating(self) -> bool:
        """A validation is on, within a fit or alone."""
        return self.state.stage == RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """A test is on."""
        return self.state.stage == RunningStage.TESTING

    @property
    def predicting(self) -> bool:
        """A prediction is on."""
        return self.state.stage == RunningStage.PREDICTING

    @property
    def sanity_checking(self) -> bool:
        """The first few validation batches of a fit are tried out."""
        return self.state.stage == RunningStage.SANITY_CHECKING

    @property
    def evaluating(self) -> bool:
        """Validation, test or sanity check."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """The last call was ended by a signal, Ctrl-C or an exception."""
        return self.state.status == "interrupted"

    # ---- which process ---------------------------------------------------------------------------------------------

    @property
    def is_global_zero(self) -> bool:
        """True on the process that writes and prints."""
        return self.strategy.rank == 0

    @property
    def global_rank(self) -> int:
        """This process's number over all machines."""
        return self.strategy.rank

    @property
    def local_rank(self) -> int:
        """This process's number on its machine."""
        return local_rank()

    @property
    def node_rank(self) -> int:
        """This process's machine, by its number."""
        return node_rank()

    @property
    def device_ids(self) -> list[int]:
        """The number of this process's GPU; [0] on a CPU."""
        return [self.strategy.device.index or 0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """What `torch.utils.data.DistributedSampler` is to be told."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def received_sigterm(self) -> bool:
        """SIGTERM has come to this process since the call began."""
        return self.stopping.signals.received == signal.SIGTERM

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.strategy.world_size

    @property
    def num_devices(self) -> int:
        """Processes on each machine."""
        return max(1, self.strategy.world_size // self.num_nodes)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.strategy.device

    @property
    def _accelerator_connector(self) -> SimpleNamespace:
        """Optuna's pruning callback, made for Lightning, asks it whether there are several processes."""
        return SimpleNamespace(is_distributed=self.world_size > 1)

    # ---- what runs -------------------------------------------------------------------------------------------------

    @property
    def model(self) -> LiteModule:
        """The module; the same as `lightning_module`."""
        return self.lightning_module

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they are called."""
        return self.callback_handler.callbacks

    @callbacks.setter
    def callbacks(self, callbacks: list[Callback]) -> None:
        self.callback_handler.callbacks = []
        self.callback_handler.add_callbacks(callbacks)

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """The callbacks that save checkpoints."""
        return self._of_type(Checkpoint)

    def _of_type(self, kind: type[_Kind]) -> list[_Kind]:
        return [callback for callback in self.callbacks if isinstance(callback, kind)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of them, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """The `EarlyStopping` callbacks."""
        from espnet3_lite.callbacks.early_stopping import EarlyStopping

        return self._of_type(EarlyStopping)

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar, or None."""
        return next(iter(self._of_type(ProgressBar)), None)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, in the order of the configuration."""
        return [slot.optimizer for slot in self.slots.values()]

    @optimizers.setter
    def optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        if len(optimizers) != len(self.slots):
            raise MisconfigurationException(
                f"{len(optimizers)} optimizers for {len(self.slots)} slots; replace one by one"
            )
        for slot, optimizer in zip(self.slots.values(), optimizers, strict=True):
            slot.optimizer = optimizer

    @property
    def slots(self) -> dict[Any, OptimizerSlot]:
        """The optimizers with their windows, by name; one plain optimizer has the name None."""
        return self.plan.slots

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers, and when each steps."""
        return self.plan.schedulers

    @property
    def automatic_optimization(self) -> bool:
        """The loop steps the optimizers; False: the module does."""
        return self.plan.automatic_optimization

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger else []

    @property
    def log_dir(self) -> str | None:
        """Where rank zero's first logger writes, else `default_root_dir`. Other ranks know it once a call has begun."""
        if self._log_dir_of_rank_zero is not None:
            return self._log_dir_of_rank_zero
        directory = None
        if self.logger is not None:
            directory = getattr(self.logger, "log_dir", None) or getattr(self.logger, "save_dir", None)
        return directory or self.default_root_dir

    _log_dir_of_rank_zero: str | None = None

    def agree_on_log_dir(self) -> None:
        """At the start of a call: let all ranks know where rank zero logs."""
        if self.world_size > 1:
            self._log_dir_of_rank_zero = None
            self._log_dir_of_rank_zero = self.strategy.broadcast(self.log_dir)  # collective: all ranks

    # ---- data ------------------------------------------------------------------------------------------------------

    @property
    def train_dataloader(self) -> Any:
        """The training loader, as it was given; None before it was asked for."""
        return self.train_data.given

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader or loaders, as they were given; None before they were asked for."""
        return self.evaluation_loops["val"].given

    @property
    def test_dataloaders(self) -> Any:
        """The test loader or loaders."""
        return self.evaluation_loops["test"].given

    @property
    def predict_dataloaders(self) -> Any:
        """The loader or loaders of `predict`."""
        return self.evaluation_loops["predict"].given

    @property
    def evaluation_loop(self) -> EvaluationLoop:
        """The loop of the evaluation that is on."""
        assert self.state.stage is not None, "no call is running"
        return self.evaluation_loops[self.state.stage.dataloader_prefix]

    @property
    def num_training_batches(self) -> int | float:
        """Training batches an epoch, on this rank; infinity where the loader does not say."""
        return self.train_data.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader."""
        return self.evaluation_loops["val"].num_batches

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader in the sanity check."""
        steps = math.inf if self.num_sanity_val_steps == -1 else self.num_sanity_val_steps
        return [min(steps, count) for count in self.num_val_batches]

    @property
    def enable_validation(self) -> bool:
        """A fit has validation: a step for it, and a limit above 0."""
        module = self.lightning_module
        return self.limit_val_batches != 0 and module is not None and self.is_overridden("validation_step", module)

    @property
    def num_test_batches(self) -> list[int | float]:
        """Test batches of each loader."""
        return self.evaluation_loops["test"].num_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each loader of `predict`."""
        return self.evaluation_loops["predict"].num_batches

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that this fit will make in all; for schedulers that must know. Asks for the training loader.

        With named optimizers: the batches that will step, as `global_step` counts them.
        """
        if self.max_epochs == -1:
            return float("inf") if self.max_steps == -1 else self.max_steps
        if self.train_data.loader is None and self.limit_train_batches != 0:
            self.train_data.setup()
        if self.num_training_batches == math.inf:
            return self.max_steps if self.max_steps != -1 else math.inf
        from espnet3_lite.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler

        schedule = next(iter(self._of_type(GradientAccumulationScheduler)), None)
        window = schedule.get_accumulate_grad_batches if schedule else lambda epoch: self.accumulate_grad_batches
        total = sum(math.ceil(self.num_training_batches / window(epoch)) for epoch in range(max(self.max_epochs, 1)))
        return min(total, self.max_steps) if self.max_steps != -1 else total

    # ---- values ----------------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """What was logged, by name: the last value of a step, the mean of an epoch. Values are ``()`` tensors."""
        return self.metrics.callback

    @property
    def logged_metrics(self) -> dict[str, torch.Tensor]:
        """What the loggers got or will get."""
        return self.metrics.logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What the progress bar shows, as numbers."""
        return self.metrics.progress_bar
