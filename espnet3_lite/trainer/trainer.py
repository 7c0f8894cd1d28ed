"""Settings and public state: ``Trainer(...).fit / validate / test / predict``. What happens in a fit is in `fit.py`.

`Trainer._run` is the frame of every call: set up, run, tear down. Properties that only tell are in `properties.py`,
what the loops ask in `hook_calls.py`, checks of the settings in `settings.py`.
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import torch

from espnet3_lite.callbacks.handler import CallbackHandler
from espnet3_lite.checkpoint import run_state
from espnet3_lite.distributed.launch import make_strategy, under_torchrun
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, StopTrainingError
from espnet3_lite.loaders.epochs import TrainData
from espnet3_lite.loops.evaluation import EvaluationLoop, sanity_check
from espnet3_lite.loops.fit import FitLoop
from espnet3_lite.metrics.collector import Metrics
from espnet3_lite.module.lite_module import LiteDataModule, LiteModule
from espnet3_lite.optim.precision import Precision
from espnet3_lite.trainer import defaults, setup
from espnet3_lite.trainer.hook_calls import TrainerServices
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.settings import check_settings, parse_duration, refuse_unknown
from espnet3_lite.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from espnet3_lite.trainer.stopping import SignalFlag
from espnet3_lite.trainer.trial_run import TrialRuns


class Trainer(TrainerServices, TrialRuns, TrainerProperties):
    """Trains a `LiteModule`.

    Args:
        accelerator: ``auto`` (a GPU where there is one), ``cpu`` or ``gpu``.
        devices: Processes per machine; torchrun decides, this is compared with it.
        num_nodes: Machines.
        strategy: ``auto`` (DDP under torchrun), ``ddp``, ``ddp_find_unused_parameters_true`` or ``fsdp``.
        precision: ``32-true``, ``64-true``, ``bf16-mixed`` or ``16-mixed``.
        logger: True: a `CSVLogger` in `default_root_dir`; False: none; a logger; a list of them.
        callbacks: One, or a list.
        max_epochs: Stop after this many; -1: no limit. 1000 where neither it nor `max_steps` nor `max_time` is given.
        min_epochs: Do not stop early before.
        max_steps: Stop after this many optimizer steps; -1: no limit.
        min_steps: Do not stop early before.
        max_time: Stop after this time: ``"DD:HH:MM:SS"``, a timedelta, or a dict of its arguments.
        limit_train_batches: Batches (int) or fraction (float) of each training epoch.
        limit_val_batches: The same for validation; 0 leaves it out.
        limit_test_batches: The same for `test`.
        limit_predict_batches: The same for `predict`.
        fast_dev_run: True or N: one batch (N) of everything, no logs, no checkpoints.
        overfit_batches: Train and validate on this many (or this fraction) of the same batches.
        val_check_interval: Validate after this many batches (int) or this fraction of an epoch.
        check_val_every_n_epoch: Validate in each n-th epoch; None: `val_check_interval` counts over epochs.
        num_sanity_val_steps: Validation batches to try out before training; -1: all.
        log_every_n_steps: Hand training metrics to the loggers on each n-th step; 0: never.
        enable_checkpointing: Add a `ModelCheckpoint` where there is none. Default True.
        enable_progress_bar: Add a `TQDMProgressBar` where there is none. Default True.
        enable_model_summary: Add a `ModelSummary` where there is none. Default True.
        accumulate_grad_batches: Batches that make one step.
        gradient_clip_val: Largest gradient norm (or value); None: no clipping.
        gradient_clip_algorithm: ``norm`` (default) or ``value``.
        deterministic: True: torch's deterministic algorithms; ``"warn"``: warn where there are none.
        benchmark: ``torch.backends.cudnn.benchmark``.
        inference_mode: `validate`, `test` and `predict` run in `torch.inference_mode` (else ``no_grad``).
        use_distributed_sampler: Under torchrun, share each loader's samples among the ranks.
        detect_anomaly: ``torch.autograd.set_detect_anomaly``; then a NaN raises instead of being skipped.
        reload_dataloaders_every_n_epochs: Ask for the loaders anew each n-th epoch; 0: never.
        default_root_dir: Where logs and checkpoints go by default; the current folder.
        profiler: Not supported; None.
        plugins: Not supported; None.
        check_grad_finite: Skip a step whose gradient is not finite, without clipping too.
        async_save: Sharded checkpoints are written in the background.
        auto_resume: `fit` without `ckpt_path` goes on from the newest intact checkpoint of its checkpoint callbacks.
        compile: True, or keyword arguments for ``torch.compile``: compile the training step's module.

    Raises:
        TypeError: an unknown argument, with the nearest known one.
        MisconfigurationException: a value that is not allowed; all of them in one message.

    Example:
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer.max_epochs
        1
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: Any = "auto",
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str | int | None = "32-true",
        logger: Any = None,
        callbacks: Any = None,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        fast_dev_run: bool | int = False,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        detect_anomaly: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike | None = None,
        profiler: None = None,
        plugins: None = None,
        check_grad_finite: bool = False,
        async_save: bool = False,
        auto_resume: bool = False,
        compile: bool | dict = False,
        **unknown: Any,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "unknown", "__class__")}
        refuse_unknown(unknown, list(settings))
        if_none = {
            "limit_train_batches": 1.0, "limit_val_batches": 1.0, "limit_test_batches": 1.0,
            "limit_predict_batches": 1.0, "val_check_interval": 1.0, "num_sanity_val_steps": 2, "log_every_n_steps": 50,
            "max_steps": -1, "accumulate_grad_batches": 1,
        }  # fmt: skip
        settings.update({name: default for name, default in if_none.items() if settings[name] is None})
        check_settings(settings)
        defaults.apply_fast_dev_run(settings)
        defaults.apply_overfit_batches(settings)
        for name in settings.keys() - {"strategy", "precision", "logger", "callbacks", "default_root_dir", "max_time"}:
            setattr(self, name, settings[name])
        self.max_epochs, self.min_epochs = defaults.epoch_limits(settings)
        self.max_time = parse_duration(max_time)
        self.default_root_dir = os.fspath(default_root_dir) if default_root_dir is not None else os.getcwd()

        self.precision = Precision("32-true" if precision is None else precision)
        self.strategy = make_strategy(strategy, accelerator)
        self.state = TrainerState()
        self.signals = SignalFlag()
        self.metrics = Metrics(self)
        self.fit_loop = FitLoop(self)
        self.train_data = TrainData(self)
        self.evaluation_loops = {prefix: EvaluationLoop(self, prefix) for prefix in ("val", "test", "predict")}
        self.should_stop = self._stop_was_agreed = False
        self.stopped_by_signal = False
        self.stop_error: StopTrainingError | None = None
        self.validation_ran = False
        self.ckpt_path: str | None = None
        self.datamodule: Any = None
        self.lightning_module: Any = None
        self.module_hooks: dict[str, Any] = {}
        self.hooks: dict[str, list] = {}
        self.slots: dict[Any, Any] = {}
        self.lr_scheduler_configs: list = []
        self.given_loaders: dict[str, Any] = {}
        self.return_predictions = True
        self.resumed_random_states: list | None = None
        #: A checkpoint that is saved within a validation has it run again: from here.
        self.random_before_validation: dict | None = None
        #: Where to write how a call ended (`ESPnetTrainer` sets it); None: nowhere.
        self.status_file: Any = None
        self.loggers = defaults.make_loggers(settings["logger"], self.default_root_dir)
        self.callback_handler = CallbackHandler(defaults.make_callbacks(self, settings))
        self.callback_handler.trainer = self
        self.prepare_hooks()
        defaults.set_backends(settings)
        self.callback_handler.call_event("on_init_end", self)

    # ---- what a user calls -----------------------------------------------------------------------------------------

    def fit(
        self,
        model: LiteModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LiteDataModule | None = None,
        ckpt_path: str | os.PathLike | None = None,
    ) -> None:
        """Train.

        Args:
            model: What to train.
            train_dataloaders: The training loader; by default the data module's or the model's.
            val_dataloaders: One validation loader or a list of them.
            datamodule: Provides the loaders instead.
            ckpt_path: Resume from this checkpoint: a path, ``"last"`` or ``"best"``.

        Raises:
            MisconfigurationException: the model or its settings contradict each other.
            SystemExit: a signal or Ctrl-C ended the run, after all was saved (128 plus the signal's number).
        """
        given = {"train": train_dataloaders, "val": val_dataloaders}
        self._run(TrainerFn.FITTING, model, given, datamodule, ckpt_path)

    def validate(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike | None = None,
        verbose: bool = True,
        datamodule: LiteDataModule | None = None,
    ) -> list[dict[str, float]]:
        """Run one validation.

        Args:
            model: What to validate; by default the module of the last call, with its best checkpoint's weights.
            dataloaders: One loader or a list of them.
            ckpt_path: Load these weights first: a path, ``"last"`` or ``"best"``.
            verbose: Print the results on rank zero.
            datamodule: Provides the loaders instead.

        Returns:
            One dict of the logged values a loader.
        """
        return self._run(TrainerFn.VALIDATING, model, {"val": dataloaders}, datamodule, ckpt_path, verbose)

    def test(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike | None = None,
        verbose: bool = True,
        datamodule: LiteDataModule | None = None,
    ) -> list[dict[str, float]]:
        """Run one test; as `validate`."""
        return self._run(TrainerFn.TESTING, model, {"test": dataloaders}, datamodule, ckpt_path, verbose)

    def predict(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        datamodule: LiteDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike | None = None,
    ) -> list[Any] | None:
        """Run `predict_step` over loaders.

        Args:
            model: As in `validate`.
            dataloaders: One loader or a list of them.
            datamodule: Provides the loaders instead.
            return_predictions: False: keep nothing (a callback writes them). Default True.
            ckpt_path: As in `validate`.

        Returns:
            The outputs of each batch; for several loaders a list of such lists.
        """
        self.return_predictions = return_predictions is not False
        outputs = self._run(TrainerFn.PREDICTING, model, {"predict": dataloaders}, datamodule, ckpt_path)
        return outputs if self.return_predictions else None

    def save_checkpoint(
        self, filepath: str | os.PathLike, weights_only: bool = False, storage_options: None = None
    ) -> None:
        """Save the state of this moment. All ranks call it; rank zero writes.

        Args:
            filepath: Where to.
            weights_only: Leave out optimizers, schedulers and callbacks.
            storage_options: Kept for Lightning's sake; must be None.

        Raises:
            AttributeError: no module has been attached yet.
        """
        if self.lightning_module is None:
            raise AttributeError("Saving a checkpoint is only possible if a model is attached to the Trainer; call fit "
                                 "(or validate, test, predict) first")  # fmt: skip
        self.strategy.save_checkpoint(run_state.dump_checkpoint(self, weights_only), filepath)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank zero, without breaking a progress bar."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            bar.print(*args, **kwargs) if bar is not None and bar.is_enabled else print(*args, **kwargs)

    # ---- the frame of every call -----------------------------------------------------------------------------------

    def _run(
        self, fn: TrainerFn, model: Any, given: dict[str, Any], datamodule: Any, ckpt_path: Any, verbose: bool = False
    ) -> Any:
        """Set up, run, tear down; the same for fit, validate, test and predict."""
        if isinstance(next(iter(given.values())), LiteDataModule):  # as the second positional argument
            given, datamodule = dict.fromkeys(given), next(iter(given.values()))
        if datamodule is not None and any(loader is not None for loader in given.values()):
            raise MisconfigurationException(f"Trainer.{fn}(): pass loaders or a datamodule, not both")
        setup.check_module(self.lightning_module if model is None else model)
        fitting = fn == TrainerFn.FITTING
        self.state = TrainerState(TrainerStatus.RUNNING, fn, RunningStage(fn.value if not fitting else "train"))
        self.should_stop = self.stopped_by_signal = self._stop_was_agreed = False
        self.stop_error, result = None, None
        try:
            checkpoint = setup.connect(self, model, given, datamodule, ckpt_path)
            self.signals.install(at_once=not fitting)
            try:
                self.call("on_fit_start") if fitting else None
                defaults.log_hyperparameters(self)
                if fitting:
                    if checkpoint is not None:
                        run_state.restore_training(self, checkpoint)
                        del checkpoint  # its tensors are in the model and optimizers now
                    defaults.write_status(self)
                    self._prepare_data()
                    with torch.autograd.set_detect_anomaly(self.detect_anomaly):
                        self.fit_loop.run()
                else:
                    loop = self.evaluation_loops[self.state.stage.dataloader_prefix]
                    loop.setup()
                    result = loop.run()
                    if verbose and self.is_global_zero:
                        defaults.print_results(result, loop.word)
            except StopTrainingError as error:  # before the training began, or in an evaluation of its own
                self.stop_by(error)
                self.call("on_stop_training_error")
                result = None if fitting else []
            self.call("on_fit_end") if fitting else None
            if self.datamodule is not None:
                self.datamodule.teardown(fn.value)
            self.call("teardown", fn.value)
            for logger in self.loggers:
                logger.finalize("success")
            self.strategy.barrier()  # all ranks: nobody has finished before all have
            self.state.status = TrainerStatus.INTERRUPTED if self.stopped_by_signal else TrainerStatus.FINISHED
        except BaseException as exception:
            reported = self.strategy.fail(exception)
            self._end_by(reported)
            if isinstance(exception, KeyboardInterrupt):
                raise SystemExit(128 + (self.signals.received or signal.SIGINT)) from exception
            if reported is not exception:
                raise reported from None  # another rank failed: its traceback, not that this one lost it
            raise
        finally:
            self.signals.uninstall()
            self.strategy.teardown()
            self.state.stage = None
        defaults.write_status(self)
        if self.stopped_by_signal:
            raise SystemExit(0 if under_torchrun() else 128 + (self.signals.received or 0))
        return result

    def _prepare_data(self) -> None:
        """Before a fit trains: try validation out, ask for the loaders, find out when to validate."""
        if self._validates_in_fit() and self.num_sanity_val_steps and not self.fit_loop.resumed_within_epoch:
            sanity_check(self)
        if self.limit_train_batches != 0:
            self.train_data.loader or self.train_data.setup()
            if self._validates_in_fit():
                self.evaluation_loops["val"].setup_if_due()
            setup.check_intervals(self)

    def _end_by(self, exception: BaseException) -> None:
        """Tell callbacks, loggers and everybody else that the call ends by an exception."""
        self.state.status = TrainerStatus.INTERRUPTED
        if isinstance(exception, KeyboardInterrupt):
            rank_zero_info("Detected KeyboardInterrupt, attempting graceful shutdown ...")
        self.call_callbacks("on_exception", exception)
        if self.datamodule is not None:
            self.datamodule.on_exception(exception)
        for logger in self.loggers:
            try:
                logger.finalize("failed")
            except Exception as error:  # what ended the run is what must be seen
                rank_zero_warn(f"{type(logger).__name__}.finalize failed too: {type(error).__name__}: {error}")
        if self.state.stage != RunningStage.TRAINING:
            self.evaluation_loops[self.state.stage.dataloader_prefix].abandon()
        defaults.write_status(self, exception)
