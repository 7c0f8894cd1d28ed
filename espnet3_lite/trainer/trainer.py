"""``Trainer(...).fit / validate / test / predict``, and the frame of these calls. A fit's own loop is in `fit.py`.

`Trainer._run` is that frame. Properties that only tell are in `properties.py`; what a call prepares is in `setup.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.calling.default_callbacks import make_callbacks
from espnet3_lite.callbacks.calling.handler import CallbackHandler
from espnet3_lite.callbacks.calling.lightning_names import refuse_storage_options, warn_of_unread
from espnet3_lite.callbacks.showing.screen import print_results, told, warn_of_missing_processes
from espnet3_lite.checkpoint import files, run_state
from espnet3_lite.checks.calls import check_change
from espnet3_lite.checks.error_notes import explained
from espnet3_lite.checks.optimizers import as_many
from espnet3_lite.distributed.launch import make_strategy
from espnet3_lite.exceptions import MisconfigurationException, SearchIsOverError, StopTrainingError
from espnet3_lite.loaders.epochs import TrainData
from espnet3_lite.loggers.base import Logger, log_hyperparameters, tell
from espnet3_lite.loggers.named import make_loggers
from espnet3_lite.loops.evaluation import WORDS, EvaluationLoop, ValidationSchedule
from espnet3_lite.loops.fit import FitLoop
from espnet3_lite.loops.progress import EpochStage
from espnet3_lite.metrics.collector import Metrics
from espnet3_lite.module.data_module import LiteDataModule
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.optim.precision import Precision
from espnet3_lite.seed import set_backends
from espnet3_lite.trainer import setup
from espnet3_lite.trainer.checkpoint_choice import choose_checkpoint
from espnet3_lite.trainer.hook_calls import HookCalls
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.settings import AT_ANY_TIME, BETWEEN_CALLS, SETTINGS, resolve
from espnet3_lite.trainer.states import TrainerFn, TrainerState, TrainerStatus
from espnet3_lite.trainer.stopping import Stopping


class Trainer(TrainerProperties):
    """Trains a `LiteModule`. Its arguments are the settings: ``help(Trainer.__init__)``.

    Raises:
        TypeError: an unknown argument, with the nearest known one.
        MisconfigurationException: values that are not allowed, all in one message. None stands for the default.

    Example:
        >>> Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False).max_epochs
        1
    """

    def __post_init__(self, settings: dict[str, Any], epochs_given: bool) -> None:
        """The constructor (of `Settings`) has checked the arguments: make what a trainer is made of."""
        vars(self).update({name: settings[name] for name in settings.keys() - {"logger", "callbacks"}})
        self.epochs_given, self.precision_plugin = epochs_given, Precision(settings["precision"])
        warn_of_missing_processes(self.devices)
        strategy = make_strategy(settings["strategy"], self.accelerator, self.dist_timeout)
        folder = os.path.expanduser(settings["default_root_dir"] or os.getcwd())
        vars(self).update(strategy=strategy, precision=self.precision_plugin.name, default_root_dir=folder)
        #: What the trainer is doing: method, stage, status.
        self.state: TrainerState = TrainerState()
        self.stopping: Stopping = Stopping(self)
        #: The module of the present or last call; there is none before the first.
        self.lightning_module: LiteModule = None  # type: ignore[assignment]
        #: The data module of the last call that was given one, whose hooks are called; and the one whose data count.
        self.datamodule: LiteDataModule | None = None
        self.data_provider: LiteDataModule | None = None
        #: What the call was given, by ``train``, ``val``, ``test``, ``predict``.
        self.given_loaders: dict[str, Any] = {}
        self.return_predictions = True
        self.log_dir_of_rank_zero: str | None = None
        self.loggers: list[Logger] = settings["logger"]
        self.make_loops()
        self.callbacks = make_callbacks(settings, self.default_root_dir)
        set_backends(settings["deterministic"], settings["benchmark"])
        self.callback_handler.call_event("on_init_end", self)

    def make_loops(self) -> None:
        """What counts, logs and calls hooks, with nothing counted yet and nobody who listens."""
        self.metrics: Metrics = Metrics(self)
        self.callback_handler = CallbackHandler()
        self.hook_calls = HookCalls(self)
        #: Calls a hook of the callbacks and the module.
        self.call: Callable[..., Any] = self.hook_calls.call
        #: By ``val``, ``test`` and ``predict``.
        self.evaluation_loops: dict[str, EvaluationLoop] = {prefix: EvaluationLoop(self, prefix) for prefix in WORDS}
        self.fit_loop = FitLoop(self)
        self.train_data: TrainData = TrainData(self)
        self.plan = setup.RunPlan(self, ValidationSchedule(self))
        self.callback_handler.trainer = self

    # ---- what a user calls -----------------------------------------------------------------------------------------

    def fit(
        self,
        model: LiteModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LiteDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        override_optimizer: bool = False,
    ) -> None:
        """Train.

        Args:
            model: What to train.
            train_dataloaders: The training loader; by default the data module's or the model's.
            val_dataloaders: One validation loader, a list of loaders, or a dict whose keys name them.
            datamodule: Provides the loaders instead, also those of later calls with this module that are given none.
            ckpt_path: Resume from this checkpoint: a path, ``"last"`` or ``"best"``.
            weights_only: Lightning's argument. None or True; False would let a checkpoint run code, and is an error.
            override_optimizer: A run that resumes takes the optimizers' configured values (rate, weight decay, ...),
                and schedulers go on from the new rate. Default: the checkpoint's, which is told where they differ.

        Raises:
            MisconfigurationException: the model or its settings contradict each other.
            SystemExit: a signal or Ctrl-C ended the run, after all was saved. (In a notebook: KeyboardInterrupt.)
        """
        given = {"train": train_dataloaders, "val": val_dataloaders}
        with told(self):
            self._run(TrainerFn.FITTING, model, given, datamodule, ckpt_path, weights_only, override=override_optimizer)

    def validate(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LiteDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run one validation. Returns a list: for each loader a dict of the logged values, means over its batches.

        Args:
            model: What to validate; by default the module of the last call, with its best checkpoint's weights.
            dataloaders: One loader, a list of loaders, or a dict whose keys name them.
            ckpt_path: Load these weights first: a path, ``"last"`` or ``"best"``.
            verbose: Print the results on rank zero.
            datamodule: Provides the loaders instead.
            weights_only: As in `fit`.
        """
        given = {"val": dataloaders}
        with told(self):
            return self._run(TrainerFn.VALIDATING, model, given, datamodule, ckpt_path, weights_only, verbose)

    def test(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LiteDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run a test; `model`, `dataloaders`, `ckpt_path`, `verbose`, `datamodule`, `weights_only` as in `validate`."""
        given = {"test": dataloaders}
        with told(self):
            return self._run(TrainerFn.TESTING, model, given, datamodule, ckpt_path, weights_only, verbose)

    def predict(
        self,
        model: LiteModule | None = None,
        dataloaders: Any = None,
        datamodule: LiteDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Predict: `model`, `dataloaders`, `datamodule`, `ckpt_path` and `weights_only` as in `validate`.

        Args:
            return_predictions: False: keep nothing (a callback writes them). Default True: for each batch what
                `predict_step` returned, for several loaders a list of such lists.
        """
        self.return_predictions = return_predictions is not False
        outputs = self._run(TrainerFn.PREDICTING, model, {"predict": dataloaders}, datamodule, ckpt_path, weights_only)
        return outputs if self.return_predictions else None

    def save_checkpoint(self, filepath: str | Path, weights_only: bool = False, storage_options: None = None) -> None:
        """Save the state of this moment. All ranks call it; rank zero writes.

        Args:
            filepath: Where to.
            weights_only: Leave out optimizers, schedulers and callbacks.
            storage_options: Of a plugin of Lightning's, which writes the file; here there is none: None alone.

        Raises:
            AttributeError: no module has been attached yet.
        """
        refuse_storage_options(storage_options)
        if self.lightning_module is None:
            raise AttributeError("Saving a checkpoint is only possible if a model is attached to the Trainer; call fit "
                                 "(or validate, test, predict) first")  # fmt: skip
        self.strategy.begin_saving()  # collective: all ranks save together
        self.strategy.save_checkpoint(run_state.dump_checkpoint(self, weights_only), filepath)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank zero, without breaking a progress bar."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            bar.print(*args, **kwargs) if bar is not None and bar.is_enabled else print(*args, **kwargs)

    # ---- what callbacks and loops call ------------------------------------------------------------------------------

    def log_metrics(self, metrics: dict[str, Any], step: float | None = None, ago: int = 0) -> None:
        """Hand `metrics`, values by name, to the loggers as numbers: the one place where logging reads from the device.

        They stand at `step` on the loggers' axis; by default at the present step, or `ago` steps before it: an epoch's
        means stand at its last step.
        """
        if not metrics or not self.loggers:
            return
        self.metrics.logged.update(metrics)
        numbers = {name: float(value) for name, value in metrics.items()}
        if step is None and (step := numbers.pop("step", None)) is None:  # a logged "step" is the axis, as in Lightning
            numbers.setdefault("epoch", self.current_epoch)
            step = self.logging_step - ago
        for logger in self.loggers:
            logger.log_metrics(numbers, step=int(step))

    def tell_loggers(self, method: str, *args: Any) -> None:
        """Call a method of each logger that has it: a logger must have `log_metrics` and `log_hyperparams` alone."""
        for logger in self.loggers:
            tell(logger, method, *args)

    # --- what may be set, and what takes part -------------------------------------------------------------------------

    def _checked_change(self, name: str, value: Any) -> Any:
        """What an attribute becomes that is set: a setting is checked by the table's rule, None is its default.

        Raises:
            MisconfigurationException: it is too late for it, or the value is not allowed.
        """
        if name == "loggers":
            return make_loggers(value or False, self.default_root_dir)
        if name not in SETTINGS or isinstance(getattr(type(self), name, None), property):  # which checks for itself
            warn_of_unread(self, name)
            return value
        running, settable = self.state.stage is not None, AT_ANY_TIME | BETWEEN_CALLS
        if name not in settable or (running and name not in AT_ANY_TIME):
            made = f"the trainer is made. Set it there, on a new one: Trainer({name}=...)"
            when = "a call begins, and one is running. Set it before the call" if name in settable else made
            raise MisconfigurationException(f"trainer.{name} = {value!r}: it is read when {when}")
        others = {known: set_before for known, set_before in vars(self).items() if known in settable | {"max_time"}}
        value = resolve({**others, name: value})[name]
        if running and self.state.fn == TrainerFn.FITTING:
            check_change(self, name, value)
        return value

    @property
    def should_stop(self) -> bool:
        """Somebody wants the run to end in order. Set it to True in any hook, on any rank."""
        return self.stopping.wanted

    @should_stop.setter
    def should_stop(self, wanted: bool) -> None:
        self.stopping.want(wanted)

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they are called."""
        return self.callback_handler.callbacks

    @callbacks.setter
    def callbacks(self, callbacks: list[Callback]) -> None:
        self.callback_handler.replace_callbacks(callbacks)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, in order; what is set, as many, steps from now on in their places."""
        return [slot.optimizer for slot in self.plan.slots.values()]

    @optimizers.setter
    def optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        for slot, optimizer in as_many(self.plan.slots, optimizers):
            slot.optimizer = optimizer

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = logger  # type: ignore[assignment]  # made a list, as in the constructor

    @property
    def owners(self) -> list[LiteDataModule | LiteModule]:
        """Who brings hooks, loaders and hyperparameters: the data module, where there is one, and the module."""
        return [owner for owner in (self.datamodule, self.lightning_module) if owner is not None]

    def provider_of(self, method: str) -> LiteDataModule | LiteModule | None:
        """Who defines a method that loads or moves data: the data module, else the module; None where nobody does."""
        owners = (self.data_provider, self.lightning_module)
        return next((owner for owner in owners if owner is not None and self.is_overridden(method, owner)), None)

    def agree_on_log_dir(self) -> None:
        """At the start of a call: let all ranks know where rank zero logs."""
        self.log_dir_of_rank_zero = None
        if self.world_size > 1:
            self.log_dir_of_rank_zero = self.strategy.broadcast(self.log_dir)  # collective: all ranks

    # ---- the frame of every call -----------------------------------------------------------------------------------

    def _run(
        self, fn: TrainerFn, model: Any, given: dict[str, Any], datamodule: Any, ckpt_path: Any,
        weights_only: bool | None, verbose: bool = False, override: bool = False,
    ) -> Any:  # fmt: skip
        """Set up, run, tear down; the same for fit, validate, test and predict."""
        files.refuse_unsafe_files(f"Trainer.{fn}", weights_only)
        first, fitting = next(iter(given.values())), fn == TrainerFn.FITTING
        if isinstance(first, LiteDataModule):  # as the second positional argument
            given, datamodule = dict.fromkeys(given), first
        setup.check_data(datamodule)
        if (with_loaders := any(loader is not None for loader in given.values())) and datamodule is not None:
            raise MisconfigurationException(f"Trainer.{fn}(): pass loaders or a datamodule, not both")
        module = setup.check_module(self.lightning_module if model is None else model)
        self.state, lender = self.state.begin(fn), vars(module).get("_trainer")
        self.stopping.begin()
        signals, result = self.stopping.signals, None
        try:
            if datamodule is not None or with_loaders or module is not self.lightning_module:
                self.data_provider = datamodule  # else that of the call before goes on with its module
            self.datamodule = datamodule if datamodule is not None else self.datamodule
            self.lightning_module, self.given_loaders = module, given
            checkpoint = self._set_up(ckpt_path, model_given=model is not None)
            signals.install(at_once=not fitting)
            try:
                if fitting:
                    self.call("on_fit_start")
                log_hyperparameters(self)
                if fitting:
                    if checkpoint is not None:
                        run_state.restore_training(self, checkpoint, override)
                        del checkpoint  # its tensors are in the model and optimizers now
                    self.plan.prepare_loaders()
                    with torch.autograd.set_detect_anomaly(self.detect_anomaly):
                        self.fit_loop.run()
                else:
                    self.evaluation_loop.setup()
                    result = self.evaluation_loop.run()
                    if verbose and self.is_global_zero:
                        print_results(result or [], self.evaluation_loop.word)
            except StopTrainingError as error:  # before the training began, or in an evaluation of its own
                self.stopping.leave(error)
                self.call("on_stop_training_error")
                result = None if fitting else []
            self.strategy.saver.finish()
            if fitting and not isinstance(self.stopping.error, SearchIsOverError):
                self.call("on_fit_end")
            if self.datamodule is not None:
                self.datamodule.teardown(fn.value)
            self.call("teardown", fn.value)
            self.tell_loggers("finalize", "success")
            self.strategy.barrier("the call's end")  # all ranks: nobody has finished before all have
            self.state.status = TrainerStatus.INTERRUPTED if self.stopped_by_signal else TrainerStatus.FINISHED
        except BaseException as exception:
            reported = self.strategy.fail(explained(exception, self))
            self.stopping.end_by(reported)
            if isinstance(exception, KeyboardInterrupt):
                raise signals.ending() from exception
            if reported is not exception:
                raise reported from None  # another rank failed: its traceback, not that this one lost it
            raise
        finally:
            self._tear_down(module, lender)
        if self.stopped_by_signal:
            raise signals.ending(in_order=True)
        return result

    def _tear_down(self, module: LiteModule, lender: Trainer | None) -> None:
        """The end of a call, however it ended. The module goes back to a trainer in one of whose hooks it was lent."""
        if lender is not None and lender.state.stage is not None:
            module.trainer = lender
        self.stopping.signals.uninstall()
        for loader in sum((loop.loaders for loop in self.evaluation_loops.values()), [self.train_data.in_use]):
            loader.close()
        self.strategy.teardown()
        self.state.stage = None

    def _set_up(self, ckpt_path: Any, model_given: bool) -> dict[str, Any] | None:
        """Make the plan of a call. Returns the checkpoint that it starts from, if there is one."""
        self.strategy.begin_call(self)
        self.agree_on_log_dir()
        self._ckpt_path = choose_checkpoint(self, ckpt_path, model_given)
        if self.state.fn == TrainerFn.FITTING:
            self.fit_loop.stage = EpochStage.NOT_BEGUN
            self.train_data.loader, self.evaluation_loops["val"].loaders = None, []  # each fit asks for its own
        return setup.prepare(self)
