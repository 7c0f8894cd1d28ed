"""Generators that an object makes when it first draws, from numbers of the machine, as lhotse's transforms do."""

import random

import numpy as np
import pytest
import torch
from loader_lab import check_resumed, fit
from torch.utils.data import DataLoader, Dataset

from espnet3_lite import LiteModule
from espnet3_lite.seed import generators_in, states_of

KINDS = {
    "python": (random.Random, lambda rng: rng.random()),
    "numpy": (np.random.default_rng, lambda rng: rng.random()),
    "legacy": (np.random.RandomState, lambda rng: rng.random_sample()),
    "torch": (lambda: torch.Generator().manual_seed(random.SystemRandom().getrandbits(32)),
              lambda rng: torch.rand((), generator=rng).item()),
}  # fmt: skip


class Perturb:
    def __init__(self, kind):
        self.kind, self.rng = kind, None

    def __call__(self, value):
        make, draw = KINDS[self.kind]
        if self.rng is None:
            self.rng = make()
        return value + draw(self.rng)


class Values(Dataset):
    def __init__(self, kind):
        self.transforms = [Perturb(kind)]

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([self.transforms[0](float(index))])


class AtOnce(Values):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Model(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.flatten().tolist()))
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def model():
    torch.manual_seed(1)
    return Model()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_with_them(kind, tmp_path):
    whole = check_resumed(model, lambda: DataLoader(Values(kind), 2, shuffle=True), tmp_path, [(0, 0), (0, 3), (1, 1)])
    drawn = [value % 1 for *_, values in whole.seen for value in values]
    assert len(set(drawn)) == 16


@pytest.mark.parametrize("data", [Values, AtOnce])
def test_in_workers_they_are_seeded_from_the_first_sample_on(data, tmp_path):
    def make():
        return DataLoader(data("python"), 2, shuffle=True, num_workers=2)

    whole = check_resumed(model, make, tmp_path, [(0, 0), (1, 1)])
    assert fit(model, make).seen == whole.seen


def test_each_kind_is_made_of_its_state():
    for kind, (make, _) in KINDS.items():
        there, new = Perturb(kind), Perturb(kind)
        there.rng = make()
        found = generators_in({"loader": new}, states_of(generators_in({"loader": there})))
        assert list(found) == ["loader.rng"] and type(new.rng) is type(there.rng)
    assert generators_in({"loader": Perturb("python")}, {"loader.other": [3, [0], None]}) == {}
