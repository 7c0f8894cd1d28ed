"""Batches of every kind are walked through in one way: moved, converted, measured."""

import dataclasses
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from typing import NamedTuple

import pytest
import torch
from loader_lab import quiet
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from espnet3_lite import LiteModule
from espnet3_lite.loaders.transfer import batch_size_of, map_tensors, move, tensors_in

META = torch.device("meta")  # a device that every machine has: what was moved is there


@dataclasses.dataclass
class Plain:
    x: torch.Tensor
    names: list = dataclasses.field(default_factory=lambda: ["a"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    total: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", self.x.sum())


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    x: torch.Tensor
    n: int = 3


class Two(NamedTuple):
    x: torch.Tensor
    uid: str


class Strict(namedtuple("Strict", "x")):
    def __new__(cls, x, *, checked):
        return super().__new__(cls, x)


class Attrs:
    """What an attrs class looks like from outside."""

    __attrs_attrs__ = namedtuple("Attributes", "x uid")(*[namedtuple("A", "name")(name) for name in ("x", "uid")])

    def __init__(self, x):
        self.x, self.uid = x, "u"


class Encoding(UserDict):
    """As tokenizers give it: a dict-like with attributes and a constructor of its own."""

    def __init__(self, data, encodings):
        super().__init__(data)
        self.encodings = encodings


class Rows(UserDict):
    """As a TensorDict: what it gives when it is iterated over are rows, not keys."""

    def __iter__(self):
        return iter(self["x"])

    def keys(self):
        return self.data.keys()


class Model:
    """As pydantic's models, by what they say of themselves."""

    model_fields = {"x": "a field", "uid": "a field"}

    def __init__(self, x):
        self.x, self.uid = x, "u"


class Moves:
    """An object that moves itself."""

    def __init__(self, x):
        self.x, self.moves = x, 0

    def to(self, device):
        clone = Moves(self.x.to(device))
        clone.moves = self.moves + 1
        return clone


class MovesInPlace(Moves):
    def to(self, device):
        self.x = self.x.to(device)


def x():
    return torch.arange(6.0).reshape(3, 2)


BATCHES = {
    "dict": lambda: {"x": x()},
    "OrderedDict": lambda: OrderedDict(x=x()),
    "defaultdict": lambda: defaultdict(list, x=x()),
    "UserDict": lambda: UserDict(x=x()),
    "encoding": lambda: Encoding({"x": x()}, encodings=[1]),
    "rows": lambda: Rows({"x": x()}),
    "pydantic": lambda: Model(x()),
    "list": lambda: ["names", x()],
    "UserList": lambda: UserList([x()]),
    "deque": lambda: deque([x()], maxlen=4),
    "tuple": lambda: (["a", "b", "c"], {"x": x()}),
    "named tuple": lambda: Two(x(), "u"),
    "named tuple of its own": lambda: Strict(x(), checked=True),
    "dataclass": lambda: Plain(x()),
    "frozen dataclass": lambda: Frozen(x()),
    "dataclass with slots": lambda: Slots(x()),
    "attrs": lambda: Attrs(x()),
    "packed": lambda: pack_sequence([torch.ones(3), torch.ones(2), torch.ones(1)]),
    "moves": lambda: Moves(x()),
    "moves in place": lambda: MovesInPlace(x()),
    "nested": lambda: {"a": [Plain(x()), (Two(x(), "u"), UserDict(b=Moves(x())))], "n": 3},
    "max": lambda: torch.max(x(), dim=1, keepdim=True),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_it_is_moved(kind):
    batch = BATCHES[kind]()
    moved = move(batch, META)
    assert type(moved) is type(batch)
    tensors = list(tensors_in(moved))
    assert tensors and all(tensor.device == META for tensor in tensors)
    if kind != "moves in place":
        assert all(tensor.device.type == "cpu" for tensor in tensors_in(batch))  # the loader's own stays as it was


@pytest.mark.parametrize("kind", BATCHES)
def test_it_is_converted_and_keeps_everything_else(kind):
    batch = BATCHES[kind]()
    double = map_tensors(batch, torch.Tensor.double)
    assert type(double) is type(batch)
    assert {tensor.dtype for tensor in tensors_in(double)} == {torch.float64}
    assert all(torch.equal(a.double(), b) for a, b in zip(tensors_in(batch), tensors_in(double), strict=True))


@pytest.mark.parametrize("kind", BATCHES)
def test_it_is_counted(kind):
    assert batch_size_of(BATCHES[kind]()) == 3


def test_what_is_no_tensor_stays():
    batch = Encoding({"x": x(), "n": [1, "two", None]}, encodings=["e"])
    double = map_tensors(batch, torch.Tensor.double)
    assert double["n"] == [1, "two", None] and double.encodings == ["e"] and batch["x"].dtype == torch.float32
    assert map_tensors(Slots(x()), torch.Tensor.double).n == 3
    assert map_tensors(deque([x()], maxlen=4), torch.Tensor.double).maxlen == 4
    frozen = map_tensors(Frozen(x()), torch.Tensor.double)
    assert frozen.total.dtype == torch.float64 and float(frozen.total) == 15.0
    assert Moves(x()).to("cpu").moves == 1 and move({"a": Moves(x())}, META)["a"].moves == 1
    assert map_tensors("text", torch.Tensor.double) == "text" and batch_size_of({"names": ["a", "b"]}) == 1
    assert batch_size_of(torch.tensor(3.0)) == 1


def test_packed_sequences_keep_their_sizes_where_torch_wants_them():
    packed = move(pack_sequence([torch.ones(3), torch.ones(2)]), torch.device("cpu"))
    assert isinstance(packed, PackedSequence) and packed.batch_sizes.device.type == "cpu"
    double = map_tensors(packed, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    assert double.data.dtype == torch.float64 and double.batch_sizes.dtype == torch.int64


@pytest.mark.parametrize("kind", ["dict", "UserDict", "dataclass", "named tuple", "attrs", "nested"])
def test_a_run_converts_and_weighs_it(kind):
    """Means are weighed by the number of samples, 3 and 1; under 64-true all tensors are float64."""
    first, second = BATCHES[kind](), map_tensors(BATCHES[kind](), lambda tensor: tensor[:1] + 4)

    class Model(LiteModule):
        def validation_step(self, batch, batch_idx):
            tensors = list(tensors_in(batch))
            assert {tensor.dtype for tensor in tensors} == {torch.float64}
            self.log("mean", tensors[0].mean())

    (result,) = quiet(max_epochs=1, precision="64-true").validate(Model(), [first, second], verbose=False)
    assert result["mean"] == (3 * 2.5 + 1 * 4.5) / 4
