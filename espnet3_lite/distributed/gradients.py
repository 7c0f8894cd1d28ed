"""Averaging gradients over the ranks in a few large messages, and overwriting tensors by rank zero's.

DDP does this by itself for one optimizer; here it is for several named optimizers and for those that step by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

# What DDP itself is made of: torch has no public names for it. `torch.cat` and views take half as long again.
from torch._C._distributed_c10d import _broadcast_coalesced, _compute_bucket_assignment_by_size
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

#: As large as DDP's own: large enough to use the network well, small enough for a few to be under way at once.
BUCKET_BYTES = 25 * 1024 * 1024


class GradientBucket:
    """Some parameters whose gradients travel in one message, with a flag for each that says whether there is one.

    A parameter without a gradient on this rank counts as zero where another rank has one, and stays without where no
    rank has one: an optimizer must not move what was not used. Once sent, the gradients are views of the message, so
    that there is no second copy of them and nothing to copy back.

    Args:
        parameters: Of one dtype, on one device; the same ones in the same order on all ranks.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]):
        self.parameters = parameters
        self._all_there = torch.ones(len(parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        self._ranks = dist.get_world_size()

    def send(self) -> Callable[[], None]:
        """Begin to average; the returned function waits for the means.

        Collective: all ranks send the same buckets in the same order.
        """
        gradients = [parameter.grad for parameter in self.parameters]
        missing = [index for index, gradient in enumerate(gradients) if gradient is None]
        there = self._all_there
        flags = torch.tensor([gradient is not None for gradient in gradients]).to(there) if missing else there
        pairs = zip(self.parameters, gradients, strict=True)
        parts = [torch.zeros_like(p) if gradient is None else gradient.to_dense() for p, gradient in pairs] + [flags]
        message = _flatten_dense_tensors(parts)  # type: ignore[no-untyped-call]  # torch's
        message.div_(self._ranks)  # before the sum, which could overflow half precision
        *means, flags = _unflatten_dense_tensors(message, parts)  # type: ignore[no-untyped-call]
        for parameter, gradient, mean in zip(self.parameters, gradients, means, strict=True):
            if gradient is not None:
                parameter.grad = mean
        work = dist.all_reduce(message, async_op=True)  # collective: see the docstring

        def receive() -> None:
            work.wait()
            used = flags.tolist() if missing else []  # a CPU-GPU sync point
            for index in missing:
                if used[index]:
                    self.parameters[index].grad = means[index]

        return receive


def gradient_buckets(parameters: Iterable[torch.nn.Parameter]) -> list[GradientBucket]:
    """The buckets of those parameters that require gradients, or have one: they may be frozen within a window. One that
    comes twice counts once.

    The last parameters come first, since a backward pass reaches them first.
    """
    trained = [p for p in dict.fromkeys(parameters) if p.requires_grad or p.grad is not None][::-1]
    if not trained:
        return []
    groups, _ = _compute_bucket_assignment_by_size([*trained], [BUCKET_BYTES])  # of one dtype and device each
    return [GradientBucket([trained[index] for index in group]) for group in groups]


class TravellingGradients:
    """Sends the gradients of named optimizers while their backward passes still run.

    Optimizers that step in the same batch share buckets. A bucket is sent when its last gradient is there and those
    before it are sent: in one order on all ranks, even where the ranks' models list their losses in different orders.
    The messages leave earliest where the losses stand in the order of the optimizers.

    Args:
        optimizers: The parameters of each, by name.
    """

    def __init__(self, optimizers: Mapping[str | None, Iterable[torch.nn.Parameter]]):
        self._parameters = {name: [*parameters] for name, parameters in optimizers.items()}
        owners = Counter(chain.from_iterable(self._parameters.values()))
        self._in_common = max(owners.values(), default=1) > 1
        #: By who steps together, and whether `apart`: in the order of sending, and that of each parameter.
        self._buckets: dict[Any, tuple[list[GradientBucket], dict[torch.nn.Parameter, GradientBucket]]] = {}
        self._sent: list[Callable[[], None]] = []
        self.expect(())
        # What several optimizers have gets a gradient in several passes, and is sent when all of them are over.
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._one_more)  # type: ignore[no-untyped-call]  # torch's
            for parameter, count in owners.items()
            if count == 1 and parameter.requires_grad
        ]

    def expect(self, names: Collection[str | None], apart: bool = False) -> None:
        """One more backward pass for each of these optimizers fills its window: send what it leaves.

        Args:
            names: The same on all ranks.
            apart: Each optimizer has buckets of its own, so that its gradients are averaged when its pass is over; not
                where optimizers have parameters in common.
        """
        #: Whose gradients travel during the backward passes of the batch in work.
        self.expected = tuple(name for name in self._parameters if name in names)
        key = self.expected, apart
        if key not in self._buckets:
            groups = [self._parameters[name] for name in self.expected]
            if self._in_common or not apart:
                groups = [[*chain.from_iterable(reversed(groups))]]  # of a group the last ones come first
            made = [bucket for group in groups for bucket in gradient_buckets(group)]
            self._buckets[key] = made, {parameter: bucket for bucket in made for parameter in bucket.parameters}
        buckets, self._bucket_of = self._buckets[key]
        self._waiting = [*buckets]
        self._lacking = {bucket: len(bucket.parameters) for bucket in buckets}  # how many gradients are not there yet

    def _one_more(self, parameter: torch.nn.Parameter) -> None:
        bucket = self._bucket_of.get(parameter)
        if bucket is not None:
            self._lacking[bucket] -= 1
            while self._waiting and not self._lacking[self._waiting[0]]:
                self._sent.append(self._waiting.pop(0).send())

    def finish(self) -> None:
        """Send what got no gradient, and wait for all. Collective."""
        self._sent += [bucket.send() for bucket in self._waiting]
        self.expected, self._waiting, self._bucket_of = (), [], {}
        self.settle()

    def settle(self) -> None:
        """Wait for what is under way; what has not been sent stays this rank's own until `finish`."""
        for receive in self._sent:
            receive()
        self._sent = []

    def close(self) -> None:
        """Leave the parameters alone."""
        for hook in self._hooks:
            hook.remove()


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors by rank zero's. All ranks call it with tensors of the same shapes in the same order."""
    each = [tensor.detach() for tensor in dict.fromkeys(tensors)]
    if each:
        # collective: see the docstring
        _broadcast_coalesced(dist.group.WORLD, each, BUCKET_BYTES, 0)  # type: ignore[arg-type]  # in a group
