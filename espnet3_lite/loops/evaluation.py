"""Validation (inside a fit or alone), test and prediction: one loop over one or several loaders."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.distributed.single import demands, takes, taking
from espnet3_lite.distributed.vote import all_sound, batch_weight
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.rank_share import RankLoader
from espnet3_lite.loaders.requests import check_loader, limited, prepare_loader, request_loaders, several_loaders
from espnet3_lite.loaders.transfer import loss_of
from espnet3_lite.loaders.uneven_ranks import cannot_be_iterated_twice
from espnet3_lite.optim import lr_stepping
from espnet3_lite.optim.slots import named_steps
from espnet3_lite.seed import collect_random_state, isolated_random_state, restore_random_state
from espnet3_lite.trainer.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


_WORDS = {"val": "validation", "test": "test", "predict": "predict"}


class ValidationBrokenOff(Exception):
    """A signal ends a validation within a fit; it never leaves `validate_within_fit`."""


class EvaluationLoop:
    """Runs `validation_step`, `test_step` or `predict_step` over loaders.

    Args:
        trainer: Whose module, callbacks and metrics.
        prefix: ``val``, ``test`` or ``predict``.
    """

    def __init__(self, trainer: Trainer, prefix: str):
        self.trainer, self.prefix, self.word = trainer, prefix, _WORDS[prefix]
        self.given: Any = None
        self.loaders: list[RankLoader] = []
        #: The keys of a dict of several loaders; None where they are known by their number.
        self.names: list[str] | None = None
        self.num_batches: list[int | float] = []
        self.batches_done = 0  # of the loader that runs now
        self._loaded_in_epoch: int | float = 0
        self._modes: dict[torch.nn.Module, bool] = {}
        #: How many batches of each loader all runs have seen: the loggers' axis for what is logged on steps.
        self._seen: Counter[int] = Counter()

    def setup(self) -> None:
        """Ask for the loaders, and count their batches."""
        trainer = self.trainer
        limit = getattr(trainer, f"limit_{self.prefix}_batches")
        if limit == 0:
            self.given, self.loaders, self.num_batches = None, [], []
            return
        self.given = given = self._request()
        several = several_loaders(given)
        named = several if isinstance(several, dict) else dict(enumerate([given] if several is None else several))
        for key, loader in named.items():
            check_loader(loader, f"{self.prefix}_dataloader" + ("" if several is None else f"[{key!r}]"))
        loaders = [
            prepare_loader(loader, trainer.strategy, False, trainer.use_distributed_sampler)
            for loader in named.values()
        ]
        name = f"limit_{self.prefix}_batches"
        self.num_batches = [limited(loader.length, limit, name) for loader in loaders]
        self.names = list(map(str, several)) if isinstance(several, dict) else None
        self.loaders = loaders  # only once they were counted: a loader that was refused is asked for again
        # A sanity check's loaders do not count as the epoch's, where that epoch does not validate.
        counts = trainer.state.stage != RunningStage.SANITY_CHECKING or trainer.plan.validation.epoch_validates
        self._loaded_in_epoch = trainer.current_epoch if counts else -math.inf

    def _request(self) -> Any:
        """The user's loaders; with `overfit_batches` a fit validates on the batches that it trains on."""
        trainer = self.trainer
        if not (trainer.overfit_batches and trainer.state.fn == "fit"):
            return request_loaders(trainer, self.prefix)
        trainer.train_data.setup_if_due()
        rank_zero_warn("overfit_batches: validation takes the training's batches instead of its own loader's")
        return trainer.train_data.given

    def setup_if_due(self) -> None:
        """The first time, and by ``reload_dataloaders_every_n_epochs``."""
        every = self.trainer.reload_dataloaders_every_n_epochs
        if not self.loaders or (every and self.trainer.current_epoch - self._loaded_in_epoch >= every):
            self.setup()

    def run(self, num_batches: list[int | float] | None = None, end_of_epoch: bool = False) -> list[Any] | None:
        """One pass over all loaders.

        Args:
            num_batches: How many batches of each; all that the settings allow by default.
            end_of_epoch: This validation is the training epoch's last: monitored schedulers step before it ends.

        Returns:
            For validation and test one dict of floats a loader (in a fit, none); for prediction the outputs.
        """
        trainer, call, module, metrics = (
            self.trainer, self.trainer.call, self.trainer.lightning_module, self.trainer.metrics,
        )  # fmt: skip
        if sum(self.num_batches if num_batches is None else num_batches) == 0:
            return None if self.prefix == "predict" else []
        in_fit = trainer.state.fn == "fit"
        if not in_fit:
            self._seen.clear()
        word, outputs = self.word, []
        self._modes = {part: part.training for part in module.modules()}
        trainer.strategy.sync_buffers(module)
        metrics.start_evaluation()
        by_loader: list[dict[str, torch.Tensor]] = []
        inference_mode = trainer.inference_mode and trainer.strategy.inference_mode and not in_fit
        frozen = torch.inference_mode if inference_mode else torch.no_grad
        with frozen():
            getattr(module, f"on_{word}_model_eval")()
            call(f"on_{word}_start")
            num_batches = self.num_batches if num_batches is None else num_batches  # a callback may have changed it
            call(f"on_{word}_epoch_start")
            for index, loader in enumerate(self.loaders):
                metrics.dataloader_idx = index if len(self.loaders) > 1 else None
                metrics.loader_name = self.names[index] if self.names else None
                outputs.append(self._run_loader(loader, index, num_batches[index]))
                if trainer.sanity_checking and len(self.loaders) > 1:
                    metrics.forget_loader()
                else:
                    by_loader.append(metrics.end_epoch(metrics.evaluation))
            metrics.dataloader_idx = None
            call(f"on_{word}_epoch_end")
            at_end = metrics.end_epoch(metrics.evaluation, over=True)  # values that hooks logged outside of any loader
            logged = {name: value for values in (*by_loader, at_end) for name, value in values.items()}
            if in_fit and trainer.state.stage == RunningStage.VALIDATING and trainer.plan.automatic_optimization:
                with torch.enable_grad():
                    lr_stepping.step_waiting(trainer)
                    if end_of_epoch:
                        lr_stepping.step_with_epoch(trainer, monitored=True)
            if self.prefix != "predict" and trainer.state.stage != RunningStage.SANITY_CHECKING:
                trainer.log_metrics(logged)
            if in_fit and trainer.state.stage == RunningStage.VALIDATING:
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
        trainer, call, metrics, word = self.trainer, self.trainer.call, self.trainer.metrics, self.word
        step, precision = getattr(trainer.lightning_module, f"{word}_step"), trainer.precision_plugin
        if len(self.loaders) > 1 and not takes(step, "dataloader_idx", place=2):
            raise RuntimeError(
                f"there are {len(self.loaders)} loaders, but {type(trainer.lightning_module).__name__}.{word}_step "
                f"takes no `dataloader_idx`; write `def {word}_step(self, batch, batch_idx, dataloader_idx=0)`"
            )
        if len(self.loaders) == 1:
            self._refuse_demands()
        step = taking(step, ("batch", "batch_idx", "dataloader_idx")[: 3 if len(self.loaders) > 1 else 2])
        keep = self.prefix == "predict" and trainer.return_predictions
        outputs: list[Any] = []
        finite: list[tuple[int, torch.Tensor]] = []
        self.batches_done = 0
        loader.set_epoch(trainer.current_epoch)
        if count == 0:
            return outputs
        batch_idx = -1
        for batch_idx, batch in enumerate(itertools.islice(iter(loader), None if count == math.inf else int(count))):
            self._heed_signal()
            if trainer.plan.transfer is not None:
                batch = trainer.plan.transfer(batch, index)
            metrics.start_batch(batch)
            place = (batch, batch_idx, index) if len(self.loaders) > 1 else (batch, batch_idx)
            replaying = loader.replaying  # with FSDP: our data are over, other ranks' are not
            if not replaying:
                call(f"on_{word}_batch_start", *place)
            metrics.hook = f"{word}_step"
            with contextlib.nullcontext() if precision.plain else precision.forward_context():
                output = step(*place)
            if replaying:
                metrics.discard_since()
                continue
            if losses := _losses_of(output):
                flag = all_sound(losses, batch_weight(trainer), read=False)
                if flag is not True:  # a tensor on a device is not read before the loader's end
                    flag = torch.as_tensor(flag, device=losses[0].device)
                    metrics.mask_batch(flag)
                    finite.append((batch_idx, flag))
            self.batches_done += 1
            call(f"on_{word}_batch_end", output, *place)
            if not trainer.sanity_checking:
                if trainer.loggers and (values := metrics.step_values()):
                    trainer.log_metrics(values, step=self._seen[index])
                self._seen[index] += 1
            if keep:
                outputs.append(output)
        if batch_idx < 0 and loader.gave_batches:
            raise MisconfigurationException(f"{word}: {cannot_be_iterated_twice(loader.given)}")
        loader.gave_batches = loader.gave_batches or self.batches_done > 0
        _warn_about_left_out(trainer.strategy, finite, word)
        return outputs

    def _refuse_demands(self) -> None:
        """With one loader nobody is given its index.

        Raises:
            RuntimeError: the module's step or hook demands it.
        """
        module, word = self.trainer.lightning_module, self.word
        for name in (f"{word}_step", f"on_{word}_batch_start", f"on_{word}_batch_end"):
            if demands(getattr(module, name), "dataloader_idx"):
                raise RuntimeError(
                    f"there is one {word} loader, but {type(module).__name__}.{name} demands `dataloader_idx`. Remove "
                    f"the argument, or give it a default: `dataloader_idx=0`"
                )

    def _heed_signal(self) -> None:
        """Between two batches: a signal breaks off a fit's validation. Several ranks wait for the next vote."""
        trainer = self.trainer
        if trainer.stopping.signals.received is not None and trainer.state.stage == RunningStage.VALIDATING:
            if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
                raise ValidationBrokenOff

    def abandon(self) -> None:
        """Leave an evaluation that was broken off."""
        self.restore_training_mode()
        self.trainer.metrics.forget_evaluation()

    def restore_training_mode(self) -> None:
        """Every submodule as it was: what the user had frozen stays in evaluation mode."""
        for part, training in self._modes.items():
            part.training = training
        self._modes.clear()


def validate_within_fit(trainer: Trainer) -> None:
    """A validation between two training batches. A signal breaks it off: the resumed run validates anew."""
    loop, fit_loop, metrics = trainer.evaluation_loops["val"], trainer.fit_loop, trainer.metrics
    trainer.state.stage = RunningStage.VALIDATING
    fit_loop.random_before_validation = before = collect_random_state()
    loop.setup_if_due()
    published = metrics.published()
    try:
        loop.run(end_of_epoch=fit_loop.is_last_batch)
        fit_loop.validation_ran = True
    except ValidationBrokenOff:
        loop.abandon()
        metrics.put_back(published)  # the resumed run goes through all of the loaders again
        restore_random_state(before)
        trainer.stopping.by_signal = True
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
    with isolated_random_state():
        loop.setup_if_due()
        loop.run(trainer.num_sanity_val_batches)
    trainer.call("on_sanity_check_end")
    trainer.metrics.clear()
    trainer.metrics.put_back(published)
    trainer.state.stage = RunningStage.TRAINING


def _losses_of(output: Any) -> list[torch.Tensor]:
    """The losses among what a step returned; none where it returned something else."""
    if steps := named_steps(output.get("loss") if isinstance(output, Mapping) else output):
        return [step.loss for step in steps]
    loss = loss_of(output)
    return [loss] if isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.is_floating_point() else []


def _warn_about_left_out(strategy: Any, finite: list[tuple[int, torch.Tensor]], word: str) -> None:
    """One read from the device for the whole loader: which batches had a loss that is not finite, on which rank?"""
    flags = torch.stack([flag for _, flag in finite]).tolist() if finite else []
    bad = [str(batch_idx) for (batch_idx, _), good in zip(finite, flags, strict=True) if not good]
    by_rank = strategy.gather_objects(bad)  # collective: all ranks end a loader together
    for rank, batches in enumerate(by_rank):
        where = f" of rank {rank}" if len(by_rank) > 1 else ""
        if batches:
            rank_zero_warn(f"{word} batches {', '.join(batches)}{where} have a loss that is not finite, or a weight "
                           f"that is not or is negative; they are left out of the means")  # fmt: skip
