"""What is added to an exception that comes out of a step, a data set or a scheduler: what it was given, what would do.

PyTorch says of a wrong batch only what the failing operation saw. The batch's own keys, shapes and types are known
here. Nothing is done before something fails. The message itself stays as it is: notes follow it in the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.seed import mark_of

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer

_MOST_PARTS = 12
_FETCH = os.path.join("utils", "data", "_utils", "fetch.py")
_SAMPLE = "It was sample {!r} of {} that could not be had"
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")

#: Words of PyTorch's messages, and what would do.
ADVICE = {
    "backward through the graph a second time": (
        "A loss may reach the graph of its own batch only. Detach what is kept from an earlier batch, such as a hidden "
        "state: `self.hidden = hidden.detach()`. And leave `loss.backward()` to the trainer, or set "
        "`self.automatic_optimization = False`"
    ),
    "stack expects each tensor to be equal size": (
        "Samples of different shapes need a collate function that pads them: DataLoader(..., collate_fn=...); "
        "torch.nn.utils.rnn.pad_sequence does it for one key"
    ),
    "default_collate: batch must contain": (
        "Let the data set return tensors, numbers, strings, or NumPy arrays of numbers, in every sample; or give the "
        "DataLoader a collate_fn that makes batches of what it returns"
    ),
    "byte order different from the native": (
        "Convert the array where it is read: array.astype(array.dtype.newbyteorder('='))"
    ),
    "optimizer got an empty parameter list": (
        "The module has no parameters when configure_optimizers is called. Make its layers in __init__ or "
        "configure_model, not in a step, and keep them in attributes, an nn.ModuleList or an nn.ModuleDict"
    ),
    "loaded state dict": (
        "A group that a hook adds (add_param_group) must be there before the checkpoint is read. Give the optimizer "
        "all groups in configure_optimizers: parameters without gradients are not stepped. Or take BackboneFinetuning"
    ),
    'is missing the required "forward" function': (
        "Trainer.predict calls `forward(batch)`, unless the module defines `predict_step(self, batch, batch_idx)`"
    ),
    "device-side assert": (
        "On a GPU this is mostly an index or a class label out of range. With Trainer(accelerator='cpu') the message "
        "says which operation it was"
    ),
    "out of memory": (
        "Use a smaller batch_size with Trainer(accumulate_grad_batches=...), precision='bf16-mixed', or the callback "
        "BatchSizeFinder"
    ),
    "to be on the same device": (
        "Make new tensors with device=self.device, and keep constant ones by self.register_buffer(name, tensor)"
    ),
    "DataLoader worker (pid": (
        "A worker process died. num_workers=0 shows an error of the data set itself. Workers that are spawned, not "
        "forked, import the data set's class: it must stand in a file, not in a notebook's cell. A worker that was "
        "killed may have been out of memory"
    ),
}


def add_note(error: BaseException, note: str) -> None:
    """Add a line to what an exception shows: a note; before Python 3.11 a further line of its message.

    Args:
        error: Keeps its class and its arguments.
        note: The line.
    """
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}",)


def loader_in_words(loader: Any) -> str:
    """What a loader that gives no batch says of itself: why it may be empty.

    >>> loader_in_words(torch.utils.data.DataLoader([1], batch_size=2, drop_last=True))
    'DataLoader, samples=1, batch_size=2, drop_last=True'
    """
    dataset: Any = getattr(loader, "dataset", None)
    known = {"samples": len(dataset)} if hasattr(dataset, "__len__") else {}
    known.update({name: getattr(loader, name) for name in ("batch_size", "drop_last") if hasattr(loader, name)})
    return ", ".join([type(loader).__name__, *(f"{name}={value}" for name, value in known.items())])


def cannot_be_iterated_twice(loader: Any) -> str:
    """What is wrong with a loader that gave batches in one epoch, and none in a later one."""
    return (
        f"the loader ({type(loader).__name__}) gave no batch in this epoch, though there were batches before: "
        f"it is empty now, or it cannot be iterated over twice, as a generator or an iterator cannot. Give a "
        f"DataLoader, a list, or an object whose `__iter__` begins anew"
    )


def other_data_in_words(loader: Any, before: int | None, now: float | None, within: bool) -> str:
    """What to say where a run resumes whose training loader does not give what it gave; else nothing.

    Args:
        loader: The user's.
        before: How many samples, or batches, it had when the checkpoint was written; None where it has no indices.
        now: How many it has.
        within: The run resumes within an epoch. A new epoch may have more.
    """
    grown = (
        "Data that grow while a run trains, such as a replay buffer, are in no checkpoint by themselves: put them "
        "there in the module's on_save_checkpoint, and back in its on_load_checkpoint"
    )
    if None not in (before, now) and within and now != before:
        return (
            f"this epoch had {before} samples (or batches) and has {now} now, so that its rest may repeat samples or "
            f"miss some: resume with the same data, or from a checkpoint of an epoch's end. {grown}"
        )
    if None not in (before, now) and now < before:  # type: ignore[operator]  # neither is None
        return (
            f"the training data had {before} samples (or batches) when the checkpoint was written, and have {now} now. "
            f"{grown}"
        )
    if within and getattr(loader, "num_workers", 0) > 1 and not getattr(loader, "in_order", True):
        return (
            "the run resumes within an epoch whose loader has in_order=False: its batches came in the order in which "
            "the workers had them ready, so that the epoch's rest may repeat some and miss others. Set in_order=True "
            "for a run that resumes to the same bits"
        )
    return ""


def warn_of_other_stream(loader: Any, mark: int | None, batch: Any) -> None:
    """A run resumes within an epoch of a stream, which was read anew: is its next batch the one that it was to be?

    Args:
        loader: The user's.
        mark: What `seed.mark_of` gave for that batch when the checkpoint was written; 0 or None where it is not known.
        batch: The one that came now.
    """
    if mark and mark_of(batch) != mark:
        dataset = type(getattr(loader, "dataset", loader)).__name__
        cause = (
            "It shuffles by random numbers of its own, or by those that the model draws from, too. Give it a seed (in "
            "webdataset shuffle(..., seed=...), in datasets shuffle(seed=...), else a generator that each epoch begins "
            "with), or a loader with a state_dict (torchdata's StatefulDataLoader)"
        )
        own_iter = isinstance(loader, DataLoader) and type(loader).__iter__ is not DataLoader.__iter__
        if own_iter and not isinstance(loader.dataset, IterableDataset):
            cause = (
                f"{type(loader).__name__} has an __iter__ of its own: where it reads ahead in a thread, nobody "
                f"knows how many random numbers that thread has drawn. A plain DataLoader with num_workers=1 reads "
                f"ahead, too, and goes on with them"
            )
        rank_zero_warn(
            f"the run resumes within an epoch, and {dataset} gives other batches there than it gave to the run that "
            f"was cut: the epoch's rest may repeat samples and miss others. {cause}"
        )


def explained(error: BaseException, trainer: Trainer) -> BaseException:
    """Add to an exception what its traceback and the batch in work tell, unless this package has worded it.

    Args:
        error: What ends a call of the trainer.
        trainer: Which batch is in work there, and for which module.

    Returns:
        The same exception.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, Exception) or _root(frames[-1]) == _root(sys._getframe()):
        return error
    module, batch, step = trainer.lightning_module, trainer.metrics.batch, trainer.metrics.hook
    if step in _STEPS and batch is not None and any(type(_owner(frame)) is type(module) for frame in frames):
        weights = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        loop = trainer.fit_loop
        number = (
            f"{loop.work.index} of epoch {loop.epoch}" if trainer.training else trainer.evaluation_loop.batches_done
        )
        title = f"{step} had batch {number}, counted from 0:"
        add_note(error, "\n".join([title, *_described_batch(batch, error, weights)]))
    _explain_fetching(error, frames)
    for owner in map(_owner, frames):
        if isinstance(owner, torch.optim.lr_scheduler.LRScheduler):
            _explain_scheduler(error, owner)
            break
    for words, advice in ADVICE.items():
        if words in str(error):
            add_note(error, advice)
    return error


def _explain_scheduler(error: Exception, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Which scheduler it is: the traceback shows neither its arguments nor where it was made."""
    plain = {name: value for name, value in vars(scheduler).items() if type(value) in (int, float, str)}
    settings = ", ".join(f"{name}={value!r}" for name, value in plain.items() if not name.startswith("_"))
    add_note(
        error,
        f"It is the scheduler {type(scheduler).__name__}({settings}). Look at its arguments in configure_optimizers or "
        f"in the configuration: they count calls of its step(), one an epoch, or with interval='step' one an update "
        f"(trainer.estimated_stepping_batches is the number of updates)",
    )


def _explain_fetching(error: Exception, frames: list[FrameType]) -> None:
    """Which sample could not be had, or of which samples no batch could be made. (A worker adds this itself.)"""
    fetching = next((place for place, frame in enumerate(frames) if frame.f_code.co_filename.endswith(_FETCH)), None)
    if fetching is None:
        return
    below = frames[fetching + 1 :]
    wanted = [frame for frame in below if frame.f_code.co_name == "__getitem__" and _root(frame) != "torch"]
    if wanted and wanted[0].f_code.co_argcount == 2:
        dataset, index = (wanted[0].f_locals.get(name) for name in wanted[0].f_code.co_varnames[:2])
        add_note(error, _SAMPLE.format(index, type(dataset).__qualname__))
    elif isinstance(samples := frames[fetching].f_locals.get("data"), list):
        add_note(
            error, "\n".join([f"No batch could be made of its {len(samples)} samples:", *_first_and_another(samples)])
        )


@contextmanager
def sample_noted(dataset: Any, index: Any) -> Iterator[None]:
    """Within the block, an exception gets a note that says which sample was asked for.

    Args:
        dataset: Where from.
        index: Which.
    """
    try:
        yield
    except Exception as error:
        add_note(error, _SAMPLE.format(index, type(dataset).__qualname__))
        raise


def _owner(frame: FrameType) -> Any:
    """The first argument of the function that a frame runs: ``self`` in a method."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return frame.f_locals.get(names[0]) if names else None


def _root(frame: FrameType) -> str:
    """The package whose code a frame runs."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _first_and_another(samples: list[Any]) -> list[str]:
    """The parts of a batch's first sample, and of the first one that is made otherwise."""
    made = [list(_parts(sample)) for sample in samples]
    other = next((place for place, parts in enumerate(made) if parts != made[0]), None)
    shown = [0] if other is None else [0, other]
    return [f"  samples[{place}]{part}" for place in shown for part in made[place][:_MOST_PARTS]]


def _described_batch(batch: Any, error: Exception, weights: torch.dtype | None) -> list[str]:
    """A line for each part of a batch, with what is odd about it; that is said once."""
    lines, said = [], set[str]()
    is_espnets = isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[1], Mapping)
    # The first part of ESPnet's batches, the names of the utterances, goes into no layer.
    for part, value in _leaves(batch[1], "[1]") if is_espnets else _leaves(batch):
        oddity = _oddity(value, error, weights)
        lines.append(f"  batch{part}: {_described(value)}{_range_of(value)}{'' if oddity in said else oddity}")
        said.add(oddity)
    more = [f"  and {len(lines) - _MOST_PARTS} more"] if len(lines) > _MOST_PARTS else []
    return lines[:_MOST_PARTS] + more


def _parts(data: Any) -> Iterator[str]:
    """What the parts of a sample are, without their values."""
    for name, value in _leaves(data):
        yield f"{name}: {_described(value)}"


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a batch or sample is made of: each part with what leads to it. A list of texts is one part."""
    texts = isinstance(data, (list, tuple)) and len(data) > 1 and all(isinstance(part, str) for part in data)
    if isinstance(data, Mapping) and data:
        for key, part in data.items():
            yield from _leaves(part, f"{name}[{key!r}]")
    elif isinstance(data, (list, tuple)) and data and not texts:
        for place, part in enumerate(data):
            yield from _leaves(part, f"{name}[{place}]")
    else:
        yield name, data


def _described(part: Any) -> str:
    if isinstance(part, torch.Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} {'nested' if part.is_nested else tuple(part.shape)}"
    if isinstance(part, np.ndarray):
        return f"NumPy array, {part.dtype} {part.shape}"
    if isinstance(part, (list, tuple)) and part:
        return f"{len(part)} texts"
    return "None" if part is None else type(part).__name__


def _range_of(part: Any) -> str:
    """The values of a part, for labels and indices out of range: of integers in main memory, and of texts."""
    if isinstance(part, torch.Tensor):
        whole = part.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8) and part.layout == torch.strided
        readable = whole and part.device.type == "cpu" and not part.is_nested and part.numel()
        return f", values {int(part.min())} to {int(part.max())}" if readable else ""
    if isinstance(part, (list, tuple)) and part:
        return f", the first is {part[0][:40]!r}"
    return f" {part[:40]!r}" if isinstance(part, str) else f" {part}" if type(part) in (int, float, bool) else ""


def _oddity(part: Any, error: Exception, weights: torch.dtype | None) -> str:
    """What of a part does not go with the weights or with PyTorch's functions; nothing where it plays no role."""
    if weights is None:
        return ""
    of_type = any(word in str(error) for word in ("dtype", "scalar type", "type (", "Long", "Int"))
    if isinstance(part, torch.Tensor) and of_type:
        name = str(weights).removeprefix("torch.")
        if part.is_floating_point() and part.dtype != weights:
            return f"; the weights are {name}: `.to(torch.{name})`, or `array.astype({name!r})` in the data set"
        if not part.is_floating_point() and part.dtype not in (torch.int64, torch.bool):
            return "; where it is an index or a class label, it must be int64: `.long()`"
    if isinstance(error, (TypeError, AttributeError)):
        if isinstance(part, np.ndarray):
            return "; layers take tensors: make it one in the data set or the collate function, torch.as_tensor(array)"
        if isinstance(part, (str, list, tuple)):
            return "; layers and losses take numbers: map texts to integers in the data set"
    return ""
