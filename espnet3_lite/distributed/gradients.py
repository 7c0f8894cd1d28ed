"""Averaging tensors over the ranks in a few large messages: gradients of named optimizers, buffers, first parameters.

DDP does this by itself for one optimizer, overlapped with the backward pass; here it is for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

#: As large as DDP's own: large enough to use the network well, small enough for a few to be under way at once.
BUCKET_BYTES = 25 * 1024 * 1024


def average_gradients(parameters: Iterable[torch.nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each gradient by its mean over the ranks. All ranks call it with the same parameters in the same order.

    A parameter without a gradient on this rank counts as zero where another rank has one, and stays without where no
    rank has one: an optimizer must not move what was not used. A bucket carries a flag for each of its parameters, so
    that this costs no message of its own.

    Args:
        parameters: Those that require gradients take part; one that comes twice counts once.
        bucket_bytes: The largest message, unless one parameter is larger.
    """
    trained = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    world_size = dist.get_world_size()
    under_way = []
    for bucket in buckets(trained, bucket_bytes):
        flags = torch.tensor([float(p.grad is not None) for p in bucket], dtype=bucket[0].dtype)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in bucket]
        flat = torch.cat([*(part.reshape(-1) for part in parts), flags.to(bucket[0].device, non_blocking=True)])
        flat.div_(world_size)  # before the sum, which could overflow half precision
        under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))  # collective: see the docstring
    for bucket, flat, work in under_way:
        work.wait()
        *means, used = flat.split([*(parameter.numel() for parameter in bucket), len(bucket)])
        missing = any(parameter.grad is None for parameter in bucket)
        anywhere = used.tolist() if missing else [1.0] * len(bucket)  # a CPU-GPU sync point, where some are missing
        for parameter, mean, is_used in zip(bucket, means, anywhere, strict=True):
            if is_used:
                _set_gradient(parameter, mean.view_as(parameter))


def _set_gradient(parameter: torch.nn.Parameter, mean: torch.Tensor) -> None:
    if parameter.grad is None or parameter.grad.is_sparse:
        parameter.grad = mean.clone()
    else:
        parameter.grad.copy_(mean)


def broadcast_tensors(tensors: Iterable[torch.Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Overwrite tensors by rank zero's. All ranks call it with tensors of the same shapes in the same order."""
    with torch.no_grad():
        for bucket in buckets(dict.fromkeys(tensors), bucket_bytes):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.broadcast(flat, src=0)  # collective: see the docstring
            for tensor, value in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(value.view_as(tensor))


def buckets(tensors: Iterable[torch.Tensor], bucket_bytes: int) -> Iterator[list[torch.Tensor]]:
    """Groups of tensors of one dtype on one device, in their order, each of at most `bucket_bytes` (or one tensor).

    >>> sizes = [3, 3, 3, 9, 1]
    >>> [[len(tensor) for tensor in bucket] for bucket in buckets([torch.zeros(size) for size in sizes], 24)]
    [[3, 3], [3], [9], [1]]
    """
    open_buckets: dict[tuple, list[torch.Tensor]] = {}
    filled: dict[tuple, int] = {}
    for tensor in tensors:
        kind, size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        if kind in open_buckets and filled[kind] + size > bucket_bytes:
            yield open_buckets.pop(kind)
        filled[kind] = size + (filled[kind] if kind in open_buckets else 0)
        open_buckets.setdefault(kind, []).append(tensor)
    yield from open_buckets.values()
