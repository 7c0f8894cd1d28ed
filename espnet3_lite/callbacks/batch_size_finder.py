"""`BatchSizeFinder`: the largest batch size that fits into memory, found by trying. Trials are `trials/`'s."""

from __future__ import annotations

import gc
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.trials.trial_run import Trial
from espnet3_lite.callbacks.trials.tuned_attribute import TunedAttribute
from espnet3_lite.distributed.rank import rank_zero_info, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.requests import request_loaders
from espnet3_lite.seed import isolated_random_state

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


#: How torch, CUDA and cuDNN say that memory is short, in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cudnn_status_not_supported", "cublas_status_alloc_failed")


def _count_samples(trainer: Trainer) -> int | None:
    """Samples in the data set of the loader that the call is about; None where it does not say."""
    prefix = trainer.evaluation_loop.prefix if trainer.state.fn != "fit" else "train"
    data = getattr(request_loaders(trainer, prefix), "dataset", None)
    return len(data) if isinstance(data, Sized) else None


def _renew_loaders(trainer: Trainer, before_training: bool) -> None:
    """Ask for the loaders anew; `before_training` also make optimizers and schedulers, which may know lengths."""
    validation = trainer.evaluation_loops["val"]
    if trainer.state.fn != "fit":
        trainer.evaluation_loop.setup()
    elif trainer.train_data.loader is not None:
        trainer.train_data.setup()
        if validation.loaders:
            validation.setup()
        if before_training:
            trainer.plan.plan_training()
        trainer.plan.check_intervals()


class BatchSizeFinder(Callback):
    """Looks for the largest batch size before a run begins, and sets it.

    Trains (or evaluates) a few steps with growing batches, until memory is short, the data set is one batch, or a limit
    is reached. The trials run on a copy of the module, without callbacks and loggers, and random states are put back: a
    run goes on as one that was given the found size. A resumed run keeps the size of the first one.

    The model or data module provides the loaders, and builds them from an attribute of its own or an entry of its
    ``hparams``, which is changed wherever it stands. Call `scale_batch_size` from a hook of your own to search at
    another moment.

    Args:
        mode: ``power``: double the size while it fits. ``binsearch``: then close in on the limit, and leave a margin.
        steps_per_trial: Optimizer steps (or evaluation batches) of a trial.
        init_val: Where to begin; where the data set is no larger than the present size, that is tried instead.
        max_trials: At most so many trials that fit.
        batch_arg_name: Name of the attribute or hyperparameter.
        margin: For ``binsearch``: by which share the found size is reduced.
        max_val: The largest size to try.

    Raises:
        ValueError: an unknown mode, or a margin beyond 0 and 1.
        MisconfigurationException: several processes, loaders that were given to the call, several evaluation loaders,
            no such attribute, or no size that fits.

    Example:
        >>> finder = BatchSizeFinder(mode="binsearch", init_val=16)
        >>> finder.optimal_batch_size  # until a run has begun
        16
    """

    SUPPORTED_MODES = ("power", "binsearch")

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ):
        if mode.lower() not in self.SUPPORTED_MODES:
            raise ValueError(f"`mode` should be either of {self.SUPPORTED_MODES}, got {mode!r}")
        if not 0.0 <= margin < 1.0:
            raise ValueError(f"`margin` should be between 0 and 1, got {margin!r}")
        #: What was found; `init_val` before a search.
        self.optimal_batch_size: int | None = init_val
        self._mode, self._steps_per_trial, self._init_val = mode.lower(), steps_per_trial, init_val
        self._max_trials, self._batch_arg_name = max_trials, batch_arg_name
        self._margin, self._max_val = margin, max_val
        self._found = False

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Check that there is something to change, and loaders that follow it."""
        self._found = False
        if trainer.world_size > 1:
            raise MisconfigurationException(
                "The Batch size finder is not supported with distributed strategies: search with one process"
            )
        if any(loader is not None for loader in trainer.given_loaders.values()):
            raise MisconfigurationException(
                f"The Batch size finder cannot be used with dataloaders passed directly to `.{stage}()`. Please "
                f"disable the feature or incorporate the dataloader into your LiteModule or LiteDataModule."
            )
        name, size = self._batch_arg_name, self._size(trainer, pl_module)
        if not size.holders:
            raise MisconfigurationException(
                f"Field {name} not found in `model`, `datamodule`, nor their `hparams` attributes{size.hint}"
            )
        if hasattr(pl_module, name) and name in pl_module.hparams:
            rank_zero_warn(
                f"Field `model.{name}` and `model.hparams.{name}` are mutually exclusive! `model.{name}` will be used "
                f"as the initial batch size for scaling. If this is not the intended behavior, please remove either "
                f"one."
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """A resumed run keeps its size; set here, before the optimizers may ask how many batches there are."""
        if (state := checkpoint["callbacks"].get(self.state_key)) is not None:
            self._size(trainer, pl_module).set(state["optimal_batch_size"])

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search before the training."""
        if not self._found:
            self.scale_batch_size(trainer, pl_module, before_training=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search before a validation of its own."""
        if trainer.state.fn == "validate":
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search before a test."""
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search before a prediction."""
        self.scale_batch_size(trainer, pl_module)

    # ---- the search ------------------------------------------------------------------------------------------------

    def scale_batch_size(self, trainer: Trainer, pl_module: LiteModule, before_training: bool = False) -> None:
        """Search, set what was found, and let the trainer ask for its loaders anew.

        Args:
            trainer: In a fit or an evaluation.
            pl_module: Its module.
            before_training: The optimizers are made already, but not used: make them anew if they asked how many
                batches there are.
        """
        if trainer.fast_dev_run:
            rank_zero_warn("Skipping batch size scaler since `fast_dev_run` is enabled.")
            self.optimal_batch_size = None
            return
        if trainer.state.fn != "fit" and len(trainer.evaluation_loop.loaders) > 1:
            raise MisconfigurationException(
                f"The Batch size finder cannot be used with multiple {trainer.state.fn} dataloaders."
            )
        search = self._search_power if self._mode == "power" else self._search_binary
        before = self._size(trainer, pl_module).get()
        try:
            with isolated_random_state(trainer.own_generators):
                trial = Trial(trainer)  # on it, so that the trainer's own data module is not asked
                samples = _count_samples(trial.trainer)
                trial.close()
                start = before if samples is not None and before >= samples else min(self._init_val, self._max_val)
                found = search(trainer, pl_module, start, samples)
        except BaseException:
            self._size(trainer, pl_module).set(before)
            raise
        rank_zero_info("Finished batch size finder, will continue with full run using batch size %d", found)
        self.optimal_batch_size, self._found = found, True
        self._size(trainer, pl_module).set(found)
        _renew_loaders(trainer, before_training)

    def _search_power(self, trainer: Trainer, pl_module: LiteModule, size: int, samples: int | None) -> int:
        """Double while it fits; halve while it does not."""
        grew = False
        for trial in range(1, self._max_trials + 1):
            if self._fits(trainer, pl_module, size):
                larger = self._larger(size, samples)
                if larger == size or trial == self._max_trials:
                    return size
                size, grew = larger, True
            else:
                size = self._smaller(size, size // 2)
                if grew:
                    return size
        return size

    def _search_binary(self, trainer: Trainer, pl_module: LiteModule, size: int, samples: int | None) -> int:
        """Double while it fits; then halve the distance between what fits and what does not."""
        fits, fails, trials = 0, None, 0
        while fails is None or fails - fits > 1:
            if self._fits(trainer, pl_module, size):
                fits, trials = size, trials + 1
                larger = self._larger(size, samples) if fails is None else (fits + fails) // 2
                if larger == size or trials == self._max_trials:
                    break
                size = larger
            else:
                fails = size
                size = self._smaller(size, (fits + fails) // 2)
        return max(1, int(fits * (1 - self._margin)))

    def _larger(self, size: int, samples: int | None) -> int:
        """The next size; the same one where it holds all samples, or is the largest allowed."""
        return size if samples is not None and size >= samples else min(2 * size, self._max_val)

    def _smaller(self, size: int, smaller: int) -> int:
        if smaller == 0:
            raise MisconfigurationException(
                f"BatchSizeFinder: memory is short even with {self._batch_arg_name}={size}; use a smaller model, or "
                f"shorter samples"
            )
        return smaller

    def _fits(self, trainer: Trainer, pl_module: LiteModule, size: int) -> bool:
        """Try a size out."""
        self._size(trainer, pl_module).set(size)
        trial, fits = Trial(trainer), True
        try:
            trial.run(self._steps_per_trial)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        finally:
            trial.close()
        if not fits:
            gc.collect()  # what was left half-way
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rank_zero_info("Batch size %d %s", size, "succeeded" if fits else "failed")
        return fits

    def _size(self, trainer: Trainer, pl_module: LiteModule) -> TunedAttribute:
        """Where the size stands."""
        return TunedAttribute(trainer, pl_module, [self._batch_arg_name])

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The size that was found; nothing before."""
        return {"optimal_batch_size": self.optimal_batch_size} if self._found else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with that size."""
        self.optimal_batch_size, self._found = state_dict["optimal_batch_size"], True


def is_out_of_memory(error: BaseException) -> bool:
    """True where an error says that memory is short, on the CPU or on a GPU.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    True
    >>> is_out_of_memory(RuntimeError("size mismatch"))
    False
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
