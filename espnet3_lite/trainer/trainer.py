"""Settings and public state: ``Trainer(...).fit / validate / test / predict``. What happens in a fit is in `fit.py`.

`Trainer._run` is the frame of every call: set up, run, tear down. Properties that only tell are in `properties.py`,
what the loops ask in `hook_calls.py`, checks of the settings in `settings.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.handler import CallbackHandler
from espnet3_lite.checkpoint import run_state
from espnet3_lite.distributed.launch import make_strategy, under_torchrun
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, StopTrainingError
from espnet3_lite.loaders.epochs import TrainData
from espnet3_lite.loggers.base import Logger
from espnet3_lite.loops.evaluation import EvaluationLoop, sanity_check
from espnet3_lite.loops.fit import FitLoop
from espnet3_lite.metrics.collector import Metrics
from espnet3_lite.module.lite_module import LiteDataModule, LiteModule
from espnet3_lite.optim.precision import Precision
from espnet3_lite.trainer import defaults, outcome, setup
from espnet3_lite.trainer.hook_calls import TrainerServices
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.settings import documented, resolve
from espnet3_lite.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from espnet3_lite.trainer.stopping import SignalFlag
from espnet3_lite.trainer.trial_run import TrialRuns


@documented
class Trainer(TrainerServices, TrialRuns, TrainerProperties):
    """Trains a `LiteModule`.

    Args:
        {settings}

    Raises:
        TypeError: an unknown argument, with the nearest known one.
        MisconfigurationException: a value that is not allowed; all of them in one message. None is allowed
            everywhere and stands for the default.

    Example:
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer.max_epochs
        1
    """

    def __init__(
        self,
        *,
        accelerator: str | None = "auto",
        devices: int | str | Sequence[int] | None = "auto",
        num_nodes: int | None = 1,
        strategy: str | None = "auto",
        precision: str | int | None = "32-true",
        logger: Logger | Sequence[Logger] | bool | None = True,
        callbacks: Callback | Sequence[Callback] | None = None,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int | None = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, float] | None = None,
        limit_train_batches: int | float | None = 1.0,
        limit_val_batches: int | float | None = 1.0,
        limit_test_batches: int | float | None = 1.0,
        limit_predict_batches: int | float | None = 1.0,
        fast_dev_run: bool | int | None = False,
        overfit_batches: int | float | None = 0.0,
        val_check_interval: int | float | None = 1.0,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = 2,
        log_every_n_steps: int | None = 50,
        enable_checkpointing: bool | None = True,
        enable_progress_bar: bool | None = True,
        enable_model_summary: bool | None = True,
        accumulate_grad_batches: int | None = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool | None = True,
        use_distributed_sampler: bool | None = True,
        detect_anomaly: bool | None = False,
        reload_dataloaders_every_n_epochs: int | None = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        check_grad_finite: bool | None = False,
        async_save: bool | None = False,
        auto_resume: bool | None = False,
        compile: bool | dict[str, Any] | None = False,
        **unknown: Any,
    ):
        settings = resolve(locals(), unknown)
        for name in settings.keys() - {"strategy", "precision", "logger", "callbacks", "default_root_dir"}:
            setattr(self, name, settings[name])
        root = settings["default_root_dir"]
        self.default_root_dir = os.fspath(root) if root is not None else os.getcwd()
        self.precision_plugin = Precision(settings["precision"])
        self.precision = self.precision_plugin.name
        self.strategy = make_strategy(settings["strategy"], self.accelerator)
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
        self.lightning_module: LiteModule = None  # type: ignore[assignment]  # from the first call on
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
                outcome.log_hyperparameters(self)
                if fitting:
                    if checkpoint is not None:
                        run_state.restore_training(self, checkpoint)
                        del checkpoint  # its tensors are in the model and optimizers now
                    outcome.write_status(self)
                    self._prepare_data()
                    with torch.autograd.set_detect_anomaly(self.detect_anomaly):
                        self.fit_loop.run()
                else:
                    loop = self.evaluation_loops[self.state.stage.dataloader_prefix]
                    loop.setup()
                    result = loop.run()
                    if verbose and self.is_global_zero:
                        outcome.print_results(result, loop.word)
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
        outcome.write_status(self)
        if self.stopped_by_signal:
            raise SystemExit(0 if under_torchrun() else 128 + (self.signals.received or 0))
        return result

    def _prepare_data(self) -> None:
        """Before a fit trains: try validation out, ask for the loaders, find out when to validate."""
        if self._validates_in_fit() and self.num_sanity_val_steps and not self.fit_loop.resumed_within_epoch:
            sanity_check(self)
        if self.limit_train_batches != 0:
            if self.train_data.loader is None:
                self.train_data.setup()
            every = self.check_val_every_n_epoch
            if self._validates_in_fit() and (every is None or (self.current_epoch + 1) % every == 0):
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
        outcome.write_status(self, exception)
