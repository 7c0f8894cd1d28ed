"""Which optimizer: (loss, optimizer) pairs, and the windows in which an optimizer's gradients are accumulated.

Read here is what `configure_optimizers` and a training step returned. When things happen is the loop's; the slots are
made in `trainer/setup.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.optim import Optimizer

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest
from espnet3_lite.loaders.transfer import loss_of, map_tensors
from espnet3_lite.optim.clipping import clip_gradients, largest_gradient, parameters_of
from espnet3_lite.optim.lr_stepping import LRSchedulerConfig, known_keys, parse_scheduler


class OptimizationStep(NamedTuple):
    """A loss and the name of the optimizer that it trains: what a model with several optimizers returns.

    Attributes:
        loss: ``()``, with a graph.
        name: A key of the configuration's `optimizers`.

    Example:
        >>> OptimizationStep(loss=torch.tensor(1.0), name="generator").name
        'generator'
    """

    loss: torch.Tensor
    name: str


def is_step(value: object) -> bool:
    """True for an optimization step, of this package or of ESPnet3: models return either, so its shape decides."""
    return hasattr(value, "loss") and hasattr(value, "name")


def named_steps(output: object) -> list[OptimizationStep] | None:
    """The optimization steps of a model's output: one, or a list or tuple of them; None for any other output.

    >>> named_steps(OptimizationStep(torch.tensor(1.0), "generator"))
    [OptimizationStep(loss=tensor(1.), name='generator')]
    """
    if is_step(output):
        output = [output]
    return list(output) if isinstance(output, (list, tuple)) and all(map(is_step, output)) else None


@dataclass(eq=False, slots=True)
class OptimizerSlot:
    """An optimizer with its window: how many backward passes make one step, and how far the open window is.

    For one plain optimizer the window follows the batch index (`accumulate_grad_batches`), as Lightning's does; a named
    one counts its own backward passes (`window`), over epochs' ends and validations.
    """

    optimizer: Optimizer
    name: str | None = None
    window: int = 1
    #: The largest total norm (or absolute value, with the algorithm ``value``); None or 0: nothing is clipped.
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = "norm"
    #: What has these two instead, and may change them: the trainer, for an optimizer without a name.
    clip_settings: Any = None
    #: The module's own `configure_gradient_clipping`, where it has one.
    clips_by: Callable[[Optimizer, float | None, str | None], Any] | None = None
    #: Somebody wants to know whether the gradients are finite, though nothing is clipped.
    checks_gradients: bool = False
    #: Successful updates so far.
    update_step: int = 0
    #: Backward passes in the open window.
    pending: int = 0
    #: With `accumulate_by_weight`: the sum of the weights of the batches in the open window.
    weight: float = 0.0
    #: A window is open: its gradients were cleared and not yet stepped.
    open: bool = False
    #: False: the pending gradients are this rank's alone.
    synchronized: bool = True
    #: The module's own `backward` propagates the loss, in its way.
    own_backward: bool = False
    #: A step that returned None was told.
    warned_of_none: bool = False
    #: A loss was propagated.
    trained: bool = False
    #: With a gradient scaler: whether the gradients are scaled, or true already, or the step was made (or left out).
    scaling: Literal["scaled", "true", "stepped"] = "scaled"

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer trains now: a finetuning callback may have added to it."""
        return parameters_of(self.optimizer)

    def backward(self, loss: torch.Tensor, retain_graph: bool, stands_in: bool) -> None:
        """The gradients of a named optimizer's own parameters; no others are even computed.

        Args:
            loss: ``()``.
            retain_graph: Another backward pass through the same graph follows.
            stands_in: This rank has no data in this step, and its loss, a zero, reaches nothing.

        Raises:
            MisconfigurationException: the loss reaches none of them.
        """
        parameters = parameters_of(self.optimizer)
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        for parameter in frozen:  # as it may be since the forward pass; torch would refuse it among the inputs
            parameter.requires_grad_(True)
        try:
            loss.backward(inputs=parameters, retain_graph=retain_graph)  # type: ignore[no-untyped-call]  # torch's
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if stands_in or self.pending or parameters[0].grad is not None:
            return
        if len(frozen) < len(parameters) and all(parameter.grad is None for parameter in parameters):
            raise MisconfigurationException(
                f"the loss of {self.name!r} reaches none of this optimizer's parameters, so that it trains nothing. Is "
                f"it the loss of another optimizer? Activation checkpointing needs use_reentrant=False here"
            )

    def zero_grad(self) -> None:
        """What ``optimizer.zero_grad()`` does, without its label for the profiler, which takes 40 times as long."""
        optimizer = self.optimizer
        if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
            optimizer.zero_grad()  # its own
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def warn_of_none(self) -> None:
        """A step that returns None trains nothing; said once."""
        if not self.warned_of_none:
            self.warned_of_none = True
            rank_zero_warn("`training_step` returned `None`: the batch trains nothing. If this was on purpose, ignore "
                           "this warning; else return the loss")  # fmt: skip

    def clip(self) -> float:
        """Clip the gradients in place, before a step.

        Returns:
            A number that is finite where the step is to be made: their total norm before, where they are clipped by
            it, else the largest of them; 0.0 where nobody wants to know.
        """
        settings = self.clip_settings or self
        value = settings.gradient_clip_val
        if not value and self.clips_by is None and not self.checks_gradients:
            return 0.0
        algorithm, largest = settings.gradient_clip_algorithm, None
        if self.clips_by is None and value and algorithm != "value":
            return float(clip_gradients(self.optimizer, value, algorithm))  # type: ignore[arg-type]  # it gives the norm
        if self.checks_gradients or (value and algorithm == "value"):
            largest = largest_gradient(parameters_of(self.optimizer))
        (self.clips_by or clip_gradients)(self.optimizer, value, algorithm)
        return 0.0 if largest is None else float(largest)

    def divide_by_weight(self) -> None:
        """The window is full: its gradients become the weighted mean over its batches."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.weight)
        self.weight = 0.0

    def close_window(self, stepped: bool) -> None:
        """Its step was made or left out: what comes next is another window's."""
        self.open, self.pending = False, 0
        self.update_step += stepped
        if self.scaling == "true":
            self.scaling = "stepped"

    @property
    def held(self) -> list[Optimizer]:
        """What the optimizer keeps in attributes, as SAM and Lookahead do: not all of them save its state."""
        values = vars(self.optimizer).values()
        return [one for v in values for one in (v if isinstance(v, list) else [v]) if isinstance(one, Optimizer)]

    def state_dict(self) -> dict[str, Any]:
        """The counters, and the states of the optimizers that this one keeps."""
        held = [optimizer.state_dict() for optimizer in self.held]
        return {"update_step": self.update_step, "pending": self.pending, "weight": self.weight, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counters go on. (The optimizers had their states before.)"""
        self.update_step, self.pending = int(state["update_step"]), int(state["pending"])
        self.weight = float(state.get("weight", 0.0))
        self.open = self.pending > 0


#: What may stand in a dict; the first one must.
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor")


def parse_optimizers(
    returned: Any, owner: str, steps_by_hand: bool = False, steps_its_way: bool = False
) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Read the seven documented shapes of `configure_optimizers`.

    Args:
        returned: What it returned.
        owner: The module's class, for messages.
        steps_by_hand: The module steps its schedulers itself (manual optimization): none needs a `monitor`.
        steps_its_way: It overrides `lr_scheduler_step`: only `ReduceLROnPlateau` needs one.

    Returns:
        The optimizers, and the scheduler configurations (their `slot` is filled in later).

    Raises:
        MisconfigurationException: another shape, an unknown key, a plateau scheduler without `monitor`.
    """
    where = f"{owner}.configure_optimizers()"
    if not isinstance(returned, (list, tuple)):
        returned = [] if returned is None else [returned]
    match returned:
        case [[*optimizers], [*schedulers]]:
            pass
        case [[*optimizers], scheduler]:
            schedulers = [scheduler]
        case _:
            entries = [part if isinstance(part, Mapping) else {"optimizer": part} for part in returned]
            optimizers = [known_keys(part, _OPTIMIZER_KEYS, where)["optimizer"] for part in entries]
            schedulers = [
                # Beside a bare scheduler `monitor` may stand, as Lightning allows.
                given if isinstance(given, Mapping) else {"scheduler": given, "monitor": part.get("monitor")}
                for part in entries
                if (given := part.get("lr_scheduler")) is not None
            ]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise MisconfigurationException(
                f"{where}: {optimizer!r} is not a torch.optim.Optimizer; return one, a list of them, a pair of lists "
                f"(optimizers, schedulers), a dict with 'optimizer', or None"
            )
    return optimizers, [parse_scheduler(given, where, steps_by_hand, steps_its_way) for given in schedulers]


#: What a training step comes to: each loss, ``()``, and what it trains; None where there is nothing to train.
Steps: TypeAlias = Sequence[tuple[torch.Tensor | None, OptimizerSlot]]


def route(output: Any, slots: Mapping[str | None, OptimizerSlot], divisor: int) -> list[tuple[Any, OptimizerSlot]]:
    """What a training step returned, as (loss, slot) pairs; each loss divided by its window.

    Args:
        output: A loss, a dict, dataclass or the like with `loss`, an `OptimizationStep`, a list or tuple of them, or
            None.
        slots: The optimizers by name; one plain optimizer has the name None.
        divisor: The window of the plain optimizer, in batches.

    Raises:
        MisconfigurationException: the output does not fit the optimizers.
    """
    plain = slots.get(None)
    if plain is not None:
        loss = output if isinstance(output, torch.Tensor) else loss_of(output, otherwise="none at all")
        if output is None or loss is None:
            plain.warn_of_none()
            return [(None, plain)]
        if loss is not output and (is_step(output) or not isinstance(loss, torch.Tensor)):
            raise MisconfigurationException(
                f"the training step must return a tensor (no number, as from .item()), a dict or dataclass with "
                f"'loss', or None; got {_describe(output)}. `OptimizationStep` is for a configuration with named "
                f"`optimizers`"
            )
        if not (loss.requires_grad or plain.own_backward) or loss.numel() != 1 or loss.is_complex():
            raise _no_loss(loss, "the loss that training_step returned")
        return [(loss if divisor == 1 else loss / divisor, plain)]
    steps = named_steps(output)
    if steps is None:
        raise MisconfigurationException(
            f"with several optimizers ({', '.join(map(repr, slots))}) the loss must be an OptimizationStep or a list "
            f"of them, which says what each loss trains; got {_describe(output)}"
        )
    if not steps:
        raise MisconfigurationException(
            f"the model returned an empty list of optimization steps; return at least one of {list(slots)}"
        )
    found: dict[str, tuple[torch.Tensor, OptimizerSlot]] = {}
    for step in steps:
        loss, name, slot = step.loss, step.name, slots.get(step.name)
        if slot is None:
            raise MisconfigurationException(
                f"OptimizationStep(name={name!r}): there is no such optimizer; there are "
                f"{list(slots)}{nearest(name, map(str, slots))}"
            )
        if name in found:
            raise MisconfigurationException(
                f"OptimizationStep(name={name!r}) stands twice in one list; add the losses up into one"
            )
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad or loss.numel() != 1 or loss.is_complex():
            raise _no_loss(loss, f"the loss of OptimizationStep(name={name!r})")
        found[name] = (loss if slot.window == 1 else loss / slot.window, slot)
    return list(found.values())


def outputs_of(output: Any, steps: list[tuple[Any, OptimizerSlot]]) -> Any:
    """What `on_train_batch_end` gets: a dict with the loss (the window's share of it), detached; empty for None.

    By hand what is no tensor is handed on as it was returned.
    """
    if isinstance(output, torch.Tensor):  # asked first: nearly always so
        return {"loss": (steps[0][0] if steps else output).detach()}
    if output is None or not steps:  # manual optimization: whatever the module likes
        return {} if output is None else output
    if steps[0][1].name is not None:
        named = {f"{slot.name}/loss": loss.detach() for loss, slot in steps}
        return {"loss": torch.stack(list(named.values())).sum(), **named}
    loss, own = None if steps[0][0] is None else steps[0][0].detach(), loss_of(output)
    if isinstance(output, Mapping):
        return {**output, "loss": loss}
    return map_tensors(output, lambda tensor: loss if tensor is own else tensor)


def _no_loss(loss: Any, which: str) -> MisconfigurationException:
    """A loss is one number from which a backward pass can begin, and this is not."""
    is_tensor = isinstance(loss, torch.Tensor)
    found = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}" if is_tensor else repr(loss)
    graph = " without a graph (detached, under no_grad, or frozen?)" if is_tensor and not loss.requires_grad else ""
    return MisconfigurationException(
        f"{which} must be one real number with a graph to the parameters, got {found}{graph}. Reduce it with .mean() "
        f"or .sum(), and return it as it was computed; where nothing is to be trained, return None, or leave the step "
        f"out"
    )


def _describe(output: Any) -> str:
    if isinstance(output, (list, tuple)) and not is_step(output):
        return f"{type(output).__name__} of {sorted({type(item).__name__ for item in output})}"
    return type(output).__name__ + (f" with the keys {list(output)}" if isinstance(output, Mapping) else "")
