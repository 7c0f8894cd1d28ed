"""Random numbers in loader workers: a sample's follow from seed, epoch and place, so a resumed run draws them again.

A worker's own generators start anew with each epoch and in a run that resumes in mid-epoch; no checkpoint can hold
them, since workers are ahead of the batch that trains. In the main process nothing is seeded: its random state is in
the checkpoint. Which sample stands at which place of the epoch is `samplers.py`'s.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from espnet3_lite.checks.error_notes import sample_noted
from espnet3_lite.distributed.rank import global_rank
from espnet3_lite.loaders.samplers import global_seed
from espnet3_lite.seed import Generator, generators_in, seed_anew


class SeededInWorkers(Dataset[Any]):
    """A loader's data set as its workers see it: it seeds Python's, numpy's and torch's generators for each sample.

    It is indexed with pairs: a sample's place in the epoch's order, over all ranks, and its index. Each sample is
    seeded from the run's seed, the epoch and its place. A batch that the data set fetches at once (`__getitems__`),
    and the collate function, are seeded from the place of the batch's first sample. A stream is seeded once an epoch,
    from its rank and worker.

    Generators that the data set, its transforms or the collate function keep for themselves are seeded likewise: a
    worker has copies of them, which would begin anew with each epoch.

    Args:
        dataset: The user's, map-style or iterable.
        seed: The run's seed by default.
        collate_fn: The loader's.
    """

    def __init__(self, dataset: Any, seed: int | None = None, collate_fn: Any = None):
        self.dataset = dataset
        self._collate_fn = collate_fn
        self._own: dict[str, Generator] = {}  # found by each worker: before its first sample, and after it
        self._looks = 2
        self.seed = global_seed() if seed is None else seed
        # In shared memory, since workers that outlive an epoch (`persistent_workers`) keep their copy of this object.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch's
        self._told = 0  # the epoch that this process's copy of the data set knows
        self._rank = global_rank()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next samples are for. The user's data set knows it already."""
        self._epoch.fill_(epoch)
        self._told = epoch

    def __getitem__(self, placed: tuple[int, Any]) -> Any:
        place, index = placed
        with sample_noted(self.dataset, index):  # here, since the main process sees no frame of a worker
            sample = self._seeded(place, lambda: self.dataset[index])
        self._seed_for("collate", place)
        return sample

    def __getitems__(self, placed: Sequence[tuple[int, Any]]) -> list[Any]:
        if not placed:
            return []
        first = placed[0][0]
        if fetches_batches(self.dataset):
            samples = self._seeded(first, lambda: self.dataset.__getitems__([index for _, index in placed]))
        else:
            samples = [self[pair] for pair in placed]
        self._seed_for("collate", first)
        return samples

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        self._seed_for("stream", self._rank, info.id if info is not None else 0)
        return iter(self.dataset)

    def _seeded(self, place: int, fetch: Callable[[], Any]) -> Any:
        """What is fetched for a place. Where the first fetch has made generators, which nobody had seeded, another."""
        self._seed_for("sample", place)
        fetched, known = fetch(), len(self._own)
        if self._looks:
            self._seed_for("sample", place)
            fetched = fetched if len(self._own) == known else fetch()
        return fetched

    def _seed_for(self, *what: Any) -> None:
        epoch = int(self._epoch)
        if epoch != self._told:
            self._told = epoch
            tell_epoch(self.dataset, epoch)
        seed = _seed_of(self.seed, epoch, *what)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if self._looks:
            self._looks, self._own = self._looks - 1, generators_in({"set": self.dataset, "collate": self._collate_fn})
        for number, generator in enumerate(self._own.values()):
            seed_anew(generator, _seed_of(self.seed, epoch, *what, number))


def _seed_of(*what: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "little")


def _start_worker(user_function: Callable[[int], None] | None, worker_id: int) -> None:
    """The user's `worker_init_fn`, if there is one, and ``get_worker_info().dataset`` find the user's data set."""
    info: Any = get_worker_info()
    object.__setattr__(info, "dataset", info.dataset.dataset)
    if user_function is not None:
        user_function(worker_id)


def seeded_in_workers(loader: DataLoader[Any], seed: int | None = None) -> dict[str, Any]:
    """What changes in a loader with workers for its samples to be seeded: arguments of `rebuild`."""
    if loader.num_workers == 0:
        return {}
    dataset = SeededInWorkers(loader.dataset, seed, loader.collate_fn)
    return {"dataset": dataset, "worker_init_fn": partial(_start_worker, loader.worker_init_fn)}


def fetches_batches(dataset: Any) -> bool:
    """True where a data set fetches a batch at once; torch's `Subset` does if what it is a part of does."""
    method = getattr(dataset, "__getitems__", None)
    owner = getattr(method, "__self__", None)
    return fetches_batches(owner.dataset) if isinstance(owner, Subset) else callable(method)


def tell_epoch(loader: Any, epoch: int) -> None:
    """Tell every part of a loader that wants to know the epoch, once: samplers, data sets, data sets within others.

    A data set with a `set_epoch` of its own tells those inside it itself.
    """
    parts, told = [loader], {id(None)}
    for part in parts:
        if id(part) in told:
            continue
        told.add(id(part))
        parts += [getattr(part, "sampler", None), getattr(part, "batch_sampler", None)]
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
        else:
            several = getattr(part, "datasets", ())  # of a `ConcatDataset`
            parts += [getattr(part, "dataset", None), *(several if isinstance(several, (list, tuple)) else ())]
