"""The mean of the models in several checkpoints: which files, what in them is the model's, how tensors are combined.

When this is done, and for which checkpoints, is `average_checkpoints.py`'s and the command line's business.
"""

from __future__ import annotations

import collections
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from espnet3_lite.checkpoint.files import load_checkpoint, save_checkpoint
from espnet3_lite.checkpoint.lightning_format import own_state
from espnet3_lite.exceptions import CheckpointError

logger = logging.getLogger(__name__)

StateDict = dict[str, Any]

_WRAPPER_PREFIX = "model."

#: So many elements are summed at a time: their sums stay in the processor's cache, and take little memory.
BLOCK = 2**16


def average_checkpoints(
    paths: Iterable[str | Path], output: str | Path | None = None, wrapper_prefix: str | None = None
) -> StateDict:
    """Average the models in several checkpoints into one state dict that loads into the user's model.

    Floating tensors are averaged (summed in float64) and keep their dtype; integer tensors are summed in
    int64, as ESPnet3 does; boolean ones are the best's; tied weights stay tied. Takes at most 1.2 times the
    model's size in memory, however many checkpoints there are; sharded ones are consolidated into temporary
    files first, which takes the model and its largest shard.

    A trainer's module may wrap the model, and then prefixes its keys with ``model.``: the prefix is stripped
    and the wrapper's other keys are left out. Our checkpoints say whether there is a wrapper
    (``checkpoint["loops"]["espnet3_lite"]["wrapper_prefix"]``). For a checkpoint that does not say, one is
    assumed where any key begins with ``model.``, with a warning when others do not, since a model may itself
    have a part of that name. A plain state dict is taken as it is.

    Args:
        paths: The best checkpoint first: files with a ``state_dict``, plain state dicts, or sharded folders.
        output: Where to save the result, or None.
        wrapper_prefix: ``"model."`` or ``""``, overriding what the checkpoints say. Default: None.

    Returns:
        The averaged state dict, on the CPU.

    Raises:
        KeyError: If the keys differ; names them and the file.
        TypeError: If `paths` is one path.
        ValueError: If a tensor's shape differs, or no path is given.
        CheckpointError: If none is left, or one is damaged.

    >>> folder = tempfile.mkdtemp()
    >>> for name, value in {"a": 1.0, "b": 2.0}.items():
    ...     save_checkpoint({"state_dict": {"weight": torch.tensor(value)}}, f"{folder}/{name}.ckpt")
    >>> average_checkpoints([f"{folder}/a.ckpt", f"{folder}/b.ckpt"], f"{folder}/average.pth")
    {'weight': tensor(1.5000)}
    >>> load_checkpoint(f"{folder}/average.pth")
    {'weight': tensor(1.5000)}
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"average_checkpoints({os.fspath(paths)!r}): give a list of paths, the best first")
    files = [Path(os.path.expanduser(path)) for path in paths]
    if not files:
        raise ValueError("no checkpoints to average: `paths` is empty")
    folder = Path(os.path.expanduser(output)).parent if output is not None else None
    averaged, _ = average_usable(files, folder, wrapper_prefix)
    if output is not None:
        save_checkpoint(averaged, output)
    return averaged


def average_usable(
    paths: Sequence[Path], folder: Path | None, wrapper_prefix: str | None = None, leave_out: bool = False
) -> tuple[StateDict, list[Path]]:
    """Average those of the checkpoints that are there.

    Args:
        paths: The best checkpoint first.
        folder: Where temporary files may go; made when missing. None: the system's folder for them.
        wrapper_prefix: As in `average_checkpoints`.
        leave_out: Leave out, with a warning, also what cannot be read and what is another model's: of several layouts
            the one that most of the files have counts, the best file's among equals.

    Returns:
        The averaged state dict, and the files that are in it.

    Raises:
        CheckpointError: None is left; or one cannot be read, unless `leave_out`.
        KeyError, ValueError: As `average_checkpoints`, unless `leave_out`.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    models: dict[Path, StateDict] = {}
    with tempfile.TemporaryDirectory(prefix=".averaging.", dir=folder) as scratch:
        for index, path in enumerate(paths):
            if not path.exists():
                logger.warning("%s was deleted meanwhile and is left out of the average", path)
                continue
            try:
                models[path] = _mapped_model(path, Path(scratch) / f"{index}.pth", wrapper_prefix)
            except CheckpointError as error:
                if not leave_out:
                    raise
                logger.warning("Left out of the average. %s", error)
        if leave_out and models:
            layouts = {path: tuple(sorted(_layout_of(model).items())) for path, model in models.items()}
            ((most, _),) = collections.Counter(layouts.values()).most_common(1)
            for path in [path for path, layout in layouts.items() if layout != most]:
                logger.warning("Left out of the average. %s: holds another model's weights than the others", path)
                del models[path]
        if not models:
            raise CheckpointError(f"no checkpoint to average is left of {', '.join(map(str, paths))}")
        return average_state_dicts({str(path): model for path, model in models.items()}), list(models)


def _mapped_model(path: Path, scratch_file: Path, wrapper_prefix: str | None) -> StateDict:
    """The model's state dict in a checkpoint, checked, and mapped from disk: it takes no memory of this process."""
    file = path
    if path.is_dir():
        from espnet3_lite.checkpoint import sharded  # torch.distributed.checkpoint is slow to import

        save_checkpoint(sharded.load_sharded(path, only="state_dict"), scratch_file)
        file = scratch_file
    checkpoint = load_checkpoint(file, mmap=True)
    state_dict = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"{path}: its state_dict is a {type(state_dict).__name__}, not a dict")
    prefix = _wrapper_prefix(path, checkpoint) if wrapper_prefix is None else wrapper_prefix
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _wrapper_prefix(path: Path, checkpoint: dict[str, Any]) -> str:
    ours = own_state(checkpoint, of_weights=True)
    if "wrapper_prefix" in ours:
        return ours["wrapper_prefix"]
    keys = list(checkpoint.get("state_dict", ()))
    others = [key for key in keys if not key.startswith(_WRAPPER_PREFIX)]
    if len(others) == len(keys):
        return ""
    if others:
        logger.warning(
            "%s does not say whether its model is wrapped: keys that begin with %r are taken for the model's, "
            "and left out are %s. If these belong to the model, give wrapper_prefix=''",
            path,
            _WRAPPER_PREFIX,
            ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else ""),
        )
    return _WRAPPER_PREFIX


# --- The arithmetic -------------------------------------------------------------------------------------------


@torch.no_grad()
def average_state_dicts(models: Mapping[str, StateDict]) -> StateDict:
    """Combine state dicts into one.

    Floating and complex tensors are averaged, summed in float64 (complex128), and returned in their own
    dtype. Integer tensors are summed in int64. Boolean tensors, and values that are no tensors, are the first
    one's. Keys that name the same memory in all state dicts (tied weights) name the same tensor in the
    result.

    Args:
        models: By the name of each in an error, its file; the best one first; on the CPU. Where they are mapped from
            files, the result is all the memory that is taken.

    Raises:
        KeyError: If the keys differ.
        ValueError: If a value's shape or kind differs.

    >>> one = {"weight": torch.tensor([1.0, 2.0]), "batches": torch.tensor(3)}
    >>> two = {"weight": torch.tensor([3.0, 6.0]), "batches": torch.tensor(4)}
    >>> average_state_dicts({"one": one, "two": two})
    {'weight': tensor([2., 4.]), 'batches': tensor(7)}
    """
    (first_name, first), *_ = models.items()
    for name, model in models.items():
        _check_layout(first_name, _layout_of(first), name, _layout_of(model))
    combined: dict[tuple[object, ...], object] = {}
    result: StateDict = {}
    constant = []
    for key in first:
        values = [model[key] for model in models.values()]
        memory = tuple(_memory(key, value) for value in values)  # tied means tied in every file
        if memory not in combined:
            combined[memory] = _combine(values)
            if kind_of(values[0]) == "integer" and values[0].any() and all(torch.equal(values[0], v) for v in values):
                constant.append(key)
        result[key] = combined[memory]
    if constant and len(models) > 1:
        logger.warning(
            "Integer tensors are summed, as ESPnet3 does. These were the same in all %d files, and are %d times as "
            "large in the average: %s. Where one is a table of constants, take it from one of the files: %s",
            len(models), len(models), ", ".join(constant), first_name,
        )  # fmt: skip
    return result


def kind_of(value: object) -> str:
    """How a value is combined: ``floating``, ``complex``, ``boolean``, ``integer`` or ``no tensor``."""
    if not isinstance(value, torch.Tensor):
        return "no tensor"
    if value.is_floating_point() or value.is_complex():
        return "floating" if value.is_floating_point() else "complex"
    return "boolean" if value.dtype == torch.bool else "integer"


def _layout_of(model: StateDict) -> dict[str, tuple[object, str]]:
    """Each key's shape and kind of value: equal for models that can be averaged."""
    return {
        key: (tuple(value.shape) if isinstance(value, torch.Tensor) else None, kind_of(value))
        for key, value in model.items()
    }


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


def _combine(values: Sequence[Any]) -> Any:
    """The mean, the sum, or the first of one key's values in all files."""
    first, kind = values[0], kind_of(values[0])
    if kind in ("no tensor", "boolean"):
        return first.clone() if kind == "boolean" else first
    wide = {"floating": torch.float64, "complex": torch.complex128}.get(kind, torch.int64)
    result = torch.empty_like(first, dtype=wide if kind == "integer" else None)
    for block, *parts in zip(*(_blocks(tensor, first) for tensor in (result, *values)), strict=True):
        total = parts[0].to(wide, copy=True)
        for part in parts[1:]:
            total += part.to(wide)
        block.copy_(total if kind == "integer" else total.div_(len(values)))
    return result


def _blocks(tensor: torch.Tensor, like: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a tensor, each of about `BLOCK` elements: cut as `like` would be, along what is outermost in memory."""
    if like.numel() <= BLOCK:
        return (tensor,)
    dimension = max(range(like.ndim), key=lambda index: (like.shape[index] > 1, like.stride(index)))
    return tensor.split(max(1, like.shape[dimension] * BLOCK // like.numel()), dimension)
