"""The order of an epoch against ESPnet's, and how worker processes are seeded."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet3_lite.espnet.data.iterators import EpochBatchSampler, FactoryLoader, SeedWorkers, SequenceIterFactory
from espnet3_lite.espnet.data.samplers import AbsSampler, build_batch_sampler
from espnet3_lite.exceptions import MisconfigurationException

FOLDER = Path(__file__).parents[2] / "golden" / "batches"
GOLDEN = json.loads(gzip.decompress((FOLDER / "espnet.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def batches():
    setting = GOLDEN["order_sampler"]
    return build_batch_sampler(**{**setting, "shape_files": [FOLDER / name for name in setting["shape_files"]]})


@pytest.mark.parametrize("case", GOLDEN["orders"], ids=lambda case: str(case["setting"]))
def test_epochs_equal_espnets(batches, case):
    sampler = EpochBatchSampler(batches, **case["setting"])
    for epoch, expected in enumerate(case["epochs"]):
        sampler.set_epoch(epoch)
        assert list(sampler) == expected
        assert len(sampler) == len(expected)


def test_epochs_do_not_depend_on_those_before(batches):
    sampler = EpochBatchSampler(batches, seed=3, shuffle=True, num_iters_per_epoch=4)
    epochs = []
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.set_epoch(1)
    assert list(sampler) == list(sampler) == epochs[1]
    assert epochs[0] != epochs[1]


def test_windows_pass_over_all_batches_before_any_comes_again(batches):
    sampler = EpochBatchSampler(batches, shuffle=True, num_iters_per_epoch=3)
    seen = []
    for epoch in range(7):
        sampler.set_epoch(epoch)
        seen += [tuple(batch) for batch in sampler]
    size = len(batches)
    assert len(seen) == 3 * size
    assert all(set(seen[i * size : (i + 1) * size]) == set(batches) for i in range(3))


@pytest.mark.parametrize(("distribution", "a_step"), [("per_gpu", 3), ("global", 1)])
def test_three_ranks_take_that_many_steps_an_epoch(batches, monkeypatch, distribution, a_step):
    settings = {"shuffle": True, "seed": 2, "batch_distribution": distribution}
    alone = EpochBatchSampler(batches, num_iters_per_epoch=4 * a_step, **settings)
    expected = []
    for epoch in range(3):
        alone.set_epoch(epoch)
        expected.append(list(alone))
    monkeypatch.setattr("espnet3_lite.espnet.data.iterators.world_size", lambda: 3)
    sampler = EpochBatchSampler(batches, num_iters_per_epoch=4, **settings)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == expected[epoch] and len(sampler) == 4 * a_step


def test_a_sampler_that_draws_at_random_is_drawn_anew_each_pass():
    class Drawn(AbsSampler):
        def generate(self, seed):
            return [(f"seed{seed}",)]

    sampler = EpochBatchSampler(Drawn([("x",)]), seed=10)
    drawn = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert drawn == [["seed11"], ["seed12"]]


def test_changing_a_batch_does_not_change_the_sampler(batches):
    sampler = EpochBatchSampler(batches)
    expected = [list(batch) for batch in batches]
    next(iter(sampler)).clear()
    sampler.set_epoch(1)
    assert list(sampler) == expected


def test_bad_settings():
    with pytest.raises(MisconfigurationException, match="the sampler made no batches"):
        EpochBatchSampler([])
    with pytest.raises(MisconfigurationException, match="num_iters_per_epoch must be at least 1 or left out, got 0"):
        EpochBatchSampler([["a"]], num_iters_per_epoch=0)


class Noise(torch.utils.data.Dataset):
    """Each sample is what numpy's and Python's global generators give."""

    def __getitem__(self, index):
        return np.random.rand()

    def __len__(self):
        return 4


def test_workers_are_seeded_by_seed_epoch_and_worker():
    factory = SequenceIterFactory(Noise(), [[0], [1], [2], [3]], seed=5, num_workers=2, collate_fn=lambda x: x[0])
    loader = factory.build_loader()
    loader.batch_sampler.set_epoch(2)
    values = list(loader)
    # ESPnet's epoch 3: worker 0 has batches 0 and 2 and the seed 5 + 3 + 0, worker 1 the others and 5 + 3 +
    # 1.
    first, second = np.random.RandomState(8).rand(2), np.random.RandomState(9).rand(2)
    assert values == [first[0], second[0], first[1], second[1]]


def test_worker_seed_reaches_both_generators():
    import random

    sampler = EpochBatchSampler([["a"]], seed=1)
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        SeedWorkers(sampler)(worker_id=2)
        values = random.random(), np.random.rand()
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
    assert values == (random.Random(4).random(), np.random.RandomState(4).rand())


def test_build_iter_counts_epochs_from_one_and_may_override_shuffle(batches):
    factory = SequenceIterFactory(list(range(60)), batches, shuffle=True, seed=2)
    sampler = EpochBatchSampler(batches, shuffle=True, seed=2)
    sampler.set_epoch(3)
    assert list(factory.build_iter(4).batch_sampler) == list(sampler)
    assert list(factory.build_iter(4, shuffle=False).batch_sampler) == [list(batch) for batch in batches]


def test_loader_keeps_what_ranks_do_with_a_batch(batches):
    factory = SequenceIterFactory([], batches)
    assert factory.build_loader().batch_sampler.batch_distribution == "per_gpu"
    assert factory.build_loader("global").batch_sampler.batch_distribution == "global"


def test_foreign_factory_is_asked_each_epoch():
    class Foreign:
        def build_iter(self, epoch):
            return [f"epoch {epoch}"]

    loader = FactoryLoader(Foreign())
    assert list(loader) == ["epoch 1"]
    loader.set_epoch(6)
    assert list(loader) == ["epoch 7"]
    assert not hasattr(loader, "batch_sampler")
