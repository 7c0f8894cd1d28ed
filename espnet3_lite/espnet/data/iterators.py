"""Which batches an epoch consists of, and in which order: ESPnet's sequence iterator.

The order depends on seed and epoch alone. How batches are shared out among ranks, and where in an epoch a run
goes on, is the training loop's business. (ESPnet3 deals the batches out to the ranks first and shuffles each
share, dropping what does not divide; here every rank knows the one global order, which on one process is
ESPnet's.)
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from espnet3_lite.distributed.rank import world_size
from espnet3_lite.espnet.data.samplers import AbsSampler
from espnet3_lite.exceptions import MisconfigurationException


class EpochBatchSampler(Sampler[list[Any]]):
    """The batches of one epoch at a time, as lists of keys that the data set is indexed with.

    Without `num_iters_per_epoch`, epoch e (from 0) is one pass over the batches, shuffled with seed + e + 1.
    With it, epochs are windows of that many batches (times the ranks) cut from an endless row of passes, of which
    pass p (from 0) is shuffled with seed + p. Both are ESPnet's order.

    Args:
        batches: the sampler, or a list of batches.
        num_iters_per_epoch: steps an epoch, each a batch for every rank. Default None: all batches once.
        seed: added to the epoch or pass. Default 0.
        shuffle: whether the order changes with the epoch. Default False.
        shuffle_within_batch: deal the epoch's utterances out anew, into batches of the first one's size.
        batch_distribution: what several ranks do with a batch: ``per_gpu`` (default) gives it to one of them,
            ``global`` splits it over all. The training loop does that; here it says how many batches a step takes.

    >>> sampler = EpochBatchSampler([["a"], ["b"], ["c"], ["d"]], seed=1, shuffle=True)
    >>> list(sampler)
    [['c'], ['d'], ['b'], ['a']]
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [['d'], ['b'], ['a'], ['c']]
    """

    def __init__(
        self,
        batches: AbsSampler | Sequence[Sequence[Any]],
        num_iters_per_epoch: int | None = None,
        seed: int = 0,
        shuffle: bool = False,
        shuffle_within_batch: bool = False,
        batch_distribution: str = "per_gpu",
    ):
        if len(batches) == 0:
            raise MisconfigurationException("the sampler made no batches; are its shape files empty?")
        if num_iters_per_epoch is not None and num_iters_per_epoch < 1:
            raise MisconfigurationException(
                f"num_iters_per_epoch must be at least 1 or left out, got {num_iters_per_epoch}"
            )
        self.source = batches if hasattr(batches, "generate") else AbsSampler(batches)
        self.num_iters_per_epoch = num_iters_per_epoch
        self.seed = seed
        self.shuffle = shuffle
        self.shuffle_within_batch = shuffle_within_batch
        self.batch_distribution = batch_distribution
        self.epoch = 0
        self._batches: list[list[Any]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next iteration is for."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._batches = None

    def __len__(self) -> int:
        return len(self._epoch_batches())

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._epoch_batches())

    def _epoch_batches(self) -> list[list[Any]]:
        if self._batches is None:
            if self.num_iters_per_epoch is None:
                batches = self._one_pass(self.epoch + 1)
            else:
                # A step of several ranks takes a batch for each of them, unless they split one.
                count = self.num_iters_per_epoch * (1 if self.batch_distribution == "global" else world_size())
                batches = self._window(self.epoch * count, count)
            self._batches = self._dealt_anew(batches) if self.shuffle_within_batch else batches
        return self._batches

    def _one_pass(self, number: int) -> list[list[Any]]:
        batches = [list(batch) for batch in self.source.generate(self.seed + number)]
        if self.shuffle:
            np.random.RandomState(self.seed + number).shuffle(batches)
        return batches

    def _window(self, start: int, count: int) -> list[list[Any]]:
        """`count` batches from position `start` of the row of passes on."""
        number, position = divmod(start, len(self.source))
        window: list[list[Any]] = []
        while len(window) < count:
            window += self._one_pass(number)[position : position + count - len(window)]
            number, position = number + 1, 0
        return window

    def _dealt_anew(self, batches: list[list[Any]]) -> list[list[Any]]:
        size = len(batches[0])
        keys = [key for batch in batches for key in batch]
        np.random.RandomState(self.seed + self.epoch + 1).shuffle(keys)
        return [keys[start : start + size] for start in range(0, len(keys), size)]


class SeedWorkers:
    """Seeds `random` and `numpy.random` in each loader worker from seed, epoch and worker, as ESPnet does.

    Args:
        batch_sampler: says the seed and, when the workers of an epoch start, the epoch.
    """

    def __init__(self, batch_sampler: EpochBatchSampler):
        self.batch_sampler = batch_sampler

    def __call__(self, worker_id: int) -> None:
        seed = self.batch_sampler.seed + self.batch_sampler.epoch + 1 + worker_id
        random.seed(seed)
        np.random.seed(seed)


class SequenceIterFactory:
    """Makes data loaders whose batches come from a batch sampler, in ESPnet's order of an epoch.

    Args:
        dataset: indexed with the keys in `batches`.
        batches: a batch sampler, or a list of batches.
        num_iters_per_epoch, seed, shuffle, shuffle_within_batch: see `EpochBatchSampler`.
        num_workers, pin_memory, collate_fn: see `torch.utils.data.DataLoader`.

    >>> factory = SequenceIterFactory([10, 11, 12, 13], batches=[[0, 1], [2, 3]], seed=5, shuffle=True)
    >>> [batch.tolist() for batch in factory.build_iter(epoch=1)]
    [[12, 13], [10, 11]]
    """

    def __init__(
        self,
        dataset: Any,
        batches: AbsSampler | Sequence[Sequence[Any]],
        num_iters_per_epoch: int | None = None,
        seed: int = 0,
        shuffle: bool = False,
        shuffle_within_batch: bool = False,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.pin_memory = pin_memory
        self._order: dict[str, Any] = {
            "batches": batches,
            "num_iters_per_epoch": num_iters_per_epoch,
            "seed": seed,
            "shuffle": shuffle,
            "shuffle_within_batch": shuffle_within_batch,
        }

    def build_loader(self, batch_distribution: str = "per_gpu") -> DataLoader:
        """A loader for the whole run; ``loader.batch_sampler.set_epoch(epoch)`` says which epoch is next.

        Args:
            batch_distribution: ``per_gpu``: each rank takes whole batches; ``global``: the ranks split each batch.
        """
        batch_sampler = EpochBatchSampler(**self._order, batch_distribution=batch_distribution)
        return DataLoader(
            self.dataset,
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            worker_init_fn=SeedWorkers(batch_sampler),
        )

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> DataLoader:
        """A loader for one epoch, counted from 1 as ESPnet does; `shuffle` overrides the factory's own."""
        loader = self.build_loader()
        sampler = loader.batch_sampler
        assert isinstance(sampler, EpochBatchSampler)  # `build_loader` has made it
        sampler.set_epoch(epoch - 1)
        if shuffle is not None:
            sampler.shuffle = shuffle
        return loader


class FactoryLoader:
    """Runs an iterator factory that is not ours, such as ESPnet's own, epoch by epoch.

    Its batches are its own business: it has no `batch_sampler`, so each rank is given its share of the
    batches before, and the training loop takes what comes.

    Args:
        factory: has ``build_iter(epoch)``, which returns an iterable of batches; epochs count from 1.

    >>> class Countdown:
    ...     def build_iter(self, epoch):
    ...         return range(epoch, 0, -1)
    >>> loader = FactoryLoader(Countdown())
    >>> loader.set_epoch(2)
    >>> list(loader)
    [3, 2, 1]
    """

    def __init__(self, factory: Any):
        self.factory = factory
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next iteration is for."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(self.factory.build_iter(self.epoch + 1))
