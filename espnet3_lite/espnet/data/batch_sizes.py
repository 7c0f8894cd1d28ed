"""How a sorted list of utterances is cut into batches; no files, no settings. Used by `samplers.py`."""

from collections.abc import Callable


def equal_parts(keys: list[str], batch_size: int, drop_last: bool) -> list[list[str]]:
    """`keys` in consecutive batches: of `batch_size` exactly, or of about it and never fewer."""
    count = max(len(keys) // batch_size, 1)
    if drop_last:
        return [keys[i * batch_size : (i + 1) * batch_size] for i in range(count)]
    return [keys[i * len(keys) // count : (i + 1) * len(keys) // count] for i in range(count)]


def folded_sizes(keys: list[str], size_from: Callable[[str], int], drop_last: bool) -> list[int]:
    """Sizes of consecutive batches, each decided by its first (shortest) utterance."""
    sizes: list[int] = []
    start = 0
    while start < len(keys):
        size = size_from(keys[start])
        if drop_last and sizes and start + size > len(keys):
            break  # the only batch stays even where it is not full: a sampler without batches is of no use
        sizes.append(min(size, len(keys) - start))
        start += size
    return sizes


def filled_sizes(bins: list[int], batch_bins: int, min_batch_size: int, drop_last: bool, padding: bool) -> list[int]:
    """Sizes of consecutive batches that each just exceed `batch_bins`, the last one excepted."""
    sizes: list[int] = []
    size = total = 0
    for cost in bins:
        size += 1
        total = size * cost if padding else total + cost
        if total > batch_bins and size >= min_batch_size:
            sizes.append(size)
            size = total = 0
    if size and not (drop_last and sizes):
        sizes.append(size)
    return sizes


def spread_small_last(sizes: list[int], min_batch_size: int) -> list[int]:
    """Where the last batch is smaller than allowed, its utterances go to the others, from the end on."""
    if len(sizes) > 1 and sizes[-1] < min_batch_size:
        *sizes, last = sizes
        for i in range(last):
            sizes[-1 - i % len(sizes)] += 1
    return sizes


def cut(keys: list[str], sizes: list[int], sort_in_batch: str, sort_batch: str) -> list[list[str]]:
    """`keys`, sorted by ascending length, in consecutive batches of these sizes, turned round as asked."""
    batches, start = [], 0
    for size in sizes:
        batch = keys[start : start + size]
        batches.append(batch if sort_in_batch == "ascending" else batch[::-1])
        start += size
    return batches if sort_batch == "ascending" else batches[::-1]
