"""What makes a run repeatable: seeding all generators, reading and putting back their states, torch's switches."""

import contextlib
import ctypes
import os
import random
import types
import zlib
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map  # no public name up to torch 2.14

from espnet3_lite.distributed.rank import rank_zero_info

#: A source of random numbers that somebody keeps for himself, beside Python's, NumPy's and torch's global ones.
Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, numpy and torch (all devices).

    Args:
        seed: 0 to 2**32 - 1. None takes ``PL_GLOBAL_SEED`` from the environment, else 0.
        workers: Also let data loader workers derive their seeds from it (``PL_SEED_WORKERS``); torch does this for
            its own and Python's generators by itself, numpy's is seeded by our loaders.
        verbose: Log the seed on rank zero.

    Returns:
        The seed.

    Raises:
        ValueError: the seed is not a whole number in range.

    Example:
        >>> seed_everything(3, verbose=False)
        3
        >>> first = torch.rand(2)
        >>> _ = seed_everything(3, verbose=False)
        >>> torch.equal(first, torch.rand(2))
        True
    """
    try:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0) if seed is None else seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed_everything: seed must be a whole number, got {seed!r}") from error
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed_everything: seed must be between 0 and {2**32 - 1}, got {seed}")
    if verbose:
        rank_zero_info("Seed set to %d", seed)
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def set_backends(deterministic: bool | str | None, benchmark: bool | None) -> None:
    """Torch's global switches, as ``Trainer(deterministic=..., benchmark=...)`` says; None leaves them as they are."""
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition for it
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark


def collect_random_state(own: Mapping[str, Generator] | None = None) -> dict[str, Any]:
    """The states of the global generators, as tensors and plain values (loads with ``weights_only``).

    Args:
        own: Further generators, by place, as `generators_in` finds them.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, array("I", words).tobytes(), gauss],  # 625 numbers one by one take a millisecond to save
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if own:
        state["own"] = states_of(own)
    return state


#: What `_numpy_state` found last: the generator's memory, and what numpy made of it.
_last_numpy_state: tuple[bytes, list[Any]] = (b"", [])


def _numpy_state() -> list[Any]:
    """The state of numpy's generator: the same object as last time, where no number was drawn since.

    A stream's state is taken with each batch, and numpy's `get_state` takes a hundred times as long as a look at the
    memory that it reads, which every number drawn changes. The one exception is the second of a pair of normal numbers,
    which waits outside of that memory: while one waits, numpy is asked.
    """
    global _last_numpy_state
    generator = np.random.mtrand.get_bit_generator()
    memory = ctypes.string_at(generator.ctypes.state_address, 2500)  # of the Mersenne twister: 624 words, a position
    if memory != _last_numpy_state[0]:
        name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
        found = [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)]
        _last_numpy_state = (b"" if has_gauss else memory, found)
    return _last_numpy_state[1]


def restore_random_state(state: dict[str, Any], own: Mapping[str, Generator] | None = None) -> None:
    """Put back what `collect_random_state` gave; of `own` generators those that had a place then."""
    global _last_numpy_state
    version, words, gauss = state["python"]
    words = array("I", words) if isinstance(words, bytes) else words  # numbers in files of earlier versions
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    _last_numpy_state = (b"", [])  # a second normal number may wait now where none did
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    set_states(own or {}, state.get("own", {}))


def same_random_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether nothing was drawn from Python's, NumPy's and torch's CPU generators between two states."""
    unmoved = one["python"] == other["python"] and one["numpy"] is other["numpy"]
    return unmoved and torch.equal(one["torch"], other["torch"])


def mark_of(batch: Any) -> int:
    """A number that tells batches apart by what is in their tensors, from whose devices it reads; 0 without any."""
    mark = 0
    for tensor in (leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)):
        try:
            numbers = tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()
        except RuntimeError:  # it is nested, sparse or quantized, or one row of numbers does not make it
            continue
        mark = zlib.crc32(numbers.data, mark)
    return mark


@contextlib.contextmanager
def isolated_random_state(own: Mapping[str, Generator] | None = None) -> Iterator[None]:
    """Whatever draws random numbers in here, the outside does not notice; `own` as in `collect_random_state`."""
    state = collect_random_state(own)
    try:
        yield
    finally:
        restore_random_state(state, own)


# ---- generators that data sets, transforms and modules keep for themselves -------------------------------------------


def states_of(own: Mapping[str, Generator]) -> dict[str, Any]:
    """The states of generators, by the same places."""
    return {place: state_of(generator) for place, generator in own.items()}


def set_states(own: Mapping[str, Generator], states: Mapping[str, Any]) -> None:
    """Put back what `states_of` gave; a generator whose place is not among them stays as it is."""
    for place, generator in own.items():
        if place in states:
            set_state(generator, states[place])


def state_of(generator: Generator) -> Any:
    """A generator's state, as a tensor or plain values."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return [version, list(words), gauss]
    if isinstance(generator, np.random.Generator):
        state: Any = generator.bit_generator.state
    else:
        state = generator.get_state(legacy=False)
    return tree_map(lambda part: part.tolist() if isinstance(part, np.ndarray) else part, state)


def set_state(generator: Generator, state: Any) -> None:
    """Put back what `state_of` gave for a generator of the same kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    else:
        arrays = tree_map(
            lambda part: np.array(part, np.uint64) if isinstance(part, list) else part,
            state,
            is_leaf=lambda part: isinstance(part, list),
        )
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = arrays
        else:
            generator.set_state(arrays)


def _generator_for(state: Any) -> Generator:
    """A new generator of the kind that `state_of` gave this state of."""
    if isinstance(state, torch.Tensor):
        return torch.Generator(state.device)
    if isinstance(state, list):
        return random.Random()
    kind = getattr(np.random, state["bit_generator"])
    return np.random.RandomState(kind()) if "has_gauss" in state else np.random.Generator(kind())


def seed_anew(generator: Generator, seed: int) -> None:
    """Let a generator begin from a seed, as a new one would: 0 to 2**63 - 1."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed % 2**32)


#: How far `generators_in` looks: attributes of attributes, containers of a few items, and no more objects in all.
_DEEPEST, _MOST_ITEMS, _MOST_OBJECTS = 8, 100, 20_000
#: Attributes that lead away from what an object is made of: to its trainer, and to a loader's worker processes.
_LEADS_AWAY = {"_trainer", "trainer", "_iterator"}
#: Whose classes name no generators of the user's.
_NOT_THE_USERS = ("builtins", "collections", "functools", "torch.", "types", f"{__package__}.")
_CONTAINERS = (list, tuple, dict)
#: What holds nothing, and what does not where all in it is such.
_PLAIN = frozenset(
    (str, bytes, int, float, bool, type(None), types.ModuleType, torch.Tensor, torch.nn.Parameter, np.ndarray)
)
_ROWS = frozenset((*_CONTAINERS, OrderedDict, defaultdict))
_PLAIN_OR_ROWS, _PLAIN_OR_LISTS = _PLAIN | _ROWS, _PLAIN | {list, tuple}
#: What torch keeps in a module; of it only the parts are looked at.
_TORCHS_OWN = frozenset(vars(torch.nn.Module())) - {"_modules"}


def generators_in(
    parts: Mapping[str, Any], states: Mapping[str, Any] = types.MappingProxyType({})
) -> dict[str, Generator]:
    """The generators that objects keep in attributes, by place, such as ``loader.dataset.transform.rng``.

    Looked through are attributes, dicts, lists and tuples of at most 100 items, what a `functools.partial`, a bound
    method or a function holds, and the global variables that the methods of the user's classes name. What stands at two
    places is listed at both, so that a place means the same in each run.

    Args:
        parts: The objects, by the first part of the place.
        states: By place, as `states_of` gave them: where an object has None in such an attribute, since it makes its
            generator when it first draws, it gets one of that kind.

    Example:
        >>> part = types.SimpleNamespace(rng=random.Random(1), inner=[np.random.default_rng(2)])
        >>> list(generators_in({"dataset": part}))
        ['dataset.rng', 'dataset.inner.0']
    """
    found: dict[str, Generator] = {}
    seen: dict[int, Any] = {}  # holds the objects, for an id is only good while its owner lives
    waiting: list[tuple[_Place, Any]] = [((name,), part) for name, part in parts.items() if not _holds_nothing(part)]
    for place, value in waiting:
        if type(value) not in _CONTAINERS and isinstance(value, Generator):
            if not isinstance(value, random.SystemRandom):
                found[".".join(map(str, place))] = value
        elif len(place) <= _DEEPEST and id(value) not in seen and len(seen) < _MOST_OBJECTS:
            seen[id(value)] = value
            for name, part in _held_by(value):
                if part is None and states and name in getattr(value, "__dict__", ()):
                    if (state := states.get(".".join(map(str, (*place, name))))) is not None:
                        part = _generator_for(state)
                        setattr(value, str(name), part)
                if type(part) not in _PLAIN and not _holds_nothing(part):
                    waiting.append(((*place, name), part))
    return found


#: The names that lead to an object.
_Place: TypeAlias = tuple[object, ...]


def _holds_nothing(part: Any) -> bool:
    """Rows of plain values and tensors, such as a list of 60 batches of two; a class that is not the user's.

    Each level of the rows is looked at by functions that are written in C: a list of batches is met several times an
    epoch, and one by one its batches take twice the time or more.
    """
    if isinstance(part, type):
        home = getattr(part, "__module__", None)  # a class of a C++ library may name none
        return not isinstance(home, str) or home.startswith(_NOT_THE_USERS)
    if type(part) not in _ROWS or len(part) > _MOST_ITEMS:
        return False
    level = part.values() if isinstance(part, dict) else part
    for _ in range(_DEEPEST):  # less deep than what contains itself
        if _PLAIN.issuperset(map(type, level)):
            return True
        if not (kinds := set(map(type, level))) <= _PLAIN_OR_ROWS:
            return False
        rows = level if kinds <= _ROWS else [one for one in level if type(one) in _ROWS]
        if max(map(len, rows)) > _MOST_ITEMS or sum(map(len, rows)) > _MOST_OBJECTS:
            return False
        if not kinds <= _PLAIN_OR_LISTS:
            rows = [row.values() if isinstance(row, dict) else row for row in rows]
        level = [*chain.from_iterable(rows)]
    return False


def _held_by(value: Any) -> Iterator[tuple[object, Any]]:
    """What an object holds, by name or number."""
    if isinstance(value, (str, bytes, int, float, type(None), types.ModuleType, torch.Tensor, np.ndarray)):
        return
    if isinstance(value, type):
        yield from ((name, part) for name, part in vars(value).items() if isinstance(part, types.FunctionType))
        yield from enumerate(value.__bases__)
        return
    if isinstance(value, _CONTAINERS):
        if len(value) <= _MOST_ITEMS:
            yield from value.items() if isinstance(value, dict) else enumerate(value)
        if type(value) in _CONTAINERS:
            return
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells if cell != types.CellType())
        yield "defaults", value.__defaults__
        used = {name: known[name] for name in value.__code__.co_names if name in (known := value.__globals__)}
        yield from ((name, part) for name, part in used.items() if isinstance(part, Generator) or _beside(value, part))
    yield "class", type(value)
    attributes = getattr(value, "__dict__", {})
    is_module = isinstance(value, torch.nn.Module)
    for name, part in attributes.items() if isinstance(attributes, dict) else ():
        if is_module and name == "_modules":
            yield from part.items()
        elif name not in _LEADS_AWAY and not (is_module and name in _TORCHS_OWN):
            yield name, part


def _beside(function: types.FunctionType, part: Any) -> bool:
    """Whether a part is a function of the same file, which the first one may call."""
    return isinstance(part, types.FunctionType) and part.__module__ == function.__module__
