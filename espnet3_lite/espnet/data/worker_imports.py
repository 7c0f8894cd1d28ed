"""A recipe's data set on its way to a spawned loader worker, which has not imported the recipe's modules yet."""

import pickle
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any, SupportsIndex

from torch.utils.data import Dataset

from espnet3_lite.espnet.import_aliases import espnet_stand_ins


class ImportedInWorkers(Dataset):
    """A data set that finds ESPnet's names, which its modules import, in the process that it is sent to.

    Args:
        dataset: Map-style; everything that is asked of this one is asked of it.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet: it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if get_spawning_popen() is None:  # somebody copies it
            return super().__reduce_ex__(protocol)
        return _arrived, (bytes(ForkingPickler.dumps(self.dataset)),)


def _arrived(data: bytes) -> ImportedInWorkers:
    with espnet_stand_ins():
        return ImportedInWorkers(pickle.loads(data))
