"""The mean of several models' state dicts, in little memory: how tensors are combined.

Which files they come from, and where the result goes, is `average_files`'s business.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]

#: Sums take at least so many bytes at a time: where that is much, the model is small.
_SMALLEST_WINDOW = 2**21

#: Larger models are summed in windows whose sums take 1/96 of the model's size. A few such blocks are alive
#: at a time: the sums, the copy that adding in another type makes, and what the allocator keeps.
_WINDOWS = 96


@torch.no_grad()
def average_state_dicts(names: Sequence[str], readers: Sequence[Callable[[], StateDict]]) -> StateDict:
    """Combine the state dicts that `readers` return, the best first, into one.

    Floating and complex tensors are averaged, summed in float64 (complex128), and returned in their own
    dtype. Integer tensors are summed in int64. Boolean tensors, and values that are no tensors, are the first
    one's. Keys that name the same memory in all state dicts (tied weights) name the same tensor in the
    result.

    Each reader is called anew for every window of the model, and its tensors are let go after it: when they
    are mapped from a file, only a window of one of them is in memory at a time, beside the output.

    Args:
        names: What to call each state dict in an error: its file.
        readers: For each name, a function that returns the state dict, on the CPU.

    Raises:
        KeyError: If the keys differ.
        ValueError: If a value's shape or kind differs.

    >>> one = {"weight": torch.tensor([1.0, 2.0]), "batches": torch.tensor(3)}
    >>> two = {"weight": torch.tensor([3.0, 6.0]), "batches": torch.tensor(4)}
    >>> average_state_dicts(["one", "two"], [lambda: one, lambda: two])
    {'weight': tensor([2., 4.]), 'batches': tensor(7)}
    """
    owners = _owners(names, readers)
    result, summed = _start(readers[0](), owners)
    varied: set[str] = set()
    for window in _windows(summed):
        varied |= _fill_window(window, readers, summed)
    integers = {key: value for key, value in summed.items() if value.dtype == torch.int64}
    constant = [key for key, value in integers.items() if value.any() and key not in varied]
    if constant and len(readers) > 1:
        logger.warning(
            "Integer tensors are summed, as ESPnet3 does. These were the same in all %d files, and are %d times as "
            "large in the average: %s. Where one is a table of constants, take it from one of the files: %s",
            len(readers), len(readers), ", ".join(constant), names[0],
        )  # fmt: skip
    return result


def _owners(names: Sequence[str], readers: Sequence[Callable[[], StateDict]]) -> dict[str, str]:
    """Check that all state dicts have one layout; name for each key the first key that shares its memory."""
    layout: dict[str, tuple[object, str]] = {}
    owner_in_each: dict[str, list[str]] = {}
    for name, reader in zip(names, readers, strict=True):
        state_dict = reader()
        this_layout = layout_of(state_dict)
        if not layout:
            layout = this_layout
            owner_in_each = {key: [] for key in layout}
        _check_layout(names[0], layout, name, this_layout)
        first_key_at: dict[tuple[object, ...], str] = {}
        for key in layout:
            owner_in_each[key].append(first_key_at.setdefault(_memory(key, state_dict[key]), key))
    # Tied means tied in every file: the keys whose owners agree everywhere.
    first_key_of: dict[tuple[str, ...], str] = {}
    return {key: first_key_of.setdefault(tuple(owners), key) for key, owners in owner_in_each.items()}


def layout_of(state_dict: StateDict) -> dict[str, tuple[object, str]]:
    """Each key's shape and kind of value: equal for models that can be averaged."""
    return {key: _shape_and_kind(value) for key, value in state_dict.items()}


def _shape_and_kind(value: object) -> tuple[object, str]:
    if not isinstance(value, torch.Tensor):
        return None, "no tensor"
    if value.is_floating_point() or value.is_complex():
        return tuple(value.shape), "floating" if value.is_floating_point() else "complex"
    return tuple(value.shape), "boolean" if value.dtype == torch.bool else "integer"


def _check_layout(
    first_name: str, first: dict[str, tuple[object, str]], name: str, this: dict[str, tuple[object, str]]
) -> None:
    if this.keys() != first.keys():
        missing, extra = sorted(first.keys() - this.keys()), sorted(this.keys() - first.keys())
        raise KeyError(
            f"{name}: its keys differ from those of {first_name}: missing {missing}, unexpected {extra}; "
            "only checkpoints of one model can be averaged"
        )
    for key, expected in first.items():
        if this[key] != expected:
            raise ValueError(
                f"{name}: {key!r} has shape {this[key][0]} ({this[key][1]}), but {expected[0]} "
                f"({expected[1]}) in {first_name}; only checkpoints of one model can be averaged"
            )


def _memory(key: str, value: object) -> tuple[object, ...]:
    """Equal for tensors that are the same elements of the same memory; any other value is its own."""
    if not isinstance(value, torch.Tensor) or value.numel() == 0:
        return (key,)
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _start(first: StateDict, owners: dict[str, str]) -> tuple[StateDict, dict[str, torch.Tensor]]:
    """Return the result with its sums still empty, and the tensors in it that are to be filled."""
    result: StateDict = {}
    summed: dict[str, torch.Tensor] = {}
    for key, value in first.items():
        if owners[key] != key:
            result[key] = result[owners[key]]
        elif not isinstance(value, torch.Tensor):
            result[key] = value
        elif value.dtype == torch.bool:
            result[key] = value.detach().clone()
        else:
            floating = value.is_floating_point() or value.is_complex()
            # The system gives memory only for the pages that are written.
            summed[key] = torch.empty_like(value, dtype=value.dtype if floating else torch.int64)
            result[key] = summed[key]
    return result, summed


def _windows(tensors: dict[str, torch.Tensor]) -> Iterator[list[tuple[str, int, int]]]:
    """Cut the tensors into lists of ``(key, first row, last row + 1)`` whose sums fit the limit."""
    limit = max(sum(value.nbytes for value in tensors.values()) // _WINDOWS, _SMALLEST_WINDOW)
    window, used = [], 0
    for key, value in tensors.items():
        rows = value.shape[0] if value.ndim else 1
        if value.numel() == 0:
            continue
        row_bytes = value.numel() // rows * _wide(value.dtype).itemsize
        start = 0
        while start < rows:
            stop = min(rows, start + max(1, (limit - used) // row_bytes))
            window.append((key, start, stop))
            used += (stop - start) * row_bytes
            start = stop
            if used + row_bytes > limit:
                yield window
                window, used = [], 0
    if window:
        yield window


def _rows(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return tensor[start:stop] if tensor.ndim else tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which a tensor is summed."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


def _fill_window(
    window: list[tuple[str, int, int]],
    readers: Sequence[Callable[[], StateDict]],
    summed: dict[str, torch.Tensor],
) -> set[str]:
    """Combine one window of all state dicts and put it in its place in the result.

    Returns:
        The keys of integer tensors that differ between the files.
    """
    varied: set[str] = set()
    sums: list[torch.Tensor] = []
    first: list[torch.Tensor] = []
    for reader in readers:
        state_dict = reader()
        pieces = [_rows(state_dict[key], start, stop) for key, start, stop in window]
        if not sums:
            sums = [piece.to(_wide(piece.dtype), copy=True) for piece in pieces]
            first = [total.clone() if total.dtype == torch.int64 else total for total in sums]
        else:
            for (key, _, _), total, piece, one in zip(window, sums, pieces, first, strict=True):
                if one is not total and not torch.equal(one, piece):
                    varied.add(key)
                total.add_(piece.to(total.dtype))
        # Before the next file is mapped, so that this one's pages go first.
        del state_dict, pieces
    for (key, start, stop), total in zip(window, sums, strict=True):
        if total.is_floating_point() or total.is_complex():
            total.div_(len(readers))
        _rows(summed[key], start, stop).copy_(total)
    return varied
