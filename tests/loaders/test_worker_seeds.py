"""Random numbers in loader workers: the same for the same seed, epoch and place, in whatever worker and whenever."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from espnet3_lite.distributed.single import Strategy
from espnet3_lite.loaders.rank_loader import SharedLoader, StreamLoader
from espnet3_lite.loaders.samplers import EpochSampler
from espnet3_lite.loaders.worker_seeds import tell_epoch


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


class Rank(Strategy):
    """One of two, as far as loaders are concerned."""

    deals_out, world_size = True, 2

    def __init__(self, rank):
        super().__init__(torch.device("cpu"))
        self.global_rank = rank


ALONE = Strategy(torch.device("cpu"))


def epoch_of(strategy=ALONE, data=None, epoch=0, start=0, loader=None, **arguments):
    """One epoch's samples, as rows."""
    if loader is None:
        settings = {"batch_size": 3, "num_workers": 2, **arguments}
        loader = SharedLoader(DataLoader(Noisy() if data is None else data, **settings), strategy, seed=5)
    loader.set_epoch(epoch, start)
    return torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in loader])


def test_an_epoch_is_the_same_each_time_and_another_epoch_is_not():
    first, second = epoch_of(), epoch_of(epoch=1)
    assert torch.equal(first, epoch_of(num_workers=1))
    assert second[:, 1].tolist() == [1.0] * 12
    assert len(set(torch.cat([first, second])[:, 2:].flatten().tolist())) == 2 * 12 * 3


@pytest.mark.parametrize("batch_size", [2, 4, None])
def test_neither_batches_nor_ranks_change_a_sample(batch_size):
    whole = epoch_of()
    assert torch.equal(epoch_of(batch_size=batch_size), whole)
    both = torch.cat([epoch_of(Rank(rank), batch_size=batch_size) for rank in (0, 1)])
    assert torch.equal(both[both[:, 0].argsort()], whole)


def test_batches_of_a_sampler_of_ones_own_count_samples():
    batches = [[0, 1, 2, 3, 4], [5], [6, 7], [8, 9, 10, 11]]
    assert torch.equal(epoch_of(data=Noisy(), batch_size=1, batch_sampler=batches), epoch_of())
    both = [epoch_of(Rank(rank), batch_size=1, batch_sampler=batches) for rank in (0, 1)]
    assert torch.equal(torch.cat([both[0][:5], both[1][:1], both[0][5:], both[1][1:]]), epoch_of())


def test_what_is_left_of_an_epoch_is_as_it_was():
    assert torch.equal(epoch_of(start=6), epoch_of()[6:])


def test_a_repeated_sample_is_another_one_each_time():
    rows = epoch_of(sampler=[4] * 9)
    assert rows[:, 0].tolist() == [4.0] * 9 and len(set(rows[:, 2].tolist())) == 9


def test_ranks_with_a_loader_of_their_own_draw_different_numbers():
    loaders = [SharedLoader(DataLoader(Noisy(), 3, num_workers=1), Rank(rank), seed=5, alone=True) for rank in (0, 1)]
    first, second = (epoch_of(loader=loader) for loader in loaders)
    assert first[:, 0].tolist() == second[:, 0].tolist() == list(range(12))
    assert len(set(torch.cat([first, second])[:, 2].tolist())) == 24


def test_workers_that_stay_learn_of_the_epoch():
    staying = SharedLoader(DataLoader(Noisy(), 3, num_workers=2, persistent_workers=True), ALONE, seed=5)
    for epoch in (0, 1, 4):
        assert torch.equal(epoch_of(loader=staying, epoch=epoch), epoch_of(epoch=epoch))
        assert epoch_of(loader=staying, epoch=epoch)[:, 1].tolist() == [epoch] * 12


class Fetches(Noisy):
    def __getitems__(self, indices):
        noise = torch.rand(())
        return [torch.tensor([index, self.epoch, noise.item()], dtype=torch.float64) for index in indices]


def test_a_batch_that_is_fetched_whole_has_one_seed():
    rows = epoch_of(data=Fetches())
    assert torch.equal(rows, epoch_of(data=Fetches(), num_workers=1))
    assert len(set(rows[:, 2].tolist())) == 4 and rows[0, 2] == rows[2, 2]


def test_a_subset_fetches_sample_by_sample_where_its_whole_does():
    part = Subset(Noisy(), [3, 4, 5, 6])
    assert torch.equal(epoch_of(data=part, batch_size=4)[:, 2:], epoch_of(data=part, batch_size=1)[:, 2:])
    assert len(set(epoch_of(data=Subset(Fetches(), [3, 4, 5, 6]), batch_size=4)[:, 2].tolist())) == 1


def noisy_collate(samples):
    return torch.stack([torch.cat([sample, torch.rand(1, dtype=torch.float64)]) for sample in samples])


def test_the_collate_function_draws_the_same_again_and_not_a_samples_numbers():
    rows = epoch_of(collate_fn=noisy_collate)
    assert torch.equal(rows, epoch_of(collate_fn=noisy_collate, num_workers=1))
    assert len(set(rows[:, 4:].flatten().tolist())) == 24


def test_in_the_main_process_samples_draw_what_torchs_own_loader_would():
    torch.manual_seed(1)
    expected, state = torch.cat(list(DataLoader(Noisy(), 3, shuffle=True))), torch.get_rng_state()
    torch.manual_seed(1)
    rows = epoch_of(num_workers=0, shuffle=True)
    assert torch.equal(rows[:, [0, 4]], expected[:, [0, 4]]) and torch.equal(torch.get_rng_state(), state)


class Marked(Noisy):
    mark = 0.0

    def __getitem__(self, index):
        assert get_worker_info().dataset is self
        return torch.tensor([self.mark, float(index)])


def mark(worker_id):
    get_worker_info().dataset.mark = 7.0  # as torch's documentation does it


def test_a_users_worker_init_fn_finds_the_users_data_set():
    assert epoch_of(data=Marked(), worker_init_fn=mark)[:, 0].tolist() == [7.0] * 12


class Stream(IterableDataset):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (torch.tensor([self.epoch, torch.rand(()).item(), random.random()]) for _ in range(4))


def test_a_stream_in_workers_that_stay_begins_anew_with_each_epoch():
    def loader():
        return StreamLoader(DataLoader(Stream(), 2, num_workers=2, persistent_workers=True), ahead=True)

    staying = loader()
    epochs = [epoch_of(loader=staying, epoch=epoch) for epoch in (0, 1)]
    assert [rows[:, 0].tolist() for rows in epochs] == [[0.0] * 8, [1.0] * 8]
    assert torch.equal(epoch_of(loader=loader(), epoch=1), epochs[1])
    assert len(set(torch.cat(epochs)[:, 1].tolist())) == 16


class Told:
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index


def test_each_part_of_a_loader_is_told_the_epoch_once():
    first, second, sampler = Told(), Told(), EpochSampler(6)
    told = []
    sampler.set_epoch = told.append
    loader = DataLoader(Subset(ConcatDataset([first, second]), range(6)), batch_size=2, sampler=sampler)
    tell_epoch(loader, 4)
    assert (first.epochs, second.epochs, told) == ([4], [4], [4])
