"""What can be asked of a trainer: its parts, and what they tell. How they are made and run is in `trainer.py`."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.early_stopping import EarlyStopping
from espnet3_lite.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.callbacks.run_history import AcceleratorStandIn, gather, run_config_of, run_history_of
from espnet3_lite.distributed.rank import local_rank, node_rank
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.module.data_module import is_overridden
from espnet3_lite.seed import Generator, generators_in
from espnet3_lite.trainer.settings import SETTINGS, Settings
from espnet3_lite.trainer.states import RunningStage

if TYPE_CHECKING:
    from espnet3_lite.callbacks.handler import CallbackHandler
    from espnet3_lite.distributed.single import Strategy
    from espnet3_lite.loaders.epochs import TrainData
    from espnet3_lite.loggers.base import Logger
    from espnet3_lite.loops.evaluation import EvaluationLoop
    from espnet3_lite.loops.fit import FitLoop
    from espnet3_lite.metrics.collector import Metrics
    from espnet3_lite.module.data_module import LiteDataModule
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.optim.precision import Precision
    from espnet3_lite.trainer.hook_calls import HookCalls
    from espnet3_lite.trainer.setup import RunPlan
    from espnet3_lite.trainer.states import TrainerState
    from espnet3_lite.trainer.stopping import Stopping

_Value = TypeVar("_Value")
_Kind = TypeVar("_Kind", bound=Callback)

if TYPE_CHECKING:

    class _Tells(Generic[_Value]):
        """A read-only property of a trainer, which has the type of what it tells."""

        def __init__(self, read: Callable[[TrainerProperties], _Value], doc: str) -> None: ...
        def __get__(self, trainer: object, owner: type) -> _Value: ...
        def __set__(self, trainer: object, value: NoReturn) -> None: ...

else:

    def _Tells(read, doc):
        """The same when it runs: a plain property."""
        return property(read, doc=doc)


def _in_stage(stage: RunningStage, doc: str) -> _Tells[bool]:
    return _Tells(lambda self: self.state.stage == stage, doc)


class TrainerProperties(Settings):
    """The parts of a `Trainer`, which `Trainer.__init__` makes, and its public state."""

    #: What the trainer is doing: method, stage, status.
    state: TrainerState
    #: `max_epochs` was given.
    epochs_given: bool
    #: What the present or last call has prepared.
    plan: RunPlan
    strategy: Strategy
    precision_plugin: Precision
    callback_handler: CallbackHandler
    hook_calls: HookCalls
    #: `hook_calls.call`: calls a hook of the callbacks and the module.
    call: Callable[..., Any]
    stopping: Stopping
    metrics: Metrics
    loggers: list[Logger]
    fit_loop: FitLoop
    #: By ``val``, ``test`` and ``predict``.
    evaluation_loops: dict[str, EvaluationLoop]
    train_data: TrainData
    #: The module of the present or last call; there is none before the first.
    lightning_module: LiteModule
    datamodule: LiteDataModule | None
    #: What the call was given, by ``train``, ``val``, ``test``, ``predict``.
    given_loaders: dict[str, Any]
    ckpt_path: str | None
    return_predictions: bool
    #: True where a module or data module (the second argument) really defines a method (the first).
    is_overridden = staticmethod(is_overridden)

    def __repr__(self) -> str:
        """The settings that differ from the defaults."""
        changed = {name: getattr(self, name) for name in SETTINGS.keys() - {"logger", "callbacks", "strategy"}}
        shown = sorted(f"{n}={v!r}" for n, v in changed.items() if v != SETTINGS[n].default and v is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    # ---- where we are ----------------------------------------------------------------------------------------------

    current_epoch = _Tells(lambda self: self.fit_loop.epoch, "The epoch in work, from 0; after a run, their number.")
    global_step = _Tells(lambda self: self.fit_loop.global_step, "Batches in which at least one optimizer stepped.")
    is_last_batch = _Tells(lambda self: self.fit_loop.is_last_batch, "The training batch in work is its epoch's last.")
    logging_step = _Tells(lambda self: self.fit_loop.batches_stepped, "The loggers' axis: batches that stepped before.")
    validation_ran = _Tells(lambda self: self.fit_loop.validation_ran, "A validation has run within this fit.")
    stopped_by_signal = _Tells(lambda self: self.stopping.by_signal, "A signal, on any rank, ends the run.")
    stop_error = _Tells(lambda self: self.stopping.error, "The `StopTrainingError` that ended the run, or None.")
    training = _in_stage(RunningStage.TRAINING, "A fit is training (not validating).")
    validating = _in_stage(RunningStage.VALIDATING, "A validation runs, within a fit or alone.")
    testing = _in_stage(RunningStage.TESTING, "A test runs.")
    predicting = _in_stage(RunningStage.PREDICTING, "A prediction runs.")
    sanity_checking = _in_stage(RunningStage.SANITY_CHECKING, "The first few validation batches are tried out.")
    interrupted = _Tells(lambda self: self.state.status == "interrupted", "A signal or an exception ended the call.")

    @property
    def evaluating(self) -> bool:
        """Validation, test or sanity check."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def should_log_step(self) -> bool:
        """True on each `log_every_n_steps`-th step, and where the run is about to stop (no `min_epochs` holds it)."""
        every, stopping = self.log_every_n_steps, self.stopping
        due = every > 0 and (self.fit_loop.batches_stepped + 1) % every == 0
        return due or (every > 0 and stopping.wanted and stopping.allowed)

    @property
    def should_stop(self) -> bool:
        """Somebody wants the run to end in order. Set it to True in any hook, on any rank."""
        return self.stopping.wanted

    @should_stop.setter
    def should_stop(self, wanted: bool) -> None:
        self.stopping.wanted = wanted

    # ---- which process ---------------------------------------------------------------------------------------------

    is_global_zero = _Tells(lambda self: self.strategy.global_rank == 0, "True on the process that writes and prints.")
    global_rank = _Tells(lambda self: self.strategy.global_rank, "This process's number over all machines.")
    local_rank = _Tells(lambda self: local_rank(), "This process's number on its machine.")
    node_rank = _Tells(lambda self: node_rank(), "The number of this process's machine.")
    world_size = _Tells(lambda self: self.strategy.world_size, "Processes that train together.")
    num_devices = _Tells(lambda self: max(1, self.world_size // self.num_nodes), "Processes on each machine.")
    device = _Tells(lambda self: self.strategy.root_device, "Where this process computes.")
    received_sigterm = _Tells(lambda self: self.stopping.signals.received == signal.SIGTERM, "SIGTERM has come.")
    device_ids = _Tells(
        lambda self: [self.strategy.root_device.index or 0], "This process's GPU by its number; [0] on a CPU."
    )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """What `torch.utils.data.DistributedSampler` is to be told."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def _accelerator_connector(self) -> SimpleNamespace:
        """Optuna's pruning callback, made for Lightning, asks it whether there are several processes."""
        return SimpleNamespace(is_distributed=self.world_size > 1)

    # ---- what runs -------------------------------------------------------------------------------------------------

    model = _Tells(lambda self: self.lightning_module, "The module; the same as `lightning_module`.")
    slots = _Tells(lambda self: self.plan.slots, "The optimizers with their windows, by name; a plain one's is None.")
    lr_scheduler_configs = _Tells(lambda self: self.plan.schedulers, "The schedulers, and when each steps.")
    automatic_optimization = _Tells(
        lambda self: self.plan.automatic_optimization, "The loop steps the optimizers; False: the module does."
    )

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they are called."""
        return self.callback_handler.callbacks

    @callbacks.setter
    def callbacks(self, callbacks: list[Callback]) -> None:
        self.callback_handler.callbacks = []
        self.callback_handler.add_callbacks(callbacks)

    def _of_type(self, kind: type[_Kind]) -> list[_Kind]:
        return [callback for callback in self.callbacks if isinstance(callback, kind)]

    def _first_of_type(self, kind: type[_Kind]) -> _Kind | None:
        return next(iter(self._of_type(kind)), None)

    checkpoint_callbacks = _Tells(lambda self: self._of_type(Checkpoint), "The callbacks that save checkpoints.")
    checkpoint_callback = _Tells(lambda self: self._first_of_type(Checkpoint), "The first of them, or None.")
    early_stopping_callbacks = _Tells(lambda self: self._of_type(EarlyStopping), "The `EarlyStopping` callbacks.")
    early_stopping_callback = _Tells(lambda self: self._first_of_type(EarlyStopping), "The first of them, or None.")
    progress_bar_callback = _Tells(lambda self: self._first_of_type(ProgressBar), "The progress bar, or None.")

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, in the order of the configuration."""
        return [slot.optimizer for slot in self.slots.values()]

    @optimizers.setter
    def optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        if len(optimizers) != len(self.slots):
            raise MisconfigurationException(
                f"trainer.optimizers: {len(optimizers)} are given, there are {len(self.slots)}; replace each by one"
            )
        for slot, optimizer in zip(self.slots.values(), optimizers, strict=True):
            slot.optimizer = optimizer

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
        directory = getattr(self.logger, "log_dir", None) or getattr(self.logger, "save_dir", None)
        return directory or self.default_root_dir

    _log_dir_of_rank_zero: str | None = None

    def agree_on_log_dir(self) -> None:
        """At the start of a call: let all ranks know where rank zero logs."""
        if self.world_size > 1:
            self._log_dir_of_rank_zero = None
            self._log_dir_of_rank_zero = self.strategy.broadcast(self.log_dir)  # collective: all ranks

    # ---- data ------------------------------------------------------------------------------------------------------

    # A loader as it was given, None before it was asked for; and its batches, infinity where it does not say.
    train_dataloader = _Tells(lambda self: self.train_data.given, "The training loader.")
    val_dataloaders = _Tells(lambda self: self.evaluation_loops["val"].given, "The validation loader or loaders.")
    test_dataloaders = _Tells(lambda self: self.evaluation_loops["test"].given, "The test loader or loaders.")
    predict_dataloaders = _Tells(lambda self: self.evaluation_loops["predict"].given, "The loaders of `predict`.")
    num_training_batches = _Tells(lambda self: self.train_data.num_batches, "Training batches an epoch, on this rank.")
    num_val_batches = _Tells(lambda self: self.evaluation_loops["val"].num_batches, "For each validation loader.")
    num_test_batches = _Tells(lambda self: self.evaluation_loops["test"].num_batches, "For each test loader.")
    num_predict_batches = _Tells(lambda self: self.evaluation_loops["predict"].num_batches, "For each of `predict`.")

    def provider_of(self, method: str) -> LiteDataModule | LiteModule | None:
        """Who defines a method that loads or moves data: the data module, else the module; None where nobody does."""
        owners = [owner for owner in (self.datamodule, self.lightning_module) if owner is not None]
        return next((owner for owner in owners if self.is_overridden(method, owner)), None)

    @property
    def own_generators(self) -> dict[str, Generator]:
        """The random generators that module, data module and loaders keep for themselves, by place."""
        loaders = {"train": self.train_data.given, "val": self.evaluation_loops["val"].given}
        owners = {"module": self.lightning_module, "datamodule": self.datamodule, "given": self.given_loaders}
        return generators_in({**owners, **loaders})

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader in the sanity check."""
        steps = math.inf if self.num_sanity_val_steps == -1 else self.num_sanity_val_steps
        return [min(steps, count) for count in self.num_val_batches]

    @property
    def evaluation_loop(self) -> EvaluationLoop:
        """The loop of the evaluation that is on."""
        assert self.state.stage is not None, "no call is running"
        return self.evaluation_loops[self.state.stage.dataloader_prefix]

    @property
    def enable_validation(self) -> bool:
        """A fit has validation: a step for it, and a limit above 0."""
        module = self.lightning_module
        return self.limit_val_batches != 0 and module is not None and self.is_overridden("validation_step", module)

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that this fit will make in all; for schedulers that must know. Asks for the training loader.

        With named optimizers: the batches that will step, as `global_step` counts them.
        """
        if self.max_epochs == -1:
            return math.inf if self.max_steps == -1 else self.max_steps
        if self.limit_train_batches != 0:
            self.train_data.setup_if_due()
        if self.num_training_batches == math.inf:
            return self.stopping.max_steps
        schedule = self._first_of_type(GradientAccumulationScheduler)
        window = schedule.get_accumulate_grad_batches if schedule else lambda epoch: self.accumulate_grad_batches
        total = sum(math.ceil(self.num_training_batches / window(epoch)) for epoch in range(max(self.max_epochs, 1)))
        return min(total, self.stopping.max_steps)

    # ---- values ----------------------------------------------------------------------------------------------------

    # By name; the values of the first two are ``()`` tensors.
    callback_metrics = _Tells(lambda self: self.metrics.callback, "The last value of a step, the mean of an epoch.")
    logged_metrics = _Tells(lambda self: self.metrics.logged, "What the loggers got or will get.")
    progress_bar_metrics = _Tells(lambda self: self.metrics.progress_bar, "What the progress bar shows, as numbers.")

    # ---- what pytorch-accelerated's callbacks ask for ---------------------------------------------------------------

    run_history = _Tells(run_history_of, "Each metric's values, one for each epoch, recorded from the first use on.")
    run_config = _Tells(run_config_of, "The settings by pytorch-accelerated's names. In a fit it asks for the loaders.")
    _accelerator = _Tells(lambda self: AcceleratorStandIn(self.strategy), "As much of Accelerate's object as they use.")

    def gather(self, tensor: Any) -> Any:
        """All ranks' tensors, joined along the first dimension, in the order of ranks. Collective: all ranks call it.

        Args:
            tensor: ``(batch, ...)`` or ``()``; or nested dicts, lists and tuples of tensors.

        Returns:
            ``(all ranks' batches, ...)``, of a ``()`` tensor ``(ranks,)``; with one process `tensor` as it is.

        Raises:
            RuntimeError: another rank was elsewhere: each sample is evaluated once, so the ranks' evaluations may
                differ by a batch. What every rank reaches is the evaluation's end.
        """
        return gather(self.strategy, tensor)

    def calculate_train_batch_loss(self, batch: Any) -> Any:
        """The training step of a batch: an override point for trainers that move over from pytorch-accelerated.

        Args:
            batch: On its device.

        Returns:
            What the module's `training_step` returned; a plain tensor as ``{"loss": tensor}``.
        """
        output = self.plan.module_step(batch, self.fit_loop.batches_done)
        return {"loss": output} if isinstance(output, torch.Tensor) else output
