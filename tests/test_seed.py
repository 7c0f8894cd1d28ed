"""Seeding all generators, reading their states, putting them back; the state survives a checkpoint."""

import random

import numpy as np
import pytest
import torch

from espnet3_lite.checkpoint_io import load_checkpoint, save_checkpoint
from espnet3_lite.seed import collect_random_state, restore_random_state, seed_everything


@pytest.fixture(autouse=True)
def generators(monkeypatch):
    """Put the generators and the environment back."""
    state = collect_random_state()
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    restore_random_state(state)


def draw():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_the_same_seed_gives_the_same_numbers_of_all_generators():
    seed_everything(7, verbose=False)
    first = draw()
    seed_everything(8, verbose=False)
    other = draw()
    seed_everything(7, verbose=False)
    assert draw() == first
    assert not set(first) & set(other)


def test_numbers_are_those_of_each_library_with_that_seed():
    assert seed_everything(7, verbose=False) == 7
    expected = [random.Random(7).random(), np.random.RandomState(7).rand()]
    assert [random.random(), np.random.rand()] == expected
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_state_put_back_gives_the_same_numbers(before, tmp_path):
    """Also through a file, and where Python and numpy hold the second half of a pair of normal numbers back."""
    seed_everything(3, verbose=False)
    for _ in range(before):
        random.gauss(0, 1), np.random.randn()
    save_checkpoint({"random": collect_random_state()}, tmp_path / "state.ckpt")
    expected = draw()
    draw()
    restore_random_state(load_checkpoint(tmp_path / "state.ckpt")["random"])
    assert draw() == expected


def test_the_environment_says_the_seed_to_workers_and_ranks(monkeypatch):
    import os

    seed_everything(5, workers=True, verbose=False)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("5", "1")
    assert seed_everything(verbose=False) == 5, "None takes it from there"
    assert os.environ["PL_SEED_WORKERS"] == "0"
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert seed_everything(verbose=False) == 0


@pytest.mark.parametrize(
    "seed, message", [("many", "whole number, got 'many'"), (-1, "between 0 and 4294967295, got -1")]
)
def test_seeds_that_are_none(seed, message):
    with pytest.raises(ValueError, match=message):
        seed_everything(seed)
