"""What a batch is made of: the one place that walks through it, to move it, to convert it and to measure it.

A batch is any nesting of mappings, sequences, named tuples, dataclasses, attrs classes and objects with a method `to`.
This file knows nothing but torch, so that every room may use it.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence


def map_tensors(data: Any, function: Callable[[torch.Tensor], Any], whole: Callable[[Any], Any] | None = None) -> Any:
    """Apply a function to every tensor in a batch. The batch itself is not changed; its containers are copied.

    Args:
        data: Any nesting of containers. What is neither a container nor a tensor stays.
        function: From a tensor to what takes its place.
        whole: What becomes of an object that has a method `to` of its own and is no tensor; by default it is taken
            apart like any other container.

    Example:
        >>> map_tensors({"x": torch.zeros(1), "names": ["a"]}, lambda tensor: tensor + 1)
        {'x': tensor([1.]), 'names': ['a']}
    """
    if isinstance(data, torch.Tensor):
        return function(data)
    if whole is not None and callable(getattr(data, "to", None)):
        return whole(data)
    values, rebuild = _take_apart(data)
    return rebuild([map_tensors(value, function, whole) for value in values]) if rebuild is not None else data


def tensors_in(data: Any, kind: type | tuple[type, ...] = torch.Tensor) -> Iterator[Any]:
    """All tensors of a batch, or all objects of another `kind`, in its order."""
    if isinstance(data, kind):
        yield data
    else:
        for value in _take_apart(data)[0]:
            yield from tensors_in(value, kind)


def move(batch: Any, device: torch.device) -> Any:
    """The batch on a device; asynchronously from pinned memory. An object that has a method `to` moves itself."""

    def itself(data: Any) -> Any:
        moved = data.to(device)
        return data if moved is None else moved  # it moved in place and returned nothing

    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"), itself)


class OnItsWay:
    """A batch whose copy to a GPU has begun on a stream of its own, beside what the GPU computes meanwhile.

    The host does not wait for the copy, if the batch is in pinned memory (``DataLoader(pin_memory=True)``).

    Args:
        device: The GPU.
        stream: Where the copies of all batches run, one after another.
        batch: In main memory.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream, batch: Any):
        # Of what was launched so far an object's own `to` may use a result, and memory that nobody has recorded.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._batch = move(batch, device)
        self._device, self._copied = device, stream.record_event()

    def arrive(self) -> Any:
        """The batch on the GPU. What is launched from now on runs after its copy; the host does not wait."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(self._copied)
        for tensor in tensors_in(self._batch):
            if tensor.is_cuda and tensor.layout == torch.strided:  # sparse ones cannot be recorded
                tensor.record_stream(computing)  # their memory serves no other copy before the step is over
        return self._batch


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies to a GPU; None for another device, to which the host copies by itself."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor (a DTensor), put together on all ranks: collective. Any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def batch_size_of(batch: Any) -> int:
    """The first dimension of the batch's first tensor; of packed sequences, how many there are; 1 without a tensor.

    >>> batch_size_of((["a", "b"], {"x": torch.zeros(2, 3)}))
    2
    """
    first = next(tensors_in(batch, (torch.Tensor, PackedSequence)), None)
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    return 1 if first is None or not first.dim() else int(first.shape[0])


def loss_of(output: Any, otherwise: Any = None) -> Any:
    """A step's loss: the output itself where it is a tensor, else its entry, field or attribute of this name.

    >>> loss_of({"loss": torch.tensor(1.0), "accuracy": 0.5})
    tensor(1.)
    """
    if isinstance(output, torch.Tensor):
        return output
    return output.get("loss", otherwise) if isinstance(output, Mapping) else getattr(output, "loss", otherwise)


def _take_apart(data: Any) -> tuple[Iterable[Any], Callable[[list[Any]], Any] | None]:
    """The parts of a container, and how to put others in their place; no parts and None for what is no container."""
    if type(data) is dict:
        return data.values(), lambda values: dict(zip(data, values, strict=True))
    if type(data) in (list, tuple):
        return data, type(data)
    if isinstance(data, PackedSequence):  # its `batch_sizes` belong to the CPU and are no part of the batch's numbers
        parts = (data.data, data.sorted_indices, data.unsorted_indices)
        return parts, lambda values: PackedSequence(values[0], data.batch_sizes, *values[1:])
    if isinstance(data, Mapping):
        keys = list(data.keys())  # to iterate over a TensorDict itself gives its rows
        return [data[key] for key in keys], lambda values: _changed(data, keys, values, operator.setitem)
    if isinstance(data, tuple):
        make = getattr(data, "_make", type(data))  # of a named tuple
        return data, make
    if isinstance(data, MutableSequence) and not isinstance(data, bytearray):
        return data, lambda values: _changed(data, range(len(data)), values, operator.setitem)
    names = _attributes(data)
    if not names:
        return (), None
    # An object's own `__setattr__` may refuse: of frozen classes.
    return [getattr(data, name) for name in names], lambda values: _changed(data, names, values, object.__setattr__)


def _attributes(data: Any) -> list[str]:
    """The attributes that are parts of a batch: dataclasses', attrs' and pydantic's fields; all where it has a `to`."""
    if isinstance(data, type) or isinstance(data, torch.nn.Module):
        return []
    if dataclasses.is_dataclass(data):
        names: Iterable[str] = (field.name for field in dataclasses.fields(data))
    elif hasattr(type(data), "__attrs_attrs__"):
        names = (field.name for field in type(data).__attrs_attrs__)
    elif isinstance(fields := getattr(type(data), "model_fields", None), Mapping):  # pydantic's models
        names = fields
    elif callable(getattr(data, "to", None)):
        names = getattr(data, "__dict__", ())
    else:
        return []
    return [name for name in names if hasattr(data, name)]


def _changed(data: Any, names: Iterable[Any], values: list[Any], put: Callable[[Any, Any, Any], None]) -> Any:
    """A copy, of the same class and with the same attributes, in which other values were put under these names."""
    clone = copy.copy(data)
    for name, value in zip(names, values, strict=True):
        put(clone, name, value)
    return clone
