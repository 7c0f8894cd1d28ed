"""What users' `configure_optimizers` gave, and how the layers fit to it: what would train wrongly, or not at all.

Found before the first step: parameters of another model, closures where there can be none, a scheduler that would step
twice, parameters that several optimizers step, and, with several ranks, layers whose weights would part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from espnet3_lite.checks.kept_states import warn_of_unsaved_states
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, refuse
from espnet3_lite.optim.manual_optimization import demands_closure

if TYPE_CHECKING:
    from espnet3_lite.optim.slots import OptimizerSlot
    from espnet3_lite.trainer.trainer import Trainer


#: Whole numbers of as many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(parameter: torch.Tensor) -> torch.Tensor:
    numbers = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    return numbers.view(_BITS[numbers.element_size()]).sum(dtype=torch.int64)


def check_optimizers(trainer: Trainer) -> None:
    """Look at what a fit's module gave.

    Raises:
        MisconfigurationException: an optimizer trains nothing of the module's, or demands a closure where there can be
            none; a scheduler stands there twice, and the loop steps it.
    """
    _refuse_unfit_optimizers(trainer)
    if trainer.plan.automatic_optimization:
        _refuse_twice(trainer)
    _warn_of_shared_parameters(trainer)
    warn_of_unsaved_states(trainer)
    if trainer.world_size > 1:
        _warn_of_weights_that_part(trainer)


def as_many(slots: Mapping[Any, OptimizerSlot], given: Any) -> Iterator[tuple[OptimizerSlot, torch.optim.Optimizer]]:
    """Each optimizer's place with what a program sets there: ``trainer.optimizers = [...]``.

    Args:
        slots: The places, by name.
        given: What was set.

    Raises:
        MisconfigurationException: it is no list of optimizers, or of another length.
    """
    problem = ""
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, torch.optim.Optimizer) for one in given):
        problem = f"{given!r}: it must be a list of optimizers"
    elif len(given) != len(slots):
        problem = f"{len(given)} of them"
    names = ", ".join(type(slot.optimizer).__name__ for slot in slots.values()) or "none: they are made when fit begins"
    refuse("trainer.optimizers = ", (problem, f"{problem}. What is set takes the places of those that there are, one "
           f"each, and there {'is' if len(slots) == 1 else 'are'} {len(slots)} ({names}). To train with another number "
           f"return them from configure_optimizers"))  # fmt: skip
    return zip(slots.values(), given, strict=True)


def _refuse_unfit_optimizers(trainer: Trainer) -> None:
    own = set(map(id, trainer.lightning_module.parameters()))
    scaled = trainer.precision_plugin.scaler is not None
    for slot in trainer.plan.slots.values():
        kind, shared, parameters = type(slot.optimizer).__name__, slot.name is not None, slot.parameters
        among = f" among the other optimizers, as optimizers.{slot.name}" if shared else " with precision='16-mixed'"
        refuse(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers(): ",
            (parameters and own.isdisjoint(map(id, parameters)), f"none of the parameters of {kind} is one of the "
             f"module's. Was it made for another model, for a copy, or before the parameters were replaced? Make it in "
             f"configure_optimizers, from self.parameters()"),
            (demands_closure(slot.optimizer) and (scaled or shared), f"{kind}{among} evaluates its loss several times "
             f"a step, which goes neither with a gradient scaler nor where several optimizers share one forward pass"),
        )  # fmt: skip


def _refuse_twice(trainer: Trainer) -> None:
    """Each scheduler that was given steps once, also where another one (`SequentialLR`) steps it."""
    seen: set[int] = set()
    for config in trainer.plan.schedulers:
        for scheduler in _with_inner(config.scheduler):
            if id(scheduler) in seen:
                raise MisconfigurationException(
                    f"{type(trainer.lightning_module).__name__}.configure_optimizers() returned the same "
                    f"{type(scheduler).__name__} twice, which would step twice each time. Return it once"
                )
            seen.add(id(scheduler))


def _with_inner(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        yield from _with_inner(inner)


def _warn_of_shared_parameters(trainer: Trainer) -> None:
    """Two optimizers with a parameter both step it, each with moments of its own."""
    names = {id(parameter): name for name, parameter in trainer.lightning_module.named_parameters()}
    owner: dict[int, Any] = {}
    for key, slot in trainer.plan.slots.items():
        shared: dict[Any, list[str]] = {}
        for parameter in slot.parameters:
            if (other := owner.setdefault(id(parameter), key)) != key:
                shared.setdefault(other, []).append(names.get(id(parameter), "one outside the module"))
        for other, found in shared.items():
            rank_zero_warn(
                f"the optimizers {other!r} and {key!r} have {len(found)} parameter{'s' * (len(found) > 1)} in common, "
                f"{', '.join(found[:3])}{' ...' * (len(found) > 3)}: each of them steps it. Give each parameter to one "
                f"optimizer, unless this was on purpose"
            )


def _warn_of_weights_that_part(trainer: Trainer) -> None:
    """Layers that change their own weights in the forward pass, by the rank's own batch."""
    for name, part in trainer.lightning_module.named_modules():
        if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag) and part.max_norm is not None:
            rank_zero_warn(
                f"{type(part).__name__} {name!r} has max_norm={part.max_norm}: its forward pass shortens the rows that "
                f"this rank's batch uses, on this rank alone, so that the ranks' weights part. Leave max_norm out, and "
                f"shorten the rows in on_train_batch_end, on all ranks alike"
            )


def _warn_of_late_parameters(trainer: Trainer) -> None:
    """Say once, after an epoch, which parameters the module has got since its optimizers were made, and none trains."""
    trained = {id(parameter) for slot in trainer.plan.slots.values() for parameter in slot.parameters}
    late = {
        name: parameter
        for name, parameter in trainer.lightning_module.named_parameters()
        if parameter.requires_grad and id(parameter) not in trained and parameter not in trainer.plan.built
    }
    if late:
        trainer.plan.built.update(late.values())
        rank_zero_warn(
            f"no optimizer trains {', '.join(list(late)[:5])}{' ...' if len(late) > 5 else ''}, which the module got "
            f"after configure_optimizers. Make them in __init__ or configure_model (torch.nn.LazyLinear and its like "
            f"find their size in the first batch), or call optimizer.add_param_group"
        )


def look_at_weights(trainer: Trainer) -> None:
    """After an epoch: say which parameters no optimizer knows, and, with DDP, that the ranks' weights have parted.

    Collective: all ranks end an epoch. The sums are those of the numbers' bits, which no order of adding changes.
    """
    _warn_of_late_parameters(trainer)
    loop, by_hand = trainer.fit_loop, not trainer.plan.automatic_optimization
    if loop.epoch == 0:
        warn_of_unsaved_states(trainer)  # and of what a hook has made since
    if by_hand and trainer.plan.slots and loop.epoch == loop.global_step == 0 and loop.batches_done:
        rank_zero_warn(
            f"manual optimization: in {loop.batches_done} batches no `step()` of what self.optimizers() gives was "
            f"called, so that `global_step` is 0, and no checkpoint is saved. A step by another method (SAM's "
            f"`first_step`), or of an optimizer that configure_optimizers did not return, is not counted"
        )
    if trainer.world_size == 1 or trainer.strategy.name != "ddp":
        return
    named = trainer.lightning_module.named_parameters()
    sums = {name: _sum_of_bits(parameter).to(trainer.device) for name, parameter in named if not is_lazy(parameter)}
    mine = torch.stack(list(sums.values())).tolist() if sums else []
    by_rank = trainer.strategy.gather_objects(mine)  # collective
    parted = [name for name, *found in zip(sums, *by_rank, strict=True) if len(set(found)) > 1]
    if parted:
        rank_zero_warn(
            f"the ranks' weights are no longer the same: {', '.join(parted[:3])}{' ...' * (len(parted) > 3)}. "
            f"Something changes them on one rank alone, or by each rank's own batch: a forward pass (an embedding's "
            f"max_norm), or code such as `if trainer.is_global_zero:`. Rank 0's are validated and saved"
        )
