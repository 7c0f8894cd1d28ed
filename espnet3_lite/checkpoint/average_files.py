"""Averaging the models in several checkpoints: which files, what in them is the model's, and where the result goes.

The arithmetic is in `averaging`.
"""

import collections
import functools
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from espnet3_lite.checkpoint.averaging import StateDict, average_state_dicts, layout_of
from espnet3_lite.checkpoint.files import load_checkpoint, load_sharded, read_file, save_checkpoint
from espnet3_lite.checkpoint.own_state import own_state
from espnet3_lite.exceptions import CheckpointError

logger = logging.getLogger(__name__)

_WRAPPER_PREFIX = "model."


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
        ValueError: If a tensor's shape differs, or no path is given.
        CheckpointError: If none is left, or one is damaged.

    >>> import torch
    >>> folder = tempfile.mkdtemp()
    >>> for name, value in {"a": 1.0, "b": 2.0}.items():
    ...     save_checkpoint({"state_dict": {"weight": torch.tensor(value)}}, f"{folder}/{name}.ckpt")
    >>> average_checkpoints([f"{folder}/a.ckpt", f"{folder}/b.ckpt"], f"{folder}/average.pth")
    {'weight': tensor(1.5000)}
    >>> load_checkpoint(f"{folder}/average.pth")
    {'weight': tensor(1.5000)}
    """
    files = [Path(os.path.expanduser(path)) for path in paths]
    if not files:
        raise ValueError("no checkpoints to average: `paths` is empty")
    averaged, _ = average_usable(
        files, Path(os.path.expanduser(output)).parent if output is not None else None, wrapper_prefix
    )
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
    readers: dict[Path, functools.partial[StateDict]] = {}
    with tempfile.TemporaryDirectory(prefix=".averaging.", dir=folder) as scratch:
        for index, path in enumerate(paths):
            if not path.exists():
                logger.warning("%s was deleted meanwhile and is left out of the average", path)
                continue
            try:
                readers[path] = _weights_reader(path, Path(scratch) / f"{index}.pth", wrapper_prefix)
            except CheckpointError as error:
                if not leave_out:
                    raise
                logger.warning("Left out of the average. %s", error)
        if leave_out and readers:
            layouts = {path: tuple(sorted(layout_of(reader()).items())) for path, reader in readers.items()}
            ((most, _),) = collections.Counter(layouts.values()).most_common(1)
            for path in [path for path, layout in layouts.items() if layout != most]:
                logger.warning("Left out of the average. %s: holds another model's weights than the others", path)
                del readers[path]
        if not readers:
            raise CheckpointError(f"no checkpoint to average is left of {', '.join(map(str, paths))}")
        return average_state_dicts([str(path) for path in readers], list(readers.values())), list(readers)


def _weights_reader(path: Path, scratch_file: Path, wrapper_prefix: str | None) -> functools.partial[StateDict]:
    """Check a checkpoint; return a function that maps its model's state dict from disk, anew at each call."""
    if path.is_dir():
        save_checkpoint(load_sharded(path, only="state_dict"), scratch_file)
        file = scratch_file
    else:
        file = path
    checkpoint = load_checkpoint(file, mmap=True)
    if not isinstance(checkpoint.get("state_dict", checkpoint), dict):
        raise CheckpointError(f"{path}: its state_dict is a {type(checkpoint['state_dict']).__name__}, not a dict")
    if wrapper_prefix is None:
        wrapper_prefix = _wrapper_prefix(path, checkpoint)
    return functools.partial(_model_state_dict, file, wrapper_prefix)


def _model_state_dict(file: Path, wrapper_prefix: str) -> StateDict:
    checkpoint = read_file(file, mmap=True)
    state_dict = checkpoint.get("state_dict", checkpoint)
    return {key[len(wrapper_prefix) :]: value for key, value in state_dict.items() if key.startswith(wrapper_prefix)}


def _wrapper_prefix(path: Path, checkpoint: dict[str, Any]) -> str:
    ours = own_state(checkpoint)
    if "wrapper_prefix" in ours:
        return ours["wrapper_prefix"]
    if "state_dict" not in checkpoint:
        return ""
    keys = list(checkpoint["state_dict"])
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
