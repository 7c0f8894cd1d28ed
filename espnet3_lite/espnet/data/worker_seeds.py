"""Random numbers inside loader workers, which depend on seed, epoch and batch alone: a resumed run draws them again.

A worker's own generators start anew with each epoch, and in a run that resumes in mid-epoch; no checkpoint can hold
them, since workers are ahead of the batch that trains. Which sample is in which batch is not decided here.
"""

import pickle
import random
import zlib
from collections.abc import Sequence
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from espnet3_lite.espnet.import_aliases import espnet_stand_ins
from espnet3_lite.loaders.samplers import global_seed


class SeededInWorkers(Dataset):
    """A data set whose samples are fetched with fresh seeds, batch by batch, where a loader worker fetches them.

    Python's, numpy's and torch's generators are seeded from the run's seed, the epoch and the batch's indices; what the
    collate function draws follows from them too. In the main process nothing is seeded: its random state is in the
    checkpoint. Wrap the data set of a loader of your own to get the same there.

    Args:
        dataset: Map-style; it keeps its own `set_epoch` and ``__getitems__``, if it has them.
        seed: The run's seed by default.

    Example:
        >>> class Noise(Dataset):
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return random.random()
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(SeededInWorkers(Noise(), seed=1), batch_size=2, num_workers=2)
        >>> first, again = torch.cat(list(loader)), torch.cat(list(loader))
        >>> loader.dataset.set_epoch(1)
        >>> torch.equal(first, again), torch.equal(first, torch.cat(list(loader))), len(set(first.tolist()))
        (True, False, 4)
    """

    def __init__(self, dataset: Any, seed: int | None = None):
        self.dataset = dataset
        self.seed = global_seed() if seed is None else seed
        # In shared memory, since workers that outlive an epoch (`persistent_workers`) keep their copy of this object.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._told = 0  # the epoch that this process's copy of the data set knows

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, counted from 0, the next samples are for."""
        self._epoch.fill_(epoch)
        self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        self._told = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        self._prepare_for((index,))
        return self.dataset[index]

    def __getitems__(self, indices: Sequence) -> list[Any]:
        self._prepare_for(indices)
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]

    def __reduce_ex__(self, protocol: int) -> Any:
        if get_spawning_popen() is None:  # somebody copies it
            return super().__reduce_ex__(protocol)
        return _arrived, (bytes(ForkingPickler.dumps(vars(self))),)

    def _prepare_for(self, indices: Sequence) -> None:
        if get_worker_info() is None:
            return
        epoch = int(self._epoch)
        if epoch != self._told:
            self._tell(epoch)
        # A checksum and not hash(), which is another number in each process for the ids that are strings.
        seed = zlib.crc32(repr((self.seed, epoch, list(indices))).encode())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def _arrived(state: bytes) -> SeededInWorkers:
    """The data set in a worker that was spawned: unpickling it imports a recipe's modules there for the first time."""
    dataset = SeededInWorkers.__new__(SeededInWorkers)
    with espnet_stand_ins():
        vars(dataset).update(pickle.loads(state))
    return dataset
