"""Shapes and sums of one batch of utterances, wherever it is computed.

Who computes which batch, and what is written, is decided in `collect_stats.py`.
"""

import multiprocessing
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from espnet3_lite.distributed.launch import choose_device
from espnet3_lite.espnet.import_aliases import espnet_stand_ins


@dataclass
class BatchStats:
    """What is known of some utterances, in data order.

    Attributes:
        uids: their ids.
        shapes: by stream or feature, the shape of each utterance's, unpadded.
        sums: by feature, the number of frames, their sum and the sum of their squares (float64).
        batch_keys: which of `shapes` are the batch's own streams.
    """

    uids: list[str] = field(default_factory=list)
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    sums: dict[str, tuple[int, np.ndarray, np.ndarray]] = field(default_factory=dict)
    batch_keys: list[str] = field(default_factory=list)

    @classmethod
    def merged(cls, parts: Iterable["BatchStats"]) -> "BatchStats":
        """All parts as one; sums are added in the order of the parts, so that equal parts give equal bits."""
        total = cls()
        for part in parts:
            if total.uids and (list(part.shapes) != list(total.shapes) or list(part.sums) != list(total.sums)):
                raise ValueError(
                    f"batches differ in their streams or features: {list(total.shapes)} at first, "
                    f"{list(part.shapes)} in the batch that begins with utterance {part.uids[0]!r}"
                )
            total.batch_keys = part.batch_keys
            total.uids += part.uids
            for key, shapes in part.shapes.items():
                total.shapes.setdefault(key, []).extend(shapes)
            for key, sums in part.sums.items():
                count, first, second = total.sums.get(key, (0, np.zeros(()), np.zeros(())))
                total.sums[key] = (count + sums[0], first + sums[1], second + sums[2])
        return total


@dataclass
class Collector:
    """What is needed to compute the `BatchStats` of any batch; picklable where model and data are.

    Args:
        model: has ``collect_feats(**batch)``.
        dataset: gives ``(uid, sample)``, or samples, whose id is then their index.
        collate_fn: makes ``(uids, dict of tensors)`` of a list of ``(uid, sample)``.
        batch_size: how many consecutive samples make a batch.
        seed: together with the batch's number, the seed of its random numbers.
    """

    model: nn.Module
    dataset: Any
    collate_fn: Callable
    batch_size: int
    seed: int

    @contextmanager
    def at_work(self) -> Iterator[Callable[[int], BatchStats]]:
        """A function from a batch's number to its statistics.

        Meanwhile the model is in eval mode and on the GPU if there is one, under torchrun the rank's own, and torch
        uses one thread, since some operations round otherwise with more. Afterwards all this, and the random state,
        is as before.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        home = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        device = choose_device("auto")
        threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
            torch.set_num_threads(1)
            self.model.to(device).eval()
            try:
                yield lambda number: self._collect(number, device)
            finally:
                self.model.to(home)
                for module, training in modes:
                    module.training = training
                torch.set_num_threads(threads)
                random.setstate(states[0])
                np.random.set_state(states[1])

    def _collect(self, number: int, device: torch.device) -> BatchStats:
        # Seeded a batch, so that a random transform gives the same whoever computes the batch.
        random.seed(self.seed + number)
        np.random.seed((self.seed + number) % 2**32)
        torch.manual_seed(self.seed + number)
        start = number * self.batch_size
        stop = min(start + self.batch_size, len(self.dataset))
        uids, batch = self._collated([_with_id(i, self.dataset[i]) for i in range(start, stop)])
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        streams = {
            key: value for key, value in batch.items() if isinstance(value, Tensor) and not key.endswith("_lengths")
        }
        result = BatchStats(uids=uids, batch_keys=list(streams))
        for key, value in streams.items():
            result.shapes[key] = [tuple(row.shape) for row in _unpadded(value, batch.get(f"{key}_lengths"))]
        features = cast(Callable[..., Mapping[str, Any]], self.model.collect_feats)(**batch)
        for key, value in features.items():
            lengths = features.get(f"{key}_lengths")
            # A feature without lengths is one frame an utterance: (batch, ...) becomes (batch, 1, ...).
            value = torch.as_tensor(value)
            rows = _unpadded(value if lengths is not None else value[:, None], lengths)
            result.shapes[key] = [tuple(row.shape) for row in rows]
            result.sums[key] = _sums(key, uids, rows)
        return result

    def _collated(self, samples: list[tuple[str, Any]]) -> tuple[list[str], Mapping[str, Any]]:
        batch = self.collate_fn(samples)
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Mapping)):
            raise ValueError(
                f"collect_stats needs a collate function that returns (uids, dict of tensors); "
                f"{self.collate_fn!r} returned {type(batch).__name__}"
            )
        return [str(uid) for uid in batch[0]], batch[1]


def _with_id(index: int, item: Any) -> tuple[str, Any]:
    has_id = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
    return item if has_id else (str(index), item)


def _unpadded(value: Tensor, lengths: Any) -> list[Tensor]:
    """Each utterance's part of ``(batch, time, ...)``."""
    return [row if lengths is None else row[: int(lengths[i])] for i, row in enumerate(value)]


def _sums(key: str, uids: list[str], rows: list[Tensor]) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of frames, their sum, and the sum of their squares, in float64, utterance by utterance."""
    count = 0
    first: np.ndarray = np.zeros(())
    second: np.ndarray = np.zeros(())
    for uid, row in zip(uids, rows, strict=True):
        frames = row.detach().cpu().to(torch.float64).numpy()
        if not np.isfinite(frames).all():
            raise ValueError(
                f"the feature {key!r} of utterance {uid!r} has NaN or Inf, which would spoil the statistics "
                "of all; is the utterance silent, empty or damaged?"
            )
        count += len(frames)
        first = first + frames.sum(axis=0)
        second = second + np.square(frames).sum(axis=0)
    return count, first, second


# What a worker process computes with. It is unpickled with the first batch, not when the process starts, so
# that an error reaches the caller as itself and not as a broken pool.
_payload: bytes | None = None
_worker: Callable[[int], BatchStats] | None = None
_kept_open = ExitStack()


def start_worker(payload: bytes) -> None:
    """Give a new process its pickled `Collector`."""
    global _payload
    _payload = payload
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all; who handed out the work ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Whoever hands out the work may be killed, and a pool's workers would wait for more of it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def collect_batch(number: int) -> BatchStats:
    """Compute one batch in a process that `start_worker` was called in."""
    global _worker
    if _worker is None:
        with espnet_stand_ins():  # unpickling imports a recipe's modules, here for the first time
            assert _payload is not None  # `start_worker` was called
            collector = pickle.loads(_payload)
        _worker = _kept_open.enter_context(collector.at_work())
    return _worker(number)
