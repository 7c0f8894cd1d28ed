"""Validation (inside a fit or alone), test and prediction: one loop over one or several loaders.

When a fit validates is here too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.showing.screen import warn_of_unknown_monitors
from espnet3_lite.checks.error_notes import cannot_be_iterated_twice, loader_in_words
from espnet3_lite.checks.hooks import as_evaluated
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.distributed.vote import all_sound, batch_weight
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders import requests
from espnet3_lite.loaders.rank_loader import RankLoader
from espnet3_lite.loaders.transfer import loss_of
from espnet3_lite.optim import lr_stepping
from espnet3_lite.optim.slots import named_steps
from espnet3_lite.seed import collect_random_state, isolated_random_state, restore_random_state
from espnet3_lite.trainer.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


#: The evaluations: what their loaders and limits are named by, and their word in steps and hooks.
WORDS = {"val": "validation", "test": "test", "predict": "predict"}


class ValidationBrokenOff(Exception):
    """A signal ends a validation within a fit; it never leaves `validate_within_fit`."""


class EvaluationLoop:
    """Runs `validation_step`, `test_step` or `predict_step` over loaders.

    Args:
        trainer: Whose module, callbacks and metrics.
        prefix: ``val``, ``test`` or ``predict``.
    """

    #: What code written for Lightning asks `is_defined` of, to know whether a fit will validate. (Kept as an attribute,
    #: it would let the loop and its module wait for the garbage collector.)
    _data_source = property(lambda loop: loop)

    def __init__(self, trainer: Trainer, prefix: str):
        self.trainer, self.prefix, self.word = trainer, prefix, WORDS[prefix]
        self.given: Any = None
        self.loaders: list[RankLoader] = []
        #: What is appended to the names of what several loaders log.
        self.suffixes: list[str] = []
        self.num_batches: list[int | float] = []
        self.batches_done = 0  # of the loader that runs now
        self._loaded_in_epoch: int | float = 0
        self._modes: dict[torch.nn.Module, bool] = {}
        #: What `as_evaluated` has looked at last, and what it gave: signatures take longer to read than some batches.
        self._evaluated: tuple[tuple[object, ...], Any] = ((), None)
        #: How many batches of each loader all runs have seen: the loggers' axis for what is logged on steps.
        self._seen: Counter[int] = Counter()

    def setup(self) -> None:
        """Ask for the loaders, and count their batches."""
        trainer = self.trainer
        if getattr(trainer, f"limit_{self.prefix}_batches") == 0:
            self.given, self.loaders, self.num_batches = None, [], []
            return
        self.given = self._request()
        named = requests.named_loaders(self.given)
        for suffix, loader in named:
            requests.check_loader(loader, f"{self.prefix}_dataloader{suffix}")
        self._use([requests.prepare_loader(loader, trainer, False) for _, loader in named])
        for loader in filter(lambda loader: loader.length == 0, self.loaders):
            rank_zero_warn(f"the {self.word} loader gives no batch: {loader_in_words(loader.given)}")
        self.suffixes = [suffix for suffix, _ in named]
        # A sanity check's loaders do not count as the epoch's, where that epoch does not validate.
        counts = not trainer.sanity_checking or trainer.plan.validation.epoch_validates
        self._loaded_in_epoch = trainer.current_epoch if counts else -math.inf

    def _use(self, loaders: list[RankLoader]) -> None:
        """Count their batches by the limit as it is now. Only then are they in use: a refused one is asked for anew."""
        name = f"limit_{self.prefix}_batches"
        self.num_batches = [requests.limited(loader.length, getattr(self.trainer, name), name) for loader in loaders]
        self.loaders = loaders

    def _request(self) -> Any:
        """The user's loaders; with `overfit_batches` a fit validates on the batches that it trains on."""
        trainer = self.trainer
        if not (trainer.overfit_batches and trainer.state.fn == TrainerFn.FITTING):
            return requests.request_loaders(trainer, self.prefix)
        trainer.train_data.setup_if_due()
        rank_zero_warn("overfit_batches: validation takes the training's batches instead of its own loader's")
        return trainer.train_data.given

    def is_defined(self) -> bool:
        """There are loaders, given or the module's own."""
        return requests.has_loaders(self.trainer, self.prefix)

    def setup_if_due(self) -> None:
        """The first time, and by ``reload_dataloaders_every_n_epochs``."""
        every = self.trainer.reload_dataloaders_every_n_epochs
        if not self.loaders or (every and self.trainer.current_epoch - self._loaded_in_epoch >= every):
            self.setup()

    @property
    def limits(self) -> list[int | float]:
        """How many batches of each loader are taken now."""
        return self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.num_batches

    def run(self) -> list[Any] | None:
        """One pass over all loaders.

        Returns:
            For validation and test one dict of floats a loader (in a fit, none); for prediction the outputs.
        """
        trainer, module, metrics, word = self.trainer, self.trainer.lightning_module, self.trainer.metrics, self.word
        call, in_fit, sanity_check = trainer.call, trainer.state.fn == TrainerFn.FITTING, trainer.sanity_checking
        self._use(requests.as_set_now(self.loaders, trainer, False))
        if sum(self.limits) == 0:
            return None if self.prefix == "predict" else []
        if not in_fit:
            self._seen.clear()
        self._modes = {part: part.training for part in module.modules()}
        trainer.strategy.sync_buffers(module)
        metrics.start_evaluation()
        outputs: list[list[Any]] = []
        by_loader: list[dict[str, torch.Tensor]] = []
        inference_mode = trainer.inference_mode and trainer.strategy.inference_mode and not in_fit
        with torch.inference_mode() if inference_mode else torch.no_grad():
            getattr(module, f"on_{word}_model_eval")()
            call(f"on_{word}_start")
            call(f"on_{word}_epoch_start")
            self._use(self.loaders)  # these hooks may have set the limit
            limits = self.limits
            for index, loader in enumerate(self.loaders):
                if len(self.loaders) > 1:
                    metrics.dataloader_idx, metrics.loader_suffix = index, self.suffixes[index]
                outputs.append(self._run_loader(loader, index, limits[index]))
                if sanity_check and len(self.loaders) > 1:
                    metrics.forget()
                else:
                    by_loader.append(metrics.end_epoch())
            metrics.dataloader_idx, metrics.loader_suffix = None, ""
            trainer.strategy.free_gathered()  # first, since the next hooks may change the weights
            call(f"on_{word}_epoch_end")
            at_end = metrics.end_epoch(over=True)  # values that hooks logged outside of any loader
            if in_fit and not sanity_check and trainer.plan.automatic_optimization:
                with torch.enable_grad():
                    lr_stepping.step_waiting(trainer)
                    if trainer.fit_loop.is_last_batch:
                        lr_stepping.step_with_epoch(trainer, monitored=True)
            if self.prefix != "predict" and not sanity_check:
                trainer.log_metrics({name: value for values in (*by_loader, at_end) for name, value in values.items()})
            if in_fit and not sanity_check:
                trainer.fit_loop.after_validation()  # first, since the next hook may save a checkpoint
            call(f"on_{word}_end")
            metrics.active = metrics.training
            self.restore_training_mode() if self.prefix == "predict" else getattr(module, f"on_{word}_model_train")()
        if self.prefix == "predict":
            return outputs if len(outputs) > 1 else outputs[0]
        if in_fit:
            return []  # nobody reads the results, so nothing is read from the device
        return [{name: float(value) for name, value in {**values, **at_end}.items()} for values in by_loader]

    def _run_loader(self, loader: RankLoader, index: int, count: int | float) -> list[Any]:
        """The batches of one loader. What is the same for all of them is looked up before."""
        trainer, call, hooks = self.trainer, self.trainer.call, self.trainer.hook_calls.listeners
        metrics, transfer, module = trainer.metrics, trainer.plan.transfer, trainer.lightning_module
        step_hook, start, end = f"{self.word}_step", f"on_{self.word}_batch_start", f"on_{self.word}_batch_end"
        called = (getattr(module, step_hook), len(self.loaders), *hooks[start], *hooks[end])
        if called != self._evaluated[0]:
            self._evaluated = called, as_evaluated(module, self.word, len(self.loaders), hooks)
        step = trainer.precision_plugin.wrap(self._evaluated[1], cache=module.automatic_optimization)
        outputs: list[Any] = []
        finite: list[tuple[int, torch.Tensor]] = []
        sanity_check, several = trainer.sanity_checking, len(self.loaders) > 1
        # A signal breaks off a fit's validation between two batches. Several ranks wait for the next vote.
        signals, fitting = trainer.stopping.signals, trainer.state.fn == TrainerFn.FITTING
        breaks_off = fitting and not sanity_check and trainer.world_size == 1
        keep = self.prefix == "predict" and trainer.return_predictions
        self.batches_done = 0
        loader.set_epoch(trainer.current_epoch, limit=count, copy=trainer.plan.copy)
        if count == 0:
            return outputs
        batch_idx = -1
        for batch_idx, batch in enumerate(loader):
            if breaks_off and signals.received is not None:
                raise ValidationBrokenOff
            if transfer is not None:
                batch = transfer(batch, index)
            metrics.start_batch(batch)
            place = (batch, batch_idx, index) if several else (batch, batch_idx)
            replaying = loader.replaying  # with FSDP: our data are over, other ranks' are not
            if hooks[start] and not replaying:
                call(start, *place)
            metrics.hook = step_hook
            output = step(*place)
            if replaying:
                metrics.discard_since()
                continue
            if losses := _losses_of(output):
                flag = all_sound(losses, batch_weight(trainer), read=False)
                if flag is not True:  # a tensor on a device is not read before the loader's end
                    metrics.mask_batch(flag)
                    finite.append((batch_idx, torch.as_tensor(flag, device=losses[0].device)))
            self.batches_done += 1
            if hooks[end]:
                call(end, output, *place)
            if not sanity_check:
                if trainer.loggers and (values := metrics.step_values()):
                    trainer.log_metrics(values, step=self._seen[index])
                self._seen[index] += 1
            if keep:
                outputs.append(output)
        if batch_idx < 0 and loader.gave_batches:
            raise MisconfigurationException(f"{self.word}: {cannot_be_iterated_twice(loader.given)}")
        loader.gave_batches = loader.gave_batches or self.batches_done > 0
        _warn_about_left_out(trainer.strategy, finite, self.word)
        return outputs

    def abandon(self) -> None:
        """Leave an evaluation that was broken off."""
        self.restore_training_mode()
        self.trainer.metrics.forget_evaluation()

    def restore_training_mode(self) -> None:
        """Every submodule as it was: what the user had frozen stays in evaluation mode."""
        for part, training in self._modes.items():
            part.training = training
        self._modes.clear()


def _losses_of(output: Any) -> list[torch.Tensor]:
    """The losses among what a step returned; none where it returned something else."""
    if not isinstance(output, torch.Tensor):  # asked first: nearly always it is one
        if steps := named_steps(output.get("loss") if isinstance(output, Mapping) else output):
            return [step.loss for step in steps]
        output = loss_of(output)
    is_loss = isinstance(output, torch.Tensor) and output.numel() == 1 and output.is_floating_point()
    return [output] if is_loss else []


def _warn_about_left_out(strategy: Any, finite: list[tuple[int, torch.Tensor]], word: str) -> None:
    """One read from the device for the whole loader: which batches had a loss that is not finite, on which rank?"""
    flags = torch.stack([flag for _, flag in finite]).tolist() if finite else []
    bad = [str(batch_idx) for (batch_idx, _), good in zip(finite, flags, strict=True) if not good]
    by_rank = strategy.gather_objects(bad)  # collective: all ranks end a loader together
    for rank, batches in enumerate(by_rank):
        where = f" of rank {rank}" if len(by_rank) > 1 else ""
        if batches:
            rank_zero_warn(f"{word} batches {', '.join(batches)}{where} have a loss that is not finite, or a weight "
                           f"that is negative or not finite; they are left out of the means")  # fmt: skip


# ---- within a fit --------------------------------------------------------------------------------------------------


class ValidationIntervalError(MisconfigurationException, ValueError):
    """`val_check_interval` does not fit the data. It is a ValueError too, which is what Lightning raises."""


class ValidationSchedule:
    """After which training batches a fit validates.

    Args:
        trainer: Its settings decide: `limit_val_batches`, `val_check_interval`, `check_val_every_n_epoch`.

    Attributes:
        enabled: The fit validates at all: there are a `validation_step`, loaders, and a limit above 0.
        every_n_batches: Validate after so many training batches; infinity: with the epoch's last one.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.enabled = False
        self.every_n_batches: int | float = math.inf

    def prepare(self) -> None:
        """Find out whether this fit validates; warn where half of what that needs is there."""
        trainer, has_data = self.trainer, self.trainer.evaluation_loops["val"].is_defined()
        self.enabled = trainer.enable_validation and has_data
        if self.enabled or trainer.limit_val_batches == 0:
            return
        if has_data:
            rank_zero_warn("You passed in a `val_dataloader` but have no `validation_step`. Skipping val loop.")
        elif trainer.enable_validation:
            rank_zero_warn("You defined a `validation_step` but have no `val_dataloader`. Skipping val loop.")

    def count_batches(self) -> None:
        """Turn `val_check_interval` into a number of batches, now that their number in an epoch is known. An epoch
        begins: the settings count that stand now.

        Raises:
            ValidationIntervalError: it is larger than the epoch.
            MisconfigurationException: it is a fraction, of a number that is not known.
        """
        trainer, batches, interval = self.trainer, self.trainer.num_training_batches, self.trainer.val_check_interval
        self.enabled = trainer.enable_validation and trainer.evaluation_loops["val"].is_defined()
        if isinstance(interval, int):
            if interval > batches and trainer.check_val_every_n_epoch is not None and self.enabled:
                raise ValidationIntervalError(
                    f"`val_check_interval` ({interval}) must be less than or equal to the number of the training "
                    f"batches ({batches}). If you want to disable validation set `limit_val_batches` to 0.0 instead. "
                    f"If you want to validate based on the total training batches, set `check_val_every_n_epoch=None`."
                    f" {trainer.train_data.other_data()}".rstrip()
                )
        elif batches == math.inf and interval != 1.0:
            raise MisconfigurationException(
                "When using an IterableDataset for `train_dataloader`, `Trainer(val_check_interval)` must be `1.0` "
                "or an int. An int k specifies checking validation every k training batches."
            )
        else:
            interval = batches if batches == math.inf else max(1, int(batches * interval))
        self.every_n_batches = interval

    @property
    def epoch_validates(self) -> bool:
        """The epoch in work is one in which `check_val_every_n_epoch` and `limit_val_batches` allow validation."""
        trainer, every = self.trainer, self.trainer.check_val_every_n_epoch
        return trainer.limit_val_batches != 0 and (every is None or (trainer.current_epoch + 1) % every == 0)

    def is_due(self, batch_idx: int, is_last: bool) -> bool:
        """Whether to validate after this training batch.

        Args:
            batch_idx: Its index within the epoch.
            is_last: It is the epoch's last.
        """
        trainer, every_n_epochs = self.trainer, self.trainer.check_val_every_n_epoch
        batches = trainer.fit_loop.batches_seen if every_n_epochs is None else batch_idx + 1
        due = batches % self.every_n_batches == 0
        if is_last and (self.every_n_batches == math.inf or every_n_epochs is not None):
            # The number of batches is not known, or there are fewer than the loader said.
            due = due or batch_idx + 1 < self.every_n_batches
        due = due or (trainer.stopping.agreed and trainer.stopping.allowed)
        return due and self.enabled and self.epoch_validates  # this last, for mostly it is not asked


def validate_within_fit(trainer: Trainer) -> None:
    """A validation between two training batches. A signal breaks it off: the resumed run validates anew."""
    loop, fit_loop, metrics = trainer.evaluation_loops["val"], trainer.fit_loop, trainer.metrics
    trainer.state.stage = RunningStage.VALIDATING
    fit_loop.random_before_validation = before = collect_random_state(trainer.own_generators)
    loop.setup_if_due()
    published = metrics.published()
    try:
        loop.run()
        fit_loop.validation_ran = True
    except ValidationBrokenOff:
        loop.abandon()
        metrics.put_back(published)  # the resumed run goes through all of the loaders again
        restore_random_state(before, trainer.own_generators)
        trainer.stopping.agree(trainer.stopping.agreed, signal=True)
    trainer.state.stage = RunningStage.TRAINING


def sanity_check(trainer: Trainer) -> None:
    """A few validation batches before training, so that a mistake there shows now and not after an hour.

    Metrics and random state are put back: the training that follows does not notice.
    """
    loop = trainer.evaluation_loops["val"]
    trainer.state.stage = RunningStage.SANITY_CHECKING
    published = trainer.metrics.published()
    trainer.metrics.clear()
    trainer.call("on_sanity_check_start")
    with isolated_random_state(trainer.own_generators):
        loop.setup_if_due()
        loop.run()
    warn_of_unknown_monitors(trainer)
    trainer.call("on_sanity_check_end")
    trainer.metrics.clear()
    trainer.metrics.put_back(published)
    trainer.state.stage = RunningStage.TRAINING
