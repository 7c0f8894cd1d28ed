"""What can be asked of a trainer, beside its settings. Its parts are made in `trainer.py`, where it is run."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch

from espnet3_lite.callbacks.base import Callback, Checkpoint
from espnet3_lite.callbacks.calling import lightning_names
from espnet3_lite.callbacks.calling.run_history import AcceleratorStandIn, gather, run_config_of, run_history_of
from espnet3_lite.callbacks.early_stopping import EarlyStopping
from espnet3_lite.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from espnet3_lite.callbacks.progress_bar import ProgressBar
from espnet3_lite.distributed.rank import local_rank, node_rank
from espnet3_lite.module.data_module import is_overridden
from espnet3_lite.seed import generators_in
from espnet3_lite.trainer.settings import SETTINGS, Settings
from espnet3_lite.trainer.states import RunningStage

if TYPE_CHECKING:
    from espnet3_lite.loops.evaluation import EvaluationLoop
    from espnet3_lite.loops.fit import FitLoop
    from espnet3_lite.trainer.setup import RunPlan
    from espnet3_lite.trainer.trainer import Trainer

_Value = TypeVar("_Value")
_Kind = TypeVar("_Kind", bound=Callback)

if TYPE_CHECKING:

    class _Tells(Generic[_Value]):
        """A read-only property of a trainer, which has the type of what it tells."""

        def __init__(self, read: Callable[[Trainer], _Value], doc: str) -> None: ...
        def __get__(self, trainer: object, owner: type) -> _Value: ...
        def __set__(self, trainer: object, value: NoReturn) -> None: ...

else:

    def _Tells(read, doc):
        """The same when it runs: a plain property."""
        return property(read, doc=doc)


def _in_stage(stage: RunningStage, doc: str) -> _Tells[bool]:
    return _Tells(lambda self: self.state.stage == stage, doc)


def _of_type(trainer: Trainer, kind: type[_Kind]) -> list[_Kind]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


def _first_of_type(trainer: Trainer, kind: type[_Kind]) -> _Kind | None:
    return next(iter(_of_type(trainer, kind)), None)


def _evaluation_loop(trainer: Trainer) -> EvaluationLoop:
    assert trainer.state.stage is not None, "no call is running"
    return trainer.evaluation_loops[trainer.state.stage.dataloader_prefix]


def _should_log_step(trainer: Trainer) -> bool:
    every = trainer.log_every_n_steps
    return every > 0 and ((trainer.fit_loop.batches_stepped + 1) % every == 0 or trainer.stopping.wanted)


def _log_dir(trainer: Trainer) -> str | None:
    directory = trainer.log_dir_of_rank_zero or getattr(trainer.logger, "log_dir", None)
    return directory or getattr(trainer.logger, "save_dir", None) or trainer.default_root_dir


def _sampler_kwargs(trainer: Trainer) -> dict[str, int]:
    return {"num_replicas": trainer.world_size, "rank": trainer.global_rank}


def _own_parts(trainer: Trainer) -> dict[str, Any]:
    loaders = {"train": trainer.train_data.given, "val": trainer.evaluation_loops["val"].given}
    given = {name: one for name, one in trainer.given_loaders.items() if one is not loaders.get(name)}
    owners = {"module": trainer.lightning_module, "datamodule": trainer.datamodule, "given": given}
    return {**owners, **loaders, "optimizers": trainer.optimizers}


def _num_sanity_val_batches(trainer: Trainer) -> list[int | float]:
    steps = math.inf if trainer.num_sanity_val_steps == -1 else trainer.num_sanity_val_steps
    return [min(steps, count) for count in trainer.num_val_batches]


def _enable_validation(trainer: Trainer) -> bool:
    module = trainer.lightning_module
    return trainer.limit_val_batches != 0 and module is not None and trainer.is_overridden("validation_step", module)


def _estimated_stepping_batches(trainer: Trainer) -> int | float:
    if trainer.max_epochs == -1:
        return math.inf if trainer.max_steps == -1 else trainer.max_steps
    if trainer.limit_train_batches != 0:
        trainer.train_data.setup_if_due()
    if trainer.num_training_batches == math.inf:
        return trainer.stopping.max_steps
    schedule = _first_of_type(trainer, GradientAccumulationScheduler)
    window = schedule.get_accumulate_grad_batches if schedule else lambda epoch: trainer.accumulate_grad_batches
    total = sum(math.ceil(trainer.num_training_batches / window(epoch)) for epoch in range(max(trainer.max_epochs, 1)))
    return min(total, trainer.stopping.max_steps)


@lightning_names.tells_inner_parts("trainer")
class TrainerProperties(Settings):
    """What a trainer tells: where it is, in which process, what runs, its data and values."""

    #: What the present or last call has prepared.
    plan: RunPlan
    fit_loop: FitLoop
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
    evaluating = _Tells(lambda self: bool(self.state.stage and self.state.stage.evaluating), "In a validation or test.")
    interrupted = _Tells(lambda self: self.state.status == "interrupted", "A signal or an exception ended the call.")
    should_log_step = _Tells(_should_log_step, "True on each `log_every_n_steps`-th step, and once a stop is wanted.")

    # ---- which process ---------------------------------------------------------------------------------------------

    is_global_zero = _Tells(lambda self: self.strategy.global_rank == 0, "True on the process that writes and prints.")
    global_rank = _Tells(lambda self: self.strategy.global_rank, "This process's number over all machines.")
    local_rank = _Tells(lambda self: local_rank(), "This process's number on its machine.")
    node_rank = _Tells(lambda self: node_rank(), "The number of this process's machine.")
    world_size = _Tells(lambda self: self.strategy.world_size, "Processes that train together.")
    num_devices = _Tells(lambda self: max(1, self.world_size // self.num_nodes), "Processes on each machine.")
    device = _Tells(lambda self: self.strategy.root_device, "Where this process computes.")
    received_sigterm = _Tells(lambda self: self.stopping.signals.received == signal.SIGTERM, "SIGTERM has come.")
    device_ids = _Tells(lambda self: [self.device.index or 0], "This process's GPU by its number; [0] on a CPU.")
    distributed_sampler_kwargs = _Tells(_sampler_kwargs, "What `torch.utils.data.DistributedSampler` is to be told.")
    # Optuna's pruning callback, made for Lightning, asks it.
    _accelerator_connector = _Tells(lightning_names.accelerator_connector_of, "Of the ranks.")
    _logger_connector = _Tells(lightning_names.LoggerConnector, "For NeMo, which sets the loggers by it.")

    # ---- what runs -------------------------------------------------------------------------------------------------

    model = _Tells(lambda self: self.lightning_module, "The module; the same as `lightning_module`.")
    lr_scheduler_configs = _Tells(lambda self: self.plan.schedulers, "The schedulers, and when each steps.")

    #: What the present or last call started from. A path that is set is what calls start from that name none.
    ckpt_path = property(lightning_names.ckpt_path_of, lightning_names.set_ckpt_path)
    checkpoint_callbacks = _Tells(lambda self: _of_type(self, Checkpoint), "The callbacks that save checkpoints.")
    checkpoint_callback = _Tells(lambda self: _first_of_type(self, Checkpoint), "The first of them, or None.")
    early_stopping_callbacks = _Tells(lambda self: _of_type(self, EarlyStopping), "The `EarlyStopping` callbacks.")
    early_stopping_callback = _Tells(lambda self: _first_of_type(self, EarlyStopping), "The first of them, or None.")
    enable_validation = _Tells(_enable_validation, "A fit has validation: a step for it, and a limit above 0.")
    evaluation_loop = _Tells(_evaluation_loop, "The loop of the evaluation that is on.")
    log_dir = _Tells(_log_dir, "Where rank zero's first logger writes, else `default_root_dir`; known in a call.")
    progress_bar_callback = _Tells(lambda self: _first_of_type(self, ProgressBar), "The progress bar, or None.")

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
    num_sanity_val_batches = _Tells(_num_sanity_val_batches, "Of each validation loader in the sanity check.")
    own_parts = _Tells(_own_parts, "What may keep generators: module, data module, loaders and optimizers, by name.")
    own_generators = _Tells(lambda self: generators_in(self.own_parts), "The generators that they keep, by place.")
    # With named optimizers: the batches that will step, as `global_step` counts them.
    estimated_stepping_batches = _Tells(_estimated_stepping_batches, "Steps of a whole fit. Asks for its loader.")

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
