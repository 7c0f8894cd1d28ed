"""Data that draw random numbers, and runs that are cut within an epoch: the same batches and weights follow."""

import random

import numpy as np
import pytest
import torch
from loader_lab import check_resumed, fit
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from espnet3_lite import LiteModule
from espnet3_lite.espnet.data.loader import DataLoaderBuilder

COUNT, SIZE = 22, 3
BATCHES = -(-COUNT // SIZE)


class Noisy(Dataset):
    """Samples with noise from all three generators, and the epoch that was told."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
        return torch.tensor([float(index), noise, float(self.epoch)])


class Whole(Noisy):
    """Gives batches at once."""

    def __getitems__(self, indices):
        noise = torch.rand(len(indices)).tolist()
        return [torch.tensor([float(i), n, float(self.epoch)]) for i, n in zip(indices, noise, strict=True)]


class Lazy(Sampler):
    """Draws each index when it is asked for it, as one writes it at first."""

    def __len__(self):
        return COUNT

    def __iter__(self):
        for _ in range(COUNT):
            yield random.randrange(COUNT)


class Own(Sampler):
    """Batches of different sizes, shuffled by numpy when an epoch begins."""

    def __len__(self):
        return 6

    def __iter__(self):
        return iter(np.array_split(np.random.permutation(COUNT), 6))


def noisy_collate(samples):
    return torch.stack(samples) + torch.tensor([0.0, random.random(), 0.0])


def factory(**settings):
    """A loader as a configuration with ESPnet's iterator describes it; each batch comes more than once an epoch."""
    batches = {"_target_": "espnet3_lite.espnet.data.samplers.AbsSampler", "batches": [[0, 1], [2, 3, 4], [5]]}
    block = {"_target_": "espnet3_lite.espnet.data.iterators.SequenceIterFactory", "shuffle": True,
             "num_iters_per_epoch": 7, "batches": batches, **settings}  # fmt: skip
    return DataLoaderBuilder(Noisy(), {"dataloader": {"train": {"iter_factory": block}}}).build("train")


def generator():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "in order": lambda **workers: DataLoader(Noisy(), SIZE, **workers),
    "shuffled": lambda **workers: DataLoader(Noisy(), SIZE, shuffle=True, **workers),
    "own generator": lambda **workers: DataLoader(Noisy(), SIZE, shuffle=True, generator=generator(), **workers),
    "weighted": lambda **workers: DataLoader(
        Noisy(), SIZE, sampler=WeightedRandomSampler(torch.arange(1.0, COUNT + 1), COUNT), **workers
    ),
    "weighted, own generator": lambda **workers: DataLoader(
        Noisy(),
        batch_sampler=BatchSampler(WeightedRandomSampler(torch.ones(COUNT), COUNT, generator=generator()), SIZE, True),
        **workers,
    ),
    "replacement": lambda **workers: DataLoader(
        Noisy(), SIZE, sampler=RandomSampler(range(COUNT), replacement=True, num_samples=30), **workers
    ),
    "lazy sampler": lambda **workers: DataLoader(Noisy(), SIZE, sampler=Lazy(), **workers),
    "own batches": lambda **workers: DataLoader(Noisy(), batch_sampler=Own(), **workers),
    "no batches": lambda **workers: DataLoader(Noisy(), batch_size=None, shuffle=True, **workers),
    "whole batches": lambda **workers: DataLoader(Whole(), SIZE, shuffle=True, **workers),
    "collate": lambda **workers: DataLoader(Noisy(), SIZE, shuffle=True, collate_fn=noisy_collate, **workers),
    "configured": factory,
}


class Model(LiteModule):
    """Draws random numbers itself (dropout); keeps what it was trained on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen = torch.nn.Linear(3, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.tolist()))
        return self.layer(torch.nn.functional.dropout(batch / COUNT, 0.5)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", LOADERS)
def test_in_the_main_process_a_resumed_run_draws_the_same_numbers(name, tmp_path):
    check_resumed(Model, LOADERS[name], tmp_path, [(0, 0), (0, 2), (1, 1), (1, 3)])


#: These differ in the sampler alone, which draws in the main process.
SAME_IN_WORKERS = ("own generator", "weighted", "weighted, own generator", "replacement", "own batches")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SAME_IN_WORKERS)) for name in LOADERS]
)
def test_in_workers_a_resumed_run_draws_the_same_numbers(name, tmp_path):
    whole = check_resumed(Model, lambda: LOADERS[name](num_workers=2), tmp_path, [(0, 1), (1, 2)])
    one = fit(Model, lambda: LOADERS[name](num_workers=1))
    assert one.seen == whole.seen  # the number of workers changes nothing


class Noise(IterableDataset):
    """A stream that draws with each sample."""

    def __iter__(self):
        for index in range(10):
            yield torch.tensor([float(index), random.random() + float(np.random.rand()), torch.rand(()).item()])


class SizedNoise(Noise):
    def __len__(self):
        return 10


class OwnNoise:
    """A loader of batches that is no `DataLoader`."""

    def __iter__(self):
        return (torch.rand(SIZE, 3) for _ in range(6))


STREAMS = {
    "stream": lambda **workers: DataLoader(Noise(), SIZE, **workers),
    "stream with a length": lambda **workers: DataLoader(SizedNoise(), SIZE, **workers),
    "stream of batches": lambda **workers: DataLoader(Noise(), batch_size=None, **workers),
    "own": OwnNoise,
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("limit", [1.0, 3])
def test_a_stream_that_draws_goes_on_with_the_same_numbers(name, limit, tmp_path):
    check_resumed(Model, STREAMS[name], tmp_path, [(0, 0), (0, 2), (1, 0), (1, 1)], limit_train_batches=limit)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_stream_in_workers_too(persistent, tmp_path):
    workers = {"num_workers": 2, "persistent_workers": persistent}
    check_resumed(Model, lambda: STREAMS["stream"](**workers), tmp_path, [(0, 1), (1, 2)])


@pytest.mark.slow
def test_workers_that_stay_draw_what_new_ones_do_and_know_the_epoch(tmp_path):
    def make():
        return DataLoader(Noisy(), SIZE, shuffle=True, num_workers=2, persistent_workers=True)

    whole = check_resumed(Model, make, tmp_path, [(1, 2)], max_epochs=3)
    assert [{row[2] for row in rows} for _, _, rows in whole.seen] == [
        {float(epoch)} for epoch in (0, 1, 2) for _ in range(BATCHES)
    ]
    assert whole.seen == fit(Model, lambda: DataLoader(Noisy(), SIZE, shuffle=True, num_workers=1), max_epochs=3).seen


@pytest.mark.slow
def test_what_comes_again_in_an_epoch_is_augmented_anew():
    seen = [
        noise for _, _, rows in fit(Model, lambda: factory(num_workers=2), max_epochs=1).seen for _, noise, _ in rows
    ]
    assert len(set(seen)) == len(seen) > 7


# ---- generators that the user's own objects keep ---------------------------------------------------------------------


class Shift:
    """A transform with a generator of its own, as NumPy's manual advises."""

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def __call__(self, sample):
        return sample + torch.tensor([0.0, self.rng.normal(), 0.0])


class Keeping(Dataset):
    """A data set with one generator of each kind, none of which is a global one."""

    def __init__(self):
        self.python, self.legacy = random.Random(3), np.random.RandomState(3)
        self.torch, self.transforms = generator(), [Shift()]

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        noise = self.python.gauss(0, 1) + self.legacy.normal() + torch.rand((), generator=self.torch).item()
        sample = torch.tensor([float(index), noise, 0.0])
        for transform in self.transforms:
            sample = transform(sample)
        return sample


class KeepingStream(IterableDataset):
    def __init__(self):
        self.data = Keeping()

    def __iter__(self):
        return (self.data[index] for index in range(10))


class Jitter:
    """A collate function with a generator."""

    def __init__(self):
        self.rng = np.random.Generator(np.random.MT19937(5))

    def __call__(self, samples):
        return torch.stack(samples) + torch.tensor([0.0, 0.0, self.rng.normal()])


KEEPING = {
    "shuffled": lambda **more: DataLoader(Keeping(), SIZE, shuffle=True, collate_fn=Jitter(), **more),
    "stream": lambda **more: DataLoader(KeepingStream(), SIZE, **more),
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_data_sets_own_generators_go_on(name, tmp_path):
    check_resumed(Model, KEEPING[name], tmp_path, [(0, 0), (0, 2), (1, 1)])


@pytest.mark.parametrize("persistent", [False, True])
def test_a_data_sets_own_generators_go_on_in_workers(persistent, tmp_path):
    def make():
        return KEEPING["shuffled"](num_workers=2, persistent_workers=persistent)

    whole = check_resumed(Model, make, tmp_path, [(0, 1), (1, 2)])
    noises = [noise for _, _, rows in whole.seen for _, noise, _ in rows]
    assert len(set(noises)) == 2 * COUNT  # torch's workers draw the same numbers in each epoch


class Draws(Model):
    """Draws with a generator of its own in training, and keeps what a validation saw beside the batch before it."""

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleDict({"a": torch.nn.Identity()})
        self.parts["a"].noise = np.random.Generator(np.random.Philox(2))

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.tolist(), self.parts["a"].noise.normal()))
        return self.layer(batch / COUNT).square().mean() * (1 + self.seen[-1][3])

    def validation_step(self, batch, batch_idx):
        if self.seen:  # not in a sanity check
            self.seen[-1] += (batch.tolist(),)


def shuffled_validation():
    return DataLoader(Keeping(), SIZE, shuffle=True, generator=generator())


@pytest.mark.parametrize("every", [1, 2])
def test_a_modules_and_a_validations_own_generators_go_on(every, tmp_path):
    settings = {"val": shuffled_validation, "limit_val_batches": 2, "max_epochs": 4, "num_sanity_val_steps": 1}
    whole = check_resumed(
        Draws, lambda: DataLoader(Keeping(), SIZE), tmp_path, [(0, 3), (1, 3), (2, 7), (3, 1)],
        check_val_every_n_epoch=every, **settings,
    )  # fmt: skip
    validated = [place[4:] for place in whole.seen if len(place) > 4]
    assert len(validated) == 4 // every and len(set(map(str, validated))) == len(validated)


def test_a_sanity_check_moves_no_generator_of_the_training():
    seen = []
    for steps in (0, 2):
        data = Keeping()  # which both loaders share
        validation = DataLoader(data, SIZE)
        module = fit(
            Draws, lambda data=data: DataLoader(data, SIZE), val=lambda validation=validation: validation,
            num_sanity_val_steps=steps, max_epochs=1,
        )  # fmt: skip
        seen.append(module.seen[:-1])
    assert seen[0] == seen[1]


class Endless(Sampler):
    """Shuffles for ever, as many do that train by steps; it has no length."""

    def __init__(self, own=None):
        self.own = own

    def __iter__(self):
        while True:
            yield from torch.randperm(COUNT, generator=self.own).tolist()


ENDLESS = {"max_epochs": -1, "max_steps": 16}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sampler_without_a_length_goes_on(workers, tmp_path, recwarn):
    def make():
        return DataLoader(Noisy(), SIZE, sampler=Endless(generator()), num_workers=workers)

    check_resumed(Model, make, tmp_path, [(0, 2), (0, 6), (0, 7), (0, 12)], **ENDLESS)
    assert not [warning for warning in recwarn if "no `__len__`" in str(warning.message)]


def test_one_that_draws_from_the_global_generators_meanwhile_is_warned_of(tmp_path):
    def make():
        return DataLoader(Noisy(), SIZE, sampler=Endless())

    fit(Model, make, tmp_path, **ENDLESS)
    with pytest.warns(UserWarning, match="Endless has no `__len__` and draws from the global random generators"):
        fit(Model, make, path=tmp_path / "0-9.ckpt", **ENDLESS)


class Bucketed(Sampler):
    """Shuffles lists of its own in place, as bucket samplers do, and counts its epochs."""

    def __init__(self, kind):
        buckets = [list(range(start, min(start + 3, COUNT))) for start in range(0, COUNT, 3)]
        self.kind, self.epochs = kind, 0
        numbers = {"numbers": list(np.arange(COUNT)), "array": np.arange(COUNT), "tensor": torch.arange(COUNT)}
        self.batches = {"lists": buckets, **numbers}.get(kind)

    def __len__(self):
        return BATCHES if self.kind in ("lists", "count") else COUNT

    def __iter__(self):
        self.epochs += 1
        if self.kind == "count":
            order = random.Random(self.epochs).sample(range(COUNT), COUNT)
            return iter([order[start : start + SIZE] for start in range(0, COUNT, SIZE)])
        if self.kind == "tensor":
            self.batches = self.batches[torch.randperm(COUNT)]
            return iter(self.batches.tolist())
        if self.kind == "array":
            np.random.shuffle(self.batches)
            return iter(self.batches.tolist())
        random.shuffle(self.batches)
        for batch in self.batches if self.kind == "lists" else ():
            random.shuffle(batch)
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["lists", "numbers", "array", "tensor", "count"])
def test_what_a_sampler_shuffles_in_place_goes_on(kind, tmp_path):
    batched = "batch_sampler" if kind in ("lists", "count") else "sampler"
    size = {} if batched == "batch_sampler" else {"batch_size": SIZE}

    def make():
        return DataLoader(Noisy(), **{batched: Bucketed(kind)}, **size)

    check_resumed(Model, make, tmp_path, [(0, 2), (1, 0), (1, 7), (2, 3), (2, 7)], max_epochs=4)


class Shards(IterableDataset):
    """Shuffles its list of shards in place when an epoch begins."""

    def __init__(self):
        self.shards = [f"shard {number}" for number in range(5)]
        self.odd = ["text", lambda: None], ["text", torch.nn.Linear(1, 1)]  # which no checkpoint can hold

    def __iter__(self):
        random.shuffle(self.shards)
        self.odd[0].reverse()
        self.odd[1].reverse()
        for shard in self.shards:
            yield from (torch.tensor([float(shard[-1]), random.random(), 0.0]) for _ in range(2))


class CountsEpochs:
    """A loader of batches that is no `DataLoader`, and draws from a seed of each epoch."""

    def __init__(self):
        self.epoch, self.order = 0, list(range(6))

    def __iter__(self):
        self.epoch += 1
        random.Random(self.epoch).shuffle(self.order)
        return (torch.full((SIZE, 3), float(number)) for number in list(self.order))


@pytest.mark.parametrize("make", [lambda: DataLoader(Shards(), SIZE), CountsEpochs], ids=["stream", "own"])
def test_what_a_stream_shuffles_in_place_goes_on(make, tmp_path):
    check_resumed(Model, make, tmp_path, [(0, 2), (1, 0), (1, 3), (2, 2)], max_epochs=4)
