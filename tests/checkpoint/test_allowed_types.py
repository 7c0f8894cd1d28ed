"""What is written and what is read: plain values, harmless types of other programs, and nothing that runs."""

import argparse
import collections
import datetime
import enum
import functools
import gc
import io
import pathlib
import pickle
import weakref

import numpy
import pytest
import torch

from espnet3_lite.checkpoint.allowed_types import PlainPickling, allowed_names, harmless_globals, plain, settle


class Colour(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


Point = collections.namedtuple("Point", "x y")


def test_what_is_plain_comes_back_as_the_same_object():
    state = torch.nn.Linear(2, 1).state_dict()
    tree = {"state_dict": state, "list": [1, 2.5, None, "x", True, 1 + 2j, b"x"], 3: (1, {2}), "size": torch.Size([1])}
    assert plain(tree) is tree
    assert plain(tree)["state_dict"]._metadata == state._metadata
    deep = [{"at": functools.reduce(lambda inner, _: [inner], range(30), bottom)} for bottom in (1, numpy.int8(1))]
    assert plain(deep[0]) is deep[0] and plain(deep[1]) == deep[0], "deeper than the quick look goes"


@pytest.mark.parametrize(
    "value, expected",
    [
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("x"), "x"),
        (pathlib.Path("/a/b"), "/a/b"),
        (argparse.Namespace(a=numpy.int8(1)), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.OrderedDict(a=numpy.int8(1)), collections.OrderedDict(a=1)),
        (collections.Counter("aab"), collections.Counter("aab")),
        (Colour.RED, "red"),
        (Number.TWO, 2),
        (Point(1, numpy.int8(2)), (1, 2)),
        ({Colour.RED: 1}, {"red": 1}),
    ],
)
def test_near_relations_are_converted(value, expected):
    converted = plain(value)
    assert converted == expected
    assert type(converted) is type(expected)
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == expected


@pytest.mark.parametrize(
    "value, message",
    [
        ({"a": [1, object()]}, r"checkpoint\['a'\]\[1\] is a builtins.object, which a checkpoint cannot hold"),
        ({"f": len}, r"checkpoint\['f'\] is a builtins.builtin_function_or_method"),
        ({"array": numpy.zeros(2)}, r"checkpoint\['array'\] is a numpy.ndarray.*torch.from_numpy"),
        ({"t": datetime.timedelta(1)}, r"checkpoint\['t'\] is a datetime.timedelta"),
        ({"m": torch.nn.Linear(1, 1)}, r"\['m'\] is a torch.nn.modules.linear.Linear.*module.state_dict\(\)"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_by_its_place(value, message):
    with pytest.raises(TypeError, match=message):
        plain(value)


def load_pickled(value):
    """Save without restraint and load with it, as for a file of another program."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    with harmless_globals():
        return settle(torch.load(buffer, weights_only=True))


def test_harmless_types_are_read():
    value = {
        "path": pathlib.PurePosixPath("a/b"),
        "real_path": pathlib.Path("/x"),
        "spaces": argparse.Namespace(inner=argparse.Namespace(number=numpy.float32(0.5))),
        "default": collections.defaultdict(list, {"a": [1]}),
        "queue": collections.deque([1, 2]),
        "when": (datetime.date(2024, 1, 2), datetime.timedelta(1), datetime.timezone.utc),
        "tuple": (numpy.int64(3), [numpy.bool_(True)]),
        "kind": int,
    }
    read = load_pickled(value)
    assert read == {
        **value,
        "queue": [1, 2],
        "default": {"a": [1]},
        "spaces": argparse.Namespace(inner=argparse.Namespace(number=0.5)),
    }
    assert type(read["tuple"][0]) is int and type(read["default"]) is dict


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(6, dtype="f4").reshape(2, 3),
        numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        numpy.array([1, 2], dtype=">i4"),
        numpy.array(2.5),
        numpy.zeros((0, 3), dtype=bool),
        numpy.array([1 + 2j]),
    ],
)
def test_arrays_are_read(array):
    read = load_pickled((array, [array]))
    for one in (read[0], read[1][0]):
        assert one.dtype == array.dtype
        numpy.testing.assert_array_equal(one, array)
        assert one.flags.writeable


@pytest.mark.parametrize("array", [numpy.array([object()]), numpy.array(["x"]), numpy.zeros(1, dtype=[("a", "i4")])])
def test_arrays_of_anything_but_numbers_are_refused(array):
    with pytest.raises(pickle.UnpicklingError):
        load_pickled({"array": array})


def test_shared_and_circular_references_are_kept():
    shared = {"number": numpy.float64(1)}
    circle = [shared, shared]
    circle.append(circle)
    read = load_pickled({"circle": circle})["circle"]
    assert read[0] is read[1] and read[0] == {"number": 1.0}
    assert read[2] is read


def test_the_list_holds_nothing_that_can_call_or_open():
    assert not [name for name in allowed_names() if name.split(".")[-1] in ("eval", "getattr", "open", "partial")]
    before = set(torch.serialization.get_safe_globals())
    load_pickled(argparse.Namespace(a=1))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        buffer = io.BytesIO()
        torch.save(argparse.Namespace(a=1), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_pickling_asks_torch_of_tensors_alone_and_writes_the_same_bytes(monkeypatch):
    net = torch.nn.Linear(2, 1)
    numbers = {f"name{number}": [number, None, 0.5, True, b"x"] for number in range(200)}
    state = {"net": net.state_dict(), "weight": net.weight, "kind": torch.float16, "numbers": numbers, "set": {1}}
    asked, is_storage = [], torch.is_storage
    monkeypatch.setattr(torch, "is_storage", lambda value: asked.append(value) or is_storage(value))
    files = {}
    for name, how in (("torch", {}), ("ours", {"pickle_module": PlainPickling})):
        asked.clear()
        with io.BytesIO() as file:
            torch.save(state, file, **how)
            files[name] = file.getvalue(), len(asked)
    (expected, before), (written, after) = files.values()
    assert written == expected
    assert after < 40 < 1000 < before


def test_what_was_pickled_is_freed_without_the_garbage_collector():
    state = {"w": torch.ones(2)}
    alive = weakref.ref(state["w"])
    gc.collect()
    gc.disable()
    try:
        torch.save(state, io.BytesIO(), pickle_module=PlainPickling)
        del state
        assert alive() is None
    finally:
        gc.enable()
