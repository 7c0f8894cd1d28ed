"""Averaging gradients over the ranks in a few large messages, and overwriting tensors by rank zero's.

DDP does this by itself for one optimizer; here it is for several named optimizers and for those that step by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

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

    def send(self) -> Callable[[], None]:
        """Begin to average; the returned function waits for the means.

        Collective: all ranks send the same buckets in the same order.
        """
        missing = [index for index, parameter in enumerate(self.parameters) if parameter.grad is None]
        flags = self._all_there
        if missing:
            flags = torch.tensor([parameter.grad is not None for parameter in self.parameters]).to(flags)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in self.parameters]
        message = _flatten_dense_tensors([*parts, flags])  # type: ignore[no-untyped-call]  # torch's
        message.div_(dist.get_world_size())  # before the sum, which could overflow half precision
        *means, flags = _unflatten_dense_tensors(message, [*parts, flags])  # type: ignore[no-untyped-call]
        for parameter, mean in zip(self.parameters, means, strict=True):
            if parameter.grad is not None:
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


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks. Collective: the same parameters in the same order on all.

    Args:
        parameters: Those that require gradients, or have one, take part.
    """
    for receive in [bucket.send() for bucket in gradient_buckets(parameters)]:
        receive()


class TravellingGradients:
    """Sends the gradients of named optimizers while their backward passes still run.

    A bucket is sent when its last gradient is there and those before it are sent: in one order on all ranks, even
    where the ranks' models list their losses in different orders.

    Args:
        optimizers: The parameters of each, by name.
    """

    def __init__(self, optimizers: Mapping[str | None, Iterable[torch.nn.Parameter]]):
        self._buckets = {name: gradient_buckets(parameters) for name, parameters in optimizers.items()}
        #: Whose gradients travel during the backward passes of the batch in work.
        self.expected: Collection[str | None] = ()
        self._waiting: list[GradientBucket] = []  # in the order in which they are sent
        self._sent: list[Callable[[], None]] = []
        self._lacking: dict[GradientBucket, int] = {}  # how many gradients are not there yet
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch's
                lambda _, bucket=bucket: self._one_more(bucket)
            )
            for of_one in self._buckets.values()
            for bucket in of_one
            for parameter in bucket.parameters
        ]

    def expect(self, names: Collection[str | None]) -> None:
        """One more backward pass for each of these optimizers fills its window: send what it leaves."""
        self.expected = names
        self._waiting = [bucket for name, of_one in self._buckets.items() if name in names for bucket in of_one]
        self._lacking = {bucket: len(bucket.parameters) for bucket in self._waiting}
        self._sent = []

    def _one_more(self, bucket: GradientBucket) -> None:
        if bucket in self._lacking:
            self._lacking[bucket] -= 1
            while self._waiting and not self._lacking[self._waiting[0]]:
                self._sent.append(self._waiting.pop(0).send())

    def finish(self) -> None:
        """Send what got no gradient, and wait for all. Collective."""
        self._sent += [bucket.send() for bucket in self._waiting]
        self.expected, self._waiting, self._lacking = (), [], {}
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
