"""Finetuning: freeze parts of a module before training, and hand them to the optimizer at some epoch.

`BaseFinetuning` is the frame to write one's own; `BackboneFinetuning` unfreezes ``module.backbone``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module, ModuleDict
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.distributed.rank import rank_zero_only, rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


logger = logging.getLogger(__name__)

Modules = Module | Iterable["Module | Iterable"]


class BaseFinetuning(Callback):
    """Freezes modules before training and unfreezes them when you say so.

    Override `freeze_before_training` (called before the optimizers are made) and `finetune_function` (called for each
    optimizer at the start of each epoch). Give the optimizer only parameters that require gradients:
    ``filter(lambda p: p.requires_grad, self.parameters())``; `unfreeze_and_add_param_group` adds the others later.
    A resumed run finds the same parameter groups, and the same parameters unfrozen.

    Example:
        >>> class UnfreezeEncoder(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.encoder)
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 5:
        ...             self.unfreeze_and_add_param_group(pl_module.encoder, optimizer, lr=1e-4)
        >>> layer = torch.nn.Linear(2, 1)
        >>> BaseFinetuning.freeze(layer)
        >>> layer.weight.requires_grad
        False
    """

    def __init__(self) -> None:
        #: For each optimizer its parameter groups, with names in the place of parameters.
        self._internal_optimizer_metadata: dict[int, list[dict[str, Any]]] = {}
        self._frozen: dict[str, list[str]] | None = None
        self._restarting = False

    # ---- to override -----------------------------------------------------------------------------------------------

    def freeze_before_training(self, pl_module: LiteModule) -> None:
        """Freeze what of `pl_module` is not to be trained from the beginning."""
        raise NotImplementedError(f"define {type(self).__name__}.freeze_before_training(pl_module)")

    def finetune_function(self, pl_module: LiteModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what of `pl_module` is to be trained from `epoch` (from 0) on; called once for each `optimizer`."""
        raise NotImplementedError(f"define {type(self).__name__}.finetune_function(pl_module, epoch, optimizer)")

    # ---- tools -----------------------------------------------------------------------------------------------------

    @staticmethod
    def flatten_modules(modules: Modules) -> list[Module]:
        """All parts that have no parts themselves, or parameters of their own.

        Args:
            modules: A module, or an iterable of modules or of iterables.
        """
        if isinstance(modules, ModuleDict):
            modules = modules.values()
        parts: Iterable[Module]
        if isinstance(modules, Iterable):
            parts = [part for module in modules for part in BaseFinetuning.flatten_modules(module)]
        else:
            parts = modules.modules()
        return [part for part in parts if not list(part.children()) or part._parameters]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[torch.nn.Parameter]:
        """The parameters that require gradients (or do not).

        Args:
            modules: As in `flatten_modules`.
            train_bn: False: leave out those of BatchNorm layers.
            requires_grad: Which ones.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and not train_bn:
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad == requires_grad:
                    yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Let all parameters of `modules` require gradients, and BatchNorm layers track their statistics."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def freeze_module(module: Module) -> None:
        """Freeze one module's own parameters; a BatchNorm layer does not track its statistics any more."""
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze modules.

        Args:
            modules: As in `flatten_modules`.
            train_bn: Leave BatchNorm layers trainable.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and train_bn:
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """Those of `params` that the optimizer does not hold yet; a warning says how many it holds already."""
        # By identity. (Lightning compares values, and loses a layer whose bias happens to equal another's.)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        params = list(params)
        missing = [parameter for parameter in params if id(parameter) not in held]
        if len(missing) < len(params):
            rank_zero_warn(
                f"{len(params) - len(missing)} of the parameters to unfreeze already exist within another group of "
                f"this optimizer; they are skipped. Did you give it all? Make it as {type(optimizer).__name__}("
                f"filter(lambda p: p.requires_grad, self.parameters()), ...)"
            )
        return missing

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze modules, and add their parameters to an optimizer as a new group.

        Args:
            modules: As in `flatten_modules`.
            optimizer: What trains them from now on.
            lr: The new group's rate; None: the first group's divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: False: the parameters of BatchNorm layers are not added.
        """
        BaseFinetuning.make_trainable(modules)
        rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else float(lr)
        trained = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        params = BaseFinetuning.filter_on_optimizer(optimizer, trained)
        if params:
            optimizer.add_param_group({"params": params, "lr": rate})

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Freeze, before the optimizers are made."""
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A resumed run: the parameter groups that were made, before the trainer loads the optimizers' states."""
        if not self._restarting:
            return
        self._restarting = False
        parameters = dict(pl_module.named_parameters())
        for index, optimizer in enumerate(trainer.optimizers):
            if index in self._internal_optimizer_metadata:
                before = len(optimizer.param_groups)
                groups = _exchange_parameters(self._internal_optimizer_metadata[index], parameters)
                optimizer.param_groups = groups
                for parameter in (parameter for group in groups[before:] for parameter in group["params"]):
                    parameter.requires_grad = True  # a group that was added holds what was unfrozen
        if self._frozen is not None:  # written by us: exactly what was frozen then
            for name, parameter in parameters.items():
                parameter.requires_grad = name not in self._frozen["parameters"]
            for name, module in _batch_norms(pl_module):
                module.track_running_stats = name not in self._frozen["statistics"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Call `finetune_function` for each optimizer, and note what it did, for a run that resumes."""
        for index, optimizer in enumerate(trainer.optimizers):
            before = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            self._note_groups(pl_module, index, before, optimizer.param_groups)
        self._frozen = {
            "parameters": [name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad],
            "statistics": [name for name, module in _batch_norms(pl_module) if not module.track_running_stats],
        }

    def _note_groups(self, pl_module: LiteModule, index: int, before: int, groups: list[dict[str, Any]]) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        noted = self._internal_optimizer_metadata
        if index not in noted:
            noted[index] = _exchange_parameters(groups, names)
        elif before != len(groups):
            noted[index].extend(_exchange_parameters(groups[before:], names))

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The parameter groups by name, and what is frozen (which Lightning does not keep)."""
        return {"internal_optimizer_metadata": self._internal_optimizer_metadata, "frozen": self._frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._internal_optimizer_metadata = state_dict["internal_optimizer_metadata"]
        self._frozen = state_dict.get("frozen")
        self._restarting = True


def _exchange_parameters(groups: list[dict[str, Any]], mapping: dict[Any, Any]) -> list[dict[str, Any]]:
    """Copies of parameter groups, with names in the place of parameters, or the other way round."""
    return [{**group, "params": [mapping[parameter] for parameter in group["params"]]} for group in groups]


def _batch_norms(pl_module: Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, module) for name, module in pl_module.named_modules() if isinstance(module, _BatchNorm)]


def multiplicative(epoch: int) -> float:
    """The default growth of the backbone's learning rate: twice as much each epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Freezes ``module.backbone``, and trains it from some epoch on, at a rate that grows towards the others'.

    Args:
        unfreeze_backbone_at_epoch: From 0.
        lambda_func: ``lambda_func(epoch + 1)`` is the factor by which the backbone's rate grows in an epoch.
        backbone_initial_ratio_lr: Its first rate, as a share of the first group's rate at that moment.
        backbone_initial_lr: Its first rate; instead of the share.
        should_align: Let it not grow beyond the first group's rate.
        initial_denom_lr: Kept for Lightning's sake: the first rate is always given by one of the two above.
        train_bn: False: the parameters of the backbone's BatchNorm layers are not given to the optimizer.
        verbose: Log both rates at each epoch.
        rounding: Digits of the logged rates.

    Raises:
        MisconfigurationException: an epoch or a rate that is not allowed; at the start, the module has no `backbone`.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone, self.head = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
        >>> model, finetuning = Model(), BackboneFinetuning(unfreeze_backbone_at_epoch=5)
        >>> finetuning.freeze_before_training(model)
        >>> optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        >>> finetuning.finetune_function(model, 5, optimizer)
        >>> [round(group["lr"], 3) for group in optimizer.param_groups]
        [0.1, 0.01]
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ):
        super().__init__()
        if not unfreeze_backbone_at_epoch >= 0 or unfreeze_backbone_at_epoch % 1:
            raise MisconfigurationException(
                f"BackboneFinetuning: unfreeze_backbone_at_epoch={unfreeze_backbone_at_epoch!r} is not an "
                f"epoch; give a whole number, counted from 0"
            )
        for name, rate in (
            ("backbone_initial_lr", backbone_initial_lr), ("backbone_initial_ratio_lr", backbone_initial_ratio_lr),
        ):  # fmt: skip
            if rate is not None and not 0 <= rate < math.inf:
                raise MisconfigurationException(f"BackboneFinetuning: {name}={rate!r} is not a rate of at least 0")
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Freeze the backbone."""
        if not isinstance(getattr(pl_module, "backbone", None), Module):
            raise MisconfigurationException(
                f"BackboneFinetuning: {type(pl_module).__name__} should have a nn.Module `backbone` attribute"
            )
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LiteModule) -> None:
        """Freeze the backbone, except for its BatchNorm layers."""
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: LiteModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the backbone at its epoch; afterwards let its rate grow."""
        current = optimizer.param_groups[0]["lr"]
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            rate = current * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, rate, self.initial_denom_lr, self.train_bn)
        elif epoch > self.unfreeze_backbone_at_epoch:
            assert self.previous_backbone_lr is not None  # since that epoch
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            rate = min(rate, current) if self.should_align else rate
            assert isinstance(pl_module.backbone, Module)  # since `setup`
            group = optimizer.param_groups[-1]
            if set(group["params"]) <= set(pl_module.backbone.parameters()):  # else nothing was added: the head's
                group["lr"] = rate
        else:
            return
        self.previous_backbone_lr = rate
        if self.verbose:
            _log_rates(round(current, self.rounding), round(rate, self.rounding))

    def state_dict(self) -> dict[str, Any]:
        """As `BaseFinetuning`, and the backbone's rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)


@rank_zero_only
def _log_rates(current: float, backbone: float) -> None:
    logger.info("Current lr: %s, Backbone lr: %s", current, backbone)
