"""What the user writes: `LiteModule`, a model with its steps, optimizers and logging.

How and when the steps are called is the loop's; the hooks are listed in `hooks.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map  # no public name up to torch 2.14

from espnet3_lite.checkpoint.files import check_state_dict
from espnet3_lite.distributed.rank import is_global_zero, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.module.hparams import HyperparametersMixin
from espnet3_lite.optim.clipping import clip_gradients, parameters_of, prepare_clipping
from espnet3_lite.optim.manual_optimization import ManualOptimizer, manual_backward

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

    from espnet3_lite.loggers.base import Logger
    from espnet3_lite.trainer.trainer import Trainer


class LiteModule(ModuleHooks, HyperparametersMixin, nn.Module):
    """A model that knows how to train itself: an `nn.Module` with steps.

    Override `training_step` and `configure_optimizers`; `validation_step`, `test_step`, `predict_step` and the
    loaders as needed; any hook of `ModuleHooks`.

    Example:
        >>> class Line(LiteModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return torch.nn.functional.mse_loss(self.layer(x), y)
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> Line().automatic_optimization
        True
    """

    #: False: `training_step` calls `manual_backward`, ``optimizer.step()`` and ``zero_grad()`` itself.
    automatic_optimization: bool = True
    #: False: a checkpoint may miss keys or have others.
    strict_loading: bool = True
    #: Inputs for a summary or a graph; optional.
    example_input_array: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._trainer: Trainer | None = None
        self._toggled: dict[int, tuple[torch.nn.Parameter, bool]] = {}

    # ---- what a user overrides -------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor | Mapping[str, Any] | None:
        """Return the loss, a dict with `loss`, or None to leave the batch out.

        Args:
            args: ``batch``, what the loader gave, on this process's device; ``batch_idx``, its index within the epoch.
            kwargs: The same by name.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define training_step")

    def training_turns(self) -> Sequence[str]:
        """The turns of the coming batch, by names of your own; one, unless this is overridden.

        In each turn `training_step` runs, and what it returns is propagated, clipped and stepped before the next
        turn's forward pass, as some adversarial models need; `turn` says which one it is. All ranks must give the same.
        """
        return ("",)

    @property
    def turn(self) -> str:
        """The name of the turn in work."""
        return self.trainer.fit_loop.work.turn

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute and `log` metrics of one validation batch. With several loaders ``dataloader_idx`` is given too."""
        raise NotImplementedError(f"{type(self).__name__} does not define validation_step")

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute and `log` metrics of one test batch."""
        raise NotImplementedError(f"{type(self).__name__} does not define test_step")

    def predict_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Return predictions; calls the module itself by default."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, a list of them, a pair of lists (optimizers, schedulers), a dict with `optimizer` and
        `lr_scheduler`, a list of such dicts, or None for none.

        A scheduler is itself or a dict with `scheduler`, `interval` (``"epoch"`` by default, or ``"step"``),
        `frequency` (1), `monitor`, `strict` (True) and `name`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define configure_optimizers")

    def configure_callbacks(self) -> Any:
        """Return callbacks that this model wants; one of a type replaces the trainer's own of that type."""
        return []

    # ---- what a user calls -----------------------------------------------------------------------------------------

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        add_dataloader_idx: bool = True,
        batch_size: int | torch.Tensor | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log one value.

        Args:
            name: Its key in ``trainer.callback_metrics`` and in the loggers.
            value: A number, a tensor with one element, or a metric object with `compute` and `reset`.
            prog_bar: Show it in the progress bar.
            logger: Hand it to the loggers; True by default.
            on_step: Log each step's value. By default True in training steps, False in evaluation and at epoch ends.
            on_epoch: Log the mean over the epoch. By default the opposite. With both, `name_step` and `name_epoch`.
            reduce_fx: How an epoch's values become one: ``mean`` (weighted by batch size), ``sum``, ``min``, ``max``.
            enable_graph: Keep the value's graph (it is detached otherwise).
            sync_dist: Reduce a training step's value over the ranks at once. (Means over an epoch always are reduced.)
            add_dataloader_idx: Append ``/dataloader_idx_N``, or a dict's key, where there are several loaders.
            batch_size: The weight in an epoch's mean; taken from the batch by default.
            metric_attribute: Kept for Lightning's sake; not needed.
            rank_zero_only: This value is logged on rank zero alone, and never reduced.

        Raises:
            MisconfigurationException: logged in a hook where it has no meaning, or twice with other arguments.
            ValueError: the value is not a single number.
        """
        trainer = self._trainer
        if trainer is None:  # no error, as in Lightning: a step may be tried out without a trainer
            rank_zero_warn(f"{type(self).__name__}.log({name!r}, ...) did nothing: no trainer runs this module")
            return
        given = (prog_bar, True if logger is None else logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist,
                 add_dataloader_idx, rank_zero_only)  # fmt: skip
        trainer.metrics.log(name, value, given, batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], **arguments: Any) -> None:
        """Call `log` for each name and value of `dictionary`, with the same further arguments."""
        if not hasattr(dictionary, "items"):
            raise TypeError(f"`self.log_dict(dictionary)`: give a dict of names and values; got {dictionary!r}")
        for name, value in dictionary.items():
            self.log(name, value, **arguments)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or the list of them; for manual optimization.

        With `use_pl_optimizer` their `step` counts towards ``global_step``, calls the hooks and knows mixed precision.
        """
        trainer = self.trainer
        optimizers = [ManualOptimizer(one, trainer) if use_pl_optimizer else one for one in trainer.optimizers]
        return optimizers[0] if len(optimizers) == 1 else optimizers

    def lr_schedulers(self) -> Any:
        """The scheduler, the list of them, or None."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not schedulers else schedulers[0] if len(schedulers) == 1 else schedulers

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """``loss.backward()`` with hooks, mixed precision and gradient synchronisation.

        Raises:
            MisconfigurationException: `automatic_optimization` is True.
        """
        if self.automatic_optimization:
            raise MisconfigurationException(
                f"{type(self).__name__}.manual_backward needs `self.automatic_optimization = False` in __init__"
            )
        manual_backward(self.trainer, loss, *args, **kwargs)

    def clip_gradients(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> torch.Tensor | None:
        """Clip an optimizer's gradients; by hand they are averaged over the ranks and unscaled before.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The largest norm (or value); None: the trainer's, which must not differ. 0 does nothing.
            gradient_clip_algorithm: ``norm`` or ``value``; None: the trainer's, else ``norm``.

        Returns:
            The total norm before clipping, ``()`` float; None for ``value``.
        """
        if self._trainer is not None:
            gradient_clip_val, gradient_clip_algorithm = prepare_clipping(
                self._trainer, optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        return clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def compiled_step(self, step: Callable[[Any, int], Any], **arguments: Any) -> Callable[[Any, int], Any]:
        """``Trainer(compile=...)``: what the loop calls instead of `step`. Override it to compile something else.

        Args:
            step: The training step, of a batch and its index.
            arguments: For ``torch.compile``.
        """
        return torch.compile(step, **arguments)

    def toggle_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let only this optimizer's parameters require gradients, until `untoggle_optimizer`."""
        self.untoggle_optimizer()
        mine = set(map(id, parameters_of(optimizer)))
        for parameter in itertools.chain.from_iterable(map(parameters_of, self.trainer.optimizers)):
            if id(parameter) not in self._toggled:  # else two optimizers share it
                self._toggled[id(parameter)] = (parameter, parameter.requires_grad)
                parameter.requires_grad = parameter.requires_grad and id(parameter) in mine

    def untoggle_optimizer(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put ``requires_grad`` back as it was before `toggle_optimizer`; `optimizer` may be left out."""
        for parameter, required in self._toggled.values():
            parameter.requires_grad = required
        self._toggled.clear()

    def all_gather(self, data: Any, group: ProcessGroup | None = None, sync_grads: bool = False) -> Any:
        """Each rank's tensors, which have one shape on all ranks, stacked: ``(ranks, ...)``; one process's as they are.

        Collective: all ranks call it.

        Args:
            data: A tensor, a number, or any nesting of them.
            group: Of the ranks; all of them by default.
            sync_grads: Gradients go back to the ranks that the tensors came from.
        """
        strategy = self.trainer.strategy

        def gather(leaf: Any) -> Any:
            leaf = torch.tensor(leaf, device=strategy.root_device) if isinstance(leaf, bool | int | float) else leaf
            return strategy.all_gather(leaf, group, sync_grads) if isinstance(leaf, torch.Tensor) else leaf

        return tree_map(gather, data)

    def freeze(self) -> None:
        """No parameter requires gradients; evaluation mode."""
        self.requires_grad_(False).eval()

    def unfreeze(self) -> None:
        """All parameters require gradients; training mode."""
        self.requires_grad_(True).train()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank zero, without breaking a progress bar."""
        if self._trainer is not None:
            self._trainer.print(*args, **kwargs)
        elif is_global_zero():
            print(*args, **kwargs)

    # ---- what a user reads -----------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module.

        Raises:
            RuntimeError: no trainer runs it.
        """
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__qualname__} is not attached to a `Trainer`.")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def current_epoch(self) -> int:
        """The trainer's epoch, 0 without one."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps so far, 0 without a trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """This process's number over all machines."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """This process's number on its machine."""
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def logger(self) -> Logger | None:
        """The trainer's first logger, or None."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Logger]:
        """The trainer's loggers."""
        return self._trainer.loggers if self._trainer is not None else []

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies; the CPU for a module without parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        floating = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def on_gpu(self) -> bool:
        """True where `device` is a GPU."""
        return self.device.type == "cuda"

    # ---- loading ---------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the module from its saved hyperparameters and load its weights.

        Args:
            checkpoint_path: A file that we or Lightning wrote.
            map_location: Where to put the tensors; the CPU by default.
            hparams_file: A YAML file with the arguments, instead of those in the checkpoint.
            strict: Whether keys must match; the module's `strict_loading` by default.
            weights_only: Lightning's argument. None or True; False would let a checkpoint run code, and is an error.
            kwargs: Arguments of ``__init__``, instead of saved ones.
        """
        module, checkpoint = cls._built_from(checkpoint_path, map_location, weights_only, "", hparams_file, kwargs)
        check_state_dict(checkpoint, checkpoint_path)
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict)
        return module

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a module (an average of weights, say) belongs to no trainer."""
        return {**self.__dict__, "_trainer": None}
