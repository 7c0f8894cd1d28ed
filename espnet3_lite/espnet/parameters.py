"""Parameters that a training begins with, and those that it leaves alone: ESPnet's ``init_param`` and ``freeze_param``.

As keys of a configuration they act when the model is built; as callbacks, before the optimizers are. How random weights
are drawn is `initialization.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, nearest

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


def load_parameters(model: nn.Module, description: str, ignore_mismatch: bool = False) -> None:
    """Put parameters of a file into a model, as ESPnet2's ``init_param`` describes it.

    Args:
        model: Changed in place.
        description: ``path:source:destination:excludes``, of which the path is enough. `source` is the dotted beginning
            of what is taken from the file, left out of the names; `destination` the part of the model that it is put
            into; `excludes` dotted beginnings in the file, with commas between them, that are not taken.
        ignore_mismatch: Leave out what the model lacks, or has in another shape.

    Raises:
        MisconfigurationException: the model has no such part, or nothing in the file begins with `source`.
        CheckpointError: the file cannot be read, or has what the model lacks or has in another shape.
    """
    path, source, destination, excludes = [*description.split(":"), "", "", ""][:4]
    if description.count(":") > 3 or not path:
        raise MisconfigurationException(f"init_param: {description!r} is not path:source:destination:excludes")
    state = load_checkpoint(path)
    state = state.get("state_dict", state.get("module", state))  # Lightning's and ESPnet3's files; DeepSpeed's
    for excluded in filter(None, excludes.split(",")):
        state = {name: value for name, value in state.items() if not f"{name}.".startswith(f"{excluded}.")}
    if source:
        parts = {name.partition(".")[0] for name in state}
        state = {name[len(source) + 1 :]: value for name, value in state.items() if name.startswith(f"{source}.")}
        if not state:
            raise MisconfigurationException(
                f"init_param: nothing in {path} begins with {source!r}; there are {sorted(parts)}"
                f"{nearest(source, parts)}"
            )
    try:
        part = model.get_submodule(destination)
    except AttributeError as error:
        known = [name for name, _ in model.named_modules()]
        raise MisconfigurationException(
            f"init_param: the model has no part {destination!r}{nearest(destination, known)}"
        ) from error
    own = part.state_dict()
    misfits = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if misfits and not ignore_mismatch:
        raise CheckpointError(
            f"init_param: {path} has what the model lacks or has in another shape: {', '.join(misfits[:5])}"
            f"{' and more' if len(misfits) > 5 else ''}; exclude it, or set ignore_init_mismatch: true"
        )
    taken = {name: value for name, value in state.items() if name not in misfits}
    part.load_state_dict({**own, **taken})
    level = logging.INFO if taken else logging.WARNING
    logger.log(level, "init_param: %d of %d parameters and buffers are those of %s", len(taken), len(own), path)


def freeze_parameters(model: nn.Module, selectors: Iterable[str], place: str) -> None:
    """Do not train what the selectors name: parameters, or dotted beginnings of some; `place` names them in the log."""
    for selector in selectors:
        found = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{selector}.")]
        for parameter in found:
            parameter.requires_grad = False
        if found:
            logger.info("%s: %r froze %d parameters", place, selector, len(found))
        else:
            logger.warning("%s selector %r did not match any model parameter.", place, selector)


class PretrainedParametersCallback(Callback):
    """Begins a fit with parameters from files; a fit that resumes goes on with its checkpoint's.

    Args:
        init_param: Descriptions as `load_parameters` takes them.
        ignore_init_mismatch: Skip what the model lacks or has in another shape. Default False: an error.
    """

    def __init__(self, init_param: Sequence[str], ignore_init_mismatch: bool = False):
        self.init_param, self.ignore_init_mismatch = list(init_param), ignore_init_mismatch

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Before the optimizers, and before a checkpoint is loaded."""
        for description in self.init_param if stage == "fit" else ():
            load_parameters(_model_of(pl_module), description, self.ignore_init_mismatch)


class ParameterFreezeCallback(Callback):
    """Freezes parameters: a fit does not train them.

    Args:
        freeze_param: Names of parameters, or dotted beginnings of some.
    """

    def __init__(self, freeze_param: Sequence[str]):
        self.freeze_param = list(freeze_param)

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Before the optimizers, which then leave them out."""
        if stage == "fit":
            freeze_parameters(_model_of(pl_module), self.freeze_param, "ParameterFreezeCallback")


def _model_of(pl_module: LiteModule) -> nn.Module:
    """The model that ESPnet's module wraps; else the module itself."""
    model = getattr(pl_module, "model", None)
    return model if isinstance(model, nn.Module) else pl_module
