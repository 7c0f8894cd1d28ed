"""Seeding and random states: Python's, numpy's and torch's generators together."""

import functools
import io
import os
import random
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from espnet3_lite import seed, seed_everything
from espnet3_lite.seed import collect_random_state, generators_in, restore_random_state, seed_anew, set_state, state_of


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


def test_a_state_of_earlier_versions_comes_back():
    """They kept Python's 625 numbers as a list, each of which torch saves on its own."""
    state = collect_random_state()
    assert len(state["python"][1]) == 625 * 4
    version, words, gauss = random.getstate()
    first = draw()
    restore_random_state({**state, "python": [version, list(words), gauss]})
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


OWN = {
    "python": lambda: random.Random(3),
    "legacy numpy": lambda: np.random.RandomState(3),
    **{kind.__name__: lambda kind=kind: np.random.Generator(kind(3)) for kind in (
        np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)},
    "torch": lambda: torch.Generator().manual_seed(3),
}  # fmt: skip


GLOBAL = np.random.default_rng(4)


def augment(sample):
    return sample + GLOBAL.normal()


class UsesGlobals:
    def __getitem__(self, index):
        return augment(index)


def number(generator):
    """The next one that a generator of any kind draws."""
    if isinstance(generator, torch.Generator):
        return torch.rand((), generator=generator).item()
    return generator.random() if hasattr(generator, "random") else generator.rand()


@pytest.mark.parametrize("kind", OWN)
def test_an_own_generators_state_goes_through_a_file(kind):
    generator, file = OWN[kind](), io.BytesIO()
    first = number(generator)
    torch.save(state_of(generator), file)
    following = [number(generator) for _ in range(5)]
    file.seek(0)
    other = OWN[kind]()
    set_state(other, torch.load(file, weights_only=True))
    assert [number(other) for _ in range(5)] == following and first not in following


@pytest.mark.parametrize("kind", OWN)
def test_a_generator_begins_anew_from_a_seed(kind):
    generator, other = OWN[kind](), OWN[kind]()
    number(generator)
    seed_anew(generator, 2**63 - 1)
    seed_anew(other, 2**63 - 1)
    drawn = [number(generator), number(generator)]
    assert drawn == [number(other), number(other)] and drawn[0] != number(OWN[kind]())


def test_generators_are_found_wherever_an_object_keeps_them():
    one, two, three, four, five, six = (random.Random(seed) for seed in range(6))

    def transform(sample):
        return sample + two.random()

    net = torch.nn.Sequential(torch.nn.Linear(1, 1))
    net[0].noise = three
    data = types.SimpleNamespace(
        rng=one, transforms=[transform, functools.partial(max, key=four)], again=one, large=[five] * 101,
        method=types.MethodType(lambda self: None, types.SimpleNamespace(rng=six)), system=random.SystemRandom(),
    )  # fmt: skip
    data.trainer = types.SimpleNamespace(rng=random.Random())
    data.itself = data
    data.inner = UsesGlobals()
    assert generators_in({"data": data, "net": net, "nothing": None}) == {
        "data.rng": one, "data.again": one, "data.transforms.0.two": two, "data.transforms.1.keywords.key": four,
        "data.method.self.rng": six, "net.0.noise": three, "data.inner.class.__getitem__.augment.GLOBAL": GLOBAL,
    }  # fmt: skip


def test_a_list_of_batches_is_looked_at_and_what_is_plain_in_it_is_not(monkeypatch):
    looked_at, held_by = [], seed._held_by
    monkeypatch.setattr(seed, "_held_by", lambda value: looked_at.append(value) or held_by(value))
    batches = [(torch.zeros(1), "name", 1) for _ in range(60)]
    loader = [*batches, ([random.Random()], None)]
    assert generators_in({"loader": loader}).keys() == {"loader.60.0.0"}
    assert looked_at == [loader, loader[-1], loader[-1][0]]
    looked_at.clear()
    plain = [(["a", "b"], {"x": torch.zeros(1), "y": OrderedDict(lengths=[1, 2])}) for _ in range(60)]
    assert generators_in({"loader": plain, "given": {"train": plain}}) == {} and looked_at == []
    plain[3][1]["y"]["rng"] = generator = random.Random()
    assert generators_in({"loader": plain}) == {"loader.3.1.y.rng": generator}
    plain.append(plain)
    assert generators_in({"loader": plain}) == {"loader.3.1.y.rng": generator}


def test_own_generators_are_a_part_of_the_random_state():
    own = {"data.rng": np.random.default_rng(3)}
    state = collect_random_state(own)
    drawn = number(own["data.rng"]), random.random()
    restore_random_state(state, {**own, "elsewhere": random.Random()})
    assert (number(own["data.rng"]), random.random()) == drawn
    assert "own" not in collect_random_state()


def test_a_class_that_names_no_module_is_not_looked_through():
    """Such as a library's of another language."""

    class Nameless(type):
        @property
        def __module__(cls):
            raise AttributeError("__module__")

    made = Nameless("Made", (), {})
    with pytest.raises(AttributeError):
        made.__module__  # noqa: B018
    assert list(seed.generators_in({"data": types.SimpleNamespace(kind=made, rng=random.Random(1))})) == ["data.rng"]
