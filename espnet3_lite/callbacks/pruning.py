"""`ModelPruning`: set the least important weights to zero while training, with ``torch.nn.utils.prune``."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.distributed.rank import rank_zero_only
from espnet3_lite.exceptions import MisconfigurationException, nearest

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


logger = logging.getLogger(__name__)

_FUNCTIONS = {
    name: getattr(torch_prune, name)
    for name in ("ln_structured", "l1_unstructured", "random_structured", "random_unstructured")
}
_METHODS = {
    "ln_structured": torch_prune.LnStructured,
    "l1_unstructured": torch_prune.L1Unstructured,
    "random_structured": torch_prune.RandomStructured,
    "random_unstructured": torch_prune.RandomUnstructured,
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: The checkpoint's entry for a run that resumes.
_STATE = "pruning"

Parameters = Sequence[tuple[nn.Module, str]]


class ModelPruning(Callback):
    """Prunes the module's parameters at the end of epochs.

    torch keeps a pruned parameter as ``weight_orig`` and ``weight_mask``, whose product is ``weight``; pruning again
    adds to the mask. With `make_pruning_permanent` checkpoints hold the product alone, and so does the module at the
    end of training. A resumed run goes on with the masks.

    Args:
        pruning_fn: ``l1_unstructured``, ``random_unstructured``, ``ln_structured`` or ``random_structured``, or a class
            derived from ``torch.nn.utils.prune.BasePruningMethod`` (with `use_global_unstructured`).
        parameters_to_prune: Pairs (module, parameter's name); by default all floating ones of the names below, in all
            modules. Modules that share a parameter share its mask.
        parameter_names: ``weight``, ``bias`` or both (the default).
        use_global_unstructured: Compare the parameters with each other, instead of pruning a share of each.
        amount: How much: a float is a share, an int a number of values; or a function of the epoch.
        apply_pruning: Prune, or not; or a function of the epoch that says so.
        make_pruning_permanent: See above.
        use_lottery_ticket_hypothesis: After pruning, put the remaining values back to what they were before training
            (https://arxiv.org/abs/1803.03635); or a function of the epoch.
        resample_parameters: Draw new initial values for it instead (`reset_parameters` of each module).
        pruning_dim: Which dimension structured methods prune along.
        pruning_norm: Which norm ``ln_structured`` compares.
        verbose: 1 logs the sparsity after each pruning, 2 that of each parameter too.
        prune_on_train_epoch_end: False: prune at the end of each validation.

    Raises:
        MisconfigurationException: a value that is not allowed, or a parameter that is not in the module.

    Example:
        >>> pruning = ModelPruning("l1_unstructured", amount=lambda epoch: 0.5 if epoch < 2 else 0.1)
        >>> ModelPruning("l2")
        Traceback (most recent call last):
        ...
        espnet3_lite.exceptions.MisconfigurationException: The provided `pruning_fn` 'l2' isn't one of PyTorch's \
['ln_structured', 'l1_unstructured', 'random_structured', 'random_unstructured']
    """

    PARAMETER_NAMES = ("weight", "bias")
    changes_saved_weights = True

    def __init__(
        self,
        pruning_fn: Callable | str,
        parameters_to_prune: Parameters = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ):
        self._parameter_names = parameter_names or self.PARAMETER_NAMES
        for name in self._parameter_names:
            if name not in self.PARAMETER_NAMES:
                raise MisconfigurationException(
                    f"The provided `parameter_names` name: {name!r} isn't in {self.PARAMETER_NAMES}"
                )
        if isinstance(amount, bool) or not (isinstance(amount, (int, float)) or callable(amount)):
            raise MisconfigurationException(
                f"`amount` should be provided and be either an int, a float or Callable function, got {amount!r}."
            )
        if not callable(amount) and not (amount >= 0 if isinstance(amount, int) else 0 <= amount <= 1):
            raise MisconfigurationException(
                f"ModelPruning: amount={amount!r}; give a fraction from 0.0 to 1.0, or a whole number of at least 0"
            )
        if verbose not in (0, 1, 2):
            raise MisconfigurationException(f"`verbose` must be any of (0, 1, 2), got {verbose!r}")
        self._global = use_global_unstructured
        self._global_arguments: dict[str, Any] = {}
        self.pruning_fn = self._resolve(pruning_fn, pruning_dim, pruning_norm)
        self.amount, self._apply_pruning = amount, apply_pruning
        self._make_pruning_permanent = make_pruning_permanent
        self._use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._resample_parameters, self._verbose = resample_parameters, verbose
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        self._given_parameters = parameters_to_prune
        self._parameters_to_prune: Parameters = ()
        self._original_modules: dict[nn.Module, nn.Module] = {}
        self._resumed: dict[str, dict[str, torch.Tensor]] = {}

    def _resolve(self, pruning_fn: Any, dim: int | None, norm: int | None) -> Any:
        """The method (a class) for global pruning, the function for local."""
        resolved: Any
        if isinstance(pruning_fn, str):
            name, arguments = pruning_fn.lower(), {}
            if name not in _FUNCTIONS:
                raise MisconfigurationException(
                    f"The provided `pruning_fn` {pruning_fn!r} isn't one of PyTorch's {list(_FUNCTIONS)}"
                    f"{nearest(name, _FUNCTIONS)}"
                )
            if name.endswith("_structured"):
                if dim is None:
                    raise MisconfigurationException(f"{name!r} is structured: it needs `pruning_dim`.")
                if name == "ln_structured":
                    if norm is None:
                        raise MisconfigurationException("'ln_structured' needs `pruning_norm`.")
                    arguments["n"] = norm
                arguments["dim"] = dim
            self._method_name = (_METHODS if self._global else _FUNCTIONS)[name].__name__
            resolved = _METHODS[name] if self._global else partial(_FUNCTIONS[name], **arguments)
        elif inspect.isclass(pruning_fn) and issubclass(pruning_fn, torch_prune.BasePruningMethod):
            if not self._global:
                raise MisconfigurationException(
                    "PyTorch `BasePruningMethod` is currently only supported with `use_global_unstructured=True`."
                )
            self._method_name, resolved = pruning_fn.__name__, pruning_fn
        else:
            raise MisconfigurationException(
                f"`pruning_fn` is expected to be a str in {list(_FUNCTIONS)} or a PyTorch `BasePruningMethod`. Found: "
                f"{pruning_fn}. HINT: if passing a `BasePruningMethod`, pass the class, not an instance"
            )
        if self._global and resolved.PRUNING_TYPE != "unstructured":
            raise MisconfigurationException(
                f"Only the 'unstructured' PRUNING_TYPE is supported with `use_global_unstructured=True`. Found method "
                f"{resolved} of type {resolved.PRUNING_TYPE!r}; set use_global_unstructured=False"
            )
        return resolved

    # ---- which parameters ------------------------------------------------------------------------------------------

    def filter_parameters_to_prune(self, parameters_to_prune: Parameters = ()) -> Parameters:
        """Override it to choose among `parameters_to_prune`: (module, name) pairs of what would be pruned."""
        return parameters_to_prune

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: nn.Module, parameters_to_prune: Parameters = (), parameter_names: Sequence[str] = ()
    ) -> Parameters:
        """Check `parameters_to_prune`; where there are none, find all of `pl_module` whose names are `parameter_names`.

        Raises:
            MisconfigurationException: they are not pairs, or not in the module.
        """
        modules = [part for part in pl_module.modules() if part is not pl_module and not isinstance(part, _CONTAINERS)]
        if not parameters_to_prune:
            names = parameter_names or ModelPruning.PARAMETER_NAMES
            return [(module, name) for name in names for module in modules if _is_parameter(module, name)]
        pairs = isinstance(parameters_to_prune, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in parameters_to_prune
        )
        if not pairs or not all(isinstance(m, nn.Module) and isinstance(n, str) for m, n in parameters_to_prune):
            raise MisconfigurationException(
                f"The provided `parameters_to_prune` should either be list of tuple with 2 elements: (nn.Module, "
                f"parameter_name_to_prune) or None, got {parameters_to_prune!r}"
            )
        foreign = [module for module, _ in parameters_to_prune if module not in modules]
        missing = [name for module, name in parameters_to_prune if module in modules and not hasattr(module, name)]
        if foreign or missing:
            raise MisconfigurationException(
                f"Some provided `parameters_to_prune` don't exist in the model. Found missing modules: {foreign} and "
                f"missing parameters: {missing}"
            )
        return parameters_to_prune

    # ---- pruning ---------------------------------------------------------------------------------------------------

    def apply_pruning(self, amount: int | float) -> None:
        """Prune, and log the sparsity.

        Args:
            amount: A share, or a number of values; of what is not pruned yet.
        """
        before = [_sparsity(module, name) for module, name in self._parameters_to_prune]
        try:
            if self._global:
                accepted = inspect.signature(self.pruning_fn).parameters
                arguments = {"amount": amount} if "amount" in accepted else {}
                torch_prune.global_unstructured(self._parameters_to_prune, pruning_method=self.pruning_fn, **arguments)
            else:
                for module, name in self._parameters_to_prune:
                    self.pruning_fn(module, name=name, amount=amount)
        except (TypeError, ValueError, IndexError) as error:
            raise MisconfigurationException(f"ModelPruning: {self._method_name}, amount={amount!r}: {error}") from error
        _share_masks(self._parameters_to_prune)
        if self._verbose:
            after = [_sparsity(module, name) for module, name in self._parameters_to_prune]
            self._log_sparsity(before, after, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Put the values that remain back to what they were before training, or to newly drawn ones."""
        originals = self._original_modules
        if self._resample_parameters:
            originals = {module: copy.deepcopy(original) for module, original in originals.items()}
            for original in originals.values():
                if callable(reset := getattr(original, "reset_parameters", None)):
                    reset()
        for module, name in self._parameters_to_prune:
            target = getattr(module, f"{name}_orig", getattr(module, name))
            target.data.copy_(getattr(originals[module], name).data)

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Replace ``weight_orig`` and ``weight_mask`` by their product, in the module and all its parts."""
        for part in module.modules():
            for key, hook in list(part._forward_pre_hooks.items()):
                if isinstance(hook, torch_prune.BasePruningMethod):
                    hook.remove(part)
                    getattr(part, hook._tensor_name).data.add_(0.0)  # no -0.0, as in `_merged`
                    del part._forward_pre_hooks[key]

    def _run_pruning(self, epoch: int) -> None:
        amount = _at(self.amount, epoch)
        if _at(self._apply_pruning, epoch) and amount:
            self.apply_pruning(amount)
            if _at(self._use_lottery_ticket_hypothesis, epoch):
                self.apply_lottery_ticket_hypothesis()

    @rank_zero_only
    def _log_sparsity(self, before: list[tuple[int, int]], after: list[tuple[int, int]], amount: int | float) -> None:
        total = sum(size for _, size in after)
        zeros = [sum(count for count, _ in counts) for counts in (before, after)]
        shown = " -> ".join(f"{count}/{total} ({count / total:.2%})" for count in zeros)
        logger.info("Applied `%s`. Pruned: %s", self._method_name, shown)
        if self._verbose == 2:
            for (module, name), old, new in zip(self._parameters_to_prune, before, after, strict=True):
                shown = " -> ".join(f"{count} ({count / size:.2%})" for count, size in (old, new))
                logger.info(
                    "Applied `%s` to `%r.%s` with amount=%s. Pruned: %s", self._method_name, module, name, amount, shown
                )

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Find the parameters, and keep what a lottery ticket goes back to.

        Raises:
            MisconfigurationException: there are none, they are to be sharded, or have too few dimensions.
        """
        if stage != "fit":
            return
        if trainer.strategy.name == "fsdp":
            raise MisconfigurationException(
                f"{type(self).__name__} needs whole parameters, which strategy='fsdp' shards. Use strategy='ddp'"
            )
        found = self.sanitize_parameters_to_prune(pl_module, self._given_parameters, self._parameter_names)
        self._parameters_to_prune = self.filter_parameters_to_prune(found)
        if not self._parameters_to_prune:
            raise MisconfigurationException(
                f"ModelPruning: there is nothing to prune, since no module inside of {type(pl_module).__name__} has a "
                f"floating-point parameter with one of the names {list(self._parameter_names)}"
            )
        if isinstance(self.pruning_fn, partial) and "dim" in self.pruning_fn.keywords:
            self._require_dimension(self.pruning_fn.keywords["dim"], pl_module)
        self._resumed = {}
        if self._use_lottery_ticket_hypothesis:
            self._original_modules = {module: copy.deepcopy(module) for module, _ in self._parameters_to_prune}

    def _require_dimension(self, dim: int, pl_module: LiteModule) -> None:
        least = max(2, dim + 1, -dim)
        flat = [key for (module, name), key in self._keys(pl_module) if getattr(module, name).dim() < least]
        if flat:
            raise MisconfigurationException(
                f"{self._method_name} with pruning_dim={dim} needs parameters of at least {least} dimensions, but "
                f"{flat} have fewer. Choose others by parameter_names=['weight'] or `parameters_to_prune`"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """A resumed run: the masks, now that the optimizer holds the parameters in their first order."""
        for (module, name), key in self._keys(pl_module):
            state = self._resumed.get(key, {})
            if "mask" in state:
                device = getattr(module, name).device
                torch_prune.custom_from_mask(module, name, state["mask"].to(device))
                setattr(module, name, state["product"].to(device))
            if "original" in state and self._original_modules:
                getattr(self._original_modules[module], name).data = state["original"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Prune."""
        if self._prune_on_train_epoch_end:
            self._run_pruning(trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Prune here, if asked to."""
        if not self._prune_on_train_epoch_end and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._run_pruning(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Make it permanent; not where a signal ends a run that will be resumed."""
        if self._make_pruning_permanent and not trainer.stopped_by_signal:
            self.make_pruning_permanent(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """The same where nothing was left to train: the run was cut after its last checkpoint, and resumed."""
        self.on_train_end(trainer, pl_module)  # where that happened before, nothing is left to do

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _keys(self, pl_module: LiteModule) -> list[tuple[tuple[nn.Module, str], str]]:
        """Each pair with its parameter's name in the module."""
        names = {module: f"{name}." if name else "" for name, module in pl_module.named_modules()}
        return [((module, name), names[module] + name) for module, name in self._parameters_to_prune]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Save products instead of pairs, and what a resumed run needs to go on pruning."""
        if self._make_pruning_permanent:
            checkpoint["state_dict"] = _merged(checkpoint["state_dict"], masked=True)
        for (module, name), key in self._keys(pl_module):
            state = checkpoint.setdefault(_STATE, {}).setdefault(key, {})
            if hasattr(module, f"{name}_mask"):
                state["mask"] = getattr(module, f"{name}_mask").bool()
                # The product of the last forward pass: the next pruning compares these, not the latest values.
                state["product"] = getattr(module, name).detach()
            if self._original_modules:
                state["original"] = getattr(self._original_modules[module], name).detach()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """The module is not pruned yet: it gets whole weights, and in `on_fit_start` its masks."""
        if trainer.state.fn != "fit":
            return
        checkpoint["state_dict"] = _merged(checkpoint["state_dict"], masked=False)
        self._resumed = checkpoint.get(_STATE, {})


def _at(value: Any, epoch: int) -> Any:
    """A setting, or what it is in this epoch."""
    return value(epoch) if callable(value) else value


def _is_parameter(module: nn.Module, name: str) -> bool:
    """True for a floating parameter, pruned already or not; a table of integers has nothing to prune."""
    found = getattr(module, f"{name}_orig", getattr(module, name, None))
    return isinstance(found, nn.Parameter) and found.is_floating_point()


def _share_masks(pairs: Parameters) -> None:
    """What several modules share stays one parameter: the first one's mask holds for all."""
    masks: dict[nn.Parameter, torch.Tensor] = {}
    for module, name in pairs:
        values, mask = getattr(module, f"{name}_orig"), getattr(module, f"{name}_mask")
        shared = masks.setdefault(values, mask)
        if shared is not mask:
            mask.copy_(shared)
            setattr(module, name, shared.to(values.dtype) * values)


def _sparsity(module: nn.Module, name: str) -> tuple[int, int]:
    """How many values of a parameter are pruned, and how many there are."""
    mask = getattr(module, f"{name}_mask", None)
    return (0, getattr(module, name).numel()) if mask is None else (int((mask == 0).sum()), mask.numel())


def _merged(state: dict[str, torch.Tensor], masked: bool) -> dict[str, torch.Tensor]:
    """A state dict with ``x`` in the place of ``x_orig`` and ``x_mask``: their product, or the values alone."""
    merged = {}  # what is pruned is 0.0, not -0.0: that sign follows a value which a resumed run does not have
    for key, value in state.items():
        name, _, suffix = key.rpartition("_")
        if suffix == "orig" and f"{name}_mask" in state:
            merged[name] = state[f"{name}_mask"].to(value.dtype) * value + 0.0 if masked else value
        elif not (suffix == "mask" and f"{name}_orig" in state):
            merged[key] = value
    return merged
