"""`OptimizerModes`: for optimizers that train other weights than those that are to be used, such as schedule-free ones.

What kind of optimizer that is, and the word about one that nobody switches, is here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.ema import EMACallback
from espnet3_lite.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from espnet3_lite.callbacks.weight_averaging import WeightAveraging
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer

#: The checkpoint's entry for the weights in training.
_STATE = "weights_in_training"


class OptimizerModes(Callback):
    """Calls the optimizers' ``train()`` before training and ``eval()`` before each validation, where they have both.

    A schedule-free optimizer (https://arxiv.org/abs/2405.15682; the packages ``schedulefree`` and ``pytorch_optimizer``
    have some) computes gradients at one point and is judged at another: its ``eval()`` puts the averaged weights into
    the module, and its ``train()`` those that the next step needs. With this callback validation, checkpoints and the
    module after the fit have the averaged ones. A checkpoint keeps the others beside them, so that a run that goes on
    ends with the same bits; saving takes twice the module's memory (with ``strategy='fsdp'``, of each rank's part).

    Raises:
        MisconfigurationException: at the start of a fit, with a callback that averages the weights too.

    Example:
        >>> from espnet3_lite import Trainer
        >>> trainer = Trainer(callbacks=[OptimizerModes()], logger=False)
    """

    changes_saved_weights = True

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Refuse what would put another average into the weights' place, and mix the two."""
        kinds = (EMACallback, StochasticWeightAveraging, WeightAveraging)
        averaging = [callback for callback in trainer.callbacks if isinstance(callback, kinds)]
        if averaging and (optimizers := switchable(trainer)):
            callback, optimizer = type(averaging[0]).__name__, type(optimizers[0]).__name__
            raise MisconfigurationException(
                f"{callback} with OptimizerModes: the eval() of {optimizer} gives an average of the weights already, "
                f"and each of the two would take the other's average for the weights in training. Leave {callback} "
                f"out, or train with an optimizer that has no train() and eval()"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Train."""
        switch(trainer, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Evaluate; a sanity check too."""
        switch(trainer, "eval")

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Go on training, in a fit."""
        if trainer.state.fn == "fit":
            switch(trainer, "train")

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """What the caller finds in the module is what was validated."""
        switch(trainer, "eval")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """Put the weights to use into ``state_dict``, and those in training beside them."""
        optimizers = switchable(trainer)
        if not any(group.get("train_mode") for optimizer in optimizers for group in optimizer.param_groups):
            return
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        before = [parameter.detach().clone() for parameter in parameters]
        checkpoint[_STATE] = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        switch(trainer, "eval")
        checkpoint["state_dict"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
        switch(trainer, "train")
        with torch.no_grad():  # there and back is not the same to the last bit
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LiteModule, checkpoint: dict[str, Any]) -> None:
        """A fit goes on with the weights in training."""
        if trainer.state.fn == "fit" and _STATE in checkpoint:
            checkpoint["state_dict"] = checkpoint[_STATE]


def switchable(trainer: Trainer) -> list[Any]:
    """The optimizers that have both methods."""
    methods = ("train", "eval")
    return [o for o in trainer.optimizers if all(callable(getattr(o, name, None)) for name in methods)]


def switch(trainer: Trainer, mode: str) -> None:
    """Call ``train`` or ``eval`` of each; before its first step an optimizer has no other weights to give."""
    for optimizer in switchable(trainer):
        if mode == "train" or optimizer.state:
            getattr(optimizer, mode)()


def warn_of_modes(trainer: Trainer) -> None:
    """Say once a fit that such an optimizer needs somebody who switches it."""
    found = switchable(trainer)
    if found and not any(isinstance(callback, OptimizerModes) for callback in trainer.callbacks):
        rank_zero_warn(
            f"{type(found[0]).__name__} has train() and eval(): which weights are trained, validated and saved depends "
            f"on them. Add callbacks=[espnet3_lite.callbacks.OptimizerModes()], which calls them, unless your own "
            f"hooks do"
        )
