"""Random numbers in loader workers: the same for the same seed, epoch and batch, in whatever worker and whenever."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from espnet3_lite.espnet.data.loader import DataLoaderBuilder
from espnet3_lite.espnet.data.worker_seeds import SeededInWorkers


class Noisy(Dataset):
    """(index, epoch told, three random numbers)."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 12

    def __getitem__(self, index):
        drawn = [random.random(), float(np.random.rand()), torch.rand(()).item()]
        return torch.tensor([index, self.epoch, *drawn], dtype=torch.float64)


def loader(**arguments):
    return DataLoader(SeededInWorkers(Noisy(), seed=5), **{"batch_size": 3, "num_workers": 2, **arguments})


def test_an_epoch_is_the_same_each_time_and_another_epoch_is_not():
    first = torch.cat(list(loader()))
    assert torch.equal(first, torch.cat(list(loader(num_workers=1))))
    other = loader()
    other.dataset.set_epoch(1)
    second = torch.cat(list(other))
    assert second[:, 1].tolist() == [1.0] * 12
    assert len(set(torch.cat([first, second])[:, 2:].flatten().tolist())) == 2 * 12 * 3


def test_what_is_left_of_an_epoch_is_as_it_was():
    whole = torch.cat(list(loader()))
    rest = torch.cat(list(DataLoader(loader().dataset, batch_sampler=[[6, 7, 8], [9, 10, 11]], num_workers=2)))
    assert torch.equal(rest, whole[6:])


def test_workers_that_stay_learn_of_the_epoch():
    staying, fresh = loader(persistent_workers=True), loader()
    list(staying)
    for each in (staying, fresh):
        each.dataset.set_epoch(3)
    assert torch.equal(torch.cat(list(staying)), torch.cat(list(fresh)))
    assert torch.cat(list(staying))[:, 1].tolist() == [3.0] * 12


def test_without_batches_each_sample_has_its_seed():
    assert torch.equal(torch.stack(list(loader(batch_size=None))), torch.stack(list(loader(batch_size=None))))


def test_in_the_main_process_nothing_is_seeded():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    wrapped = SeededInWorkers(list(range(4)), seed=5)
    assert (wrapped[2], wrapped.__getitems__([0, 3]), len(wrapped)) == (2, [0, 3], 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_that_fetches_batches_still_does():
    class Batches(Noisy):
        def __getitems__(self, indices):
            return [("together", index) for index in indices]

    assert SeededInWorkers(Batches()).__getitems__([1, 2]) == [("together", 1), ("together", 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_from_a_config_have_it_where_they_have_workers(workers):
    config = {"dataloader": {"train": {"batch_size": 3, "num_workers": workers, "shuffle": False}}}
    built = DataLoaderBuilder(Noisy(), config).build("train")
    assert isinstance(built.dataset, SeededInWorkers) == bool(workers)
    factory = {"_target_": "espnet3_lite.espnet.data.iterators.SequenceIterFactory", "num_workers": workers}
    factory["batches"] = {"_target_": "espnet3_lite.espnet.data.samplers.AbsSampler", "batches": [[0, 1], [2, 3]]}
    built = DataLoaderBuilder(Noisy(), {"dataloader": {"train": {"iter_factory": factory}}}).build("train")
    assert isinstance(built.dataset, SeededInWorkers) == bool(workers)
