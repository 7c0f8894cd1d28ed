"""Seeding and random states: Python's, numpy's and torch's generators together."""

import os
import random

import numpy as np
import pytest
import torch

from espnet3_lite import seed_everything
from espnet3_lite.seed import collect_random_state, restore_random_state


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item(), random.gauss(0, 1)


def test_the_same_seed_gives_the_same_numbers():
    assert seed_everything(5, verbose=False) == 5
    first = draw()
    seed_everything(5, verbose=False)
    assert draw() == first
    seed_everything(6, verbose=False)
    assert draw() != first
    assert os.environ["PL_GLOBAL_SEED"] == "6"


def test_without_a_seed_the_environments_counts(monkeypatch):
    assert seed_everything(verbose=False) == 11
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert seed_everything(verbose=False) == 0


@pytest.mark.parametrize("seed", [-1, 2**32, "x", None])
def test_what_is_no_seed(seed, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "abc")
    with pytest.raises(ValueError, match="seed must be"):
        seed_everything(seed, verbose=False)


def test_a_state_comes_back_from_a_file(tmp_path):
    draw()  # leaves half a pair of normal numbers in Python's and numpy's generators
    torch.save(collect_random_state(), tmp_path / "state")
    first = draw()
    draw()
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == first
