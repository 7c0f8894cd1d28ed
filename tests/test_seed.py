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


@pytest.mark.parametrize("number", [np.random.rand, np.random.randn, lambda: np.random.randint(9), random.random])
def test_a_state_is_taken_anew_where_a_number_was_drawn(number):
    np.random.seed(3)
    for _ in range(3):  # of normal numbers every second one waits
        number()
        state = collect_random_state()
        first, second = number(), draw()
        restore_random_state(state)
        assert (number(), draw()) == (first, second)
        restore_random_state(state)


def test_a_normal_number_that_waits_again_is_in_the_state():
    np.random.seed(3)
    np.random.randn()
    waiting = collect_random_state()
    np.random.randn()
    assert collect_random_state()["numpy"][3] == 0
    restore_random_state(waiting)
    assert collect_random_state()["numpy"][3] == 1


def test_numpys_state_is_read_once_where_nothing_is_drawn(monkeypatch):
    """It takes most of the time that a batch of a stream costs beside its step."""
    calls, get_state = [], np.random.get_state
    monkeypatch.setattr(np.random, "get_state", lambda: calls.append(1) or get_state())
    np.random.seed(3)
    states = [collect_random_state() for _ in range(5)]
    assert len(calls) == 1
    np.random.rand()
    positions = [state["numpy"][2] for state in (states[-1], collect_random_state())]
    assert positions == [624, 2] and len(calls) == 2
