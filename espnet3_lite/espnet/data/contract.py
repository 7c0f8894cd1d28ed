"""What a recipe's data set promises about its items: ESPnet3's `BaseDataset` and `Field`.

`DatasetBuilder`, which prepares a recipe's data, is here too. How a recipe's module is loaded: `recipe.py`.
The parts of ESPnet3's contract that serve inference pages (labels on widgets, resampling, normalizers) are
accepted and kept, and nothing here acts on them.
"""

import functools
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from espnet3_lite.exceptions import nearest


class DatasetContractError(ValueError):
    """An item of a data set is not what the data set's `fields` promise."""


class Kind:
    """What values a field of some kind may hold. Subclass it, and `register_kind` the kind, to add one.

    >>> class Flag(Kind):
    ...     def accepts(self, value, field):
    ...         return isinstance(value, bool)
    >>> register_kind("flag", Flag())
    >>> KINDS["flag"].accepts(3, Field("voiced", "flag"))
    False
    """

    def check(self, value: Any, field: "Field", model: Any, *, output: bool) -> Any:
        """ESPnet3's override point: return `value`, or raise `TypeError` where it is not of this kind.

        Args:
            value: What an item of a data set holds under the field's name.
            field: The field that declares the kind.
            model: ESPnet3's argument for the model that reads the value; None here.
            output: ESPnet3's argument, True for what a model gives; False here.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither `accepts` nor `check`")

    def accepts(self, value: Any, field: "Field") -> bool:
        """Whether `value` of `field` is of this kind; by default, whether `check` takes it."""
        try:
            self.check(value, field, None, output=False)
        except TypeError:
            return False
        return True


class _Audio(Kind):
    """A path, an array or tensor, a (rate, samples) pair, or an object with `array` and `rate`."""

    def accepts(self, value, field):
        if isinstance(value, (tuple, list)):
            return len(value) == 2 and isinstance(value[0], (int, np.integer))
        has_samples = hasattr(value, "array") and hasattr(value, "rate")
        return isinstance(value, (str, Path, np.ndarray, Tensor)) or has_samples


class _Text(Kind):
    def accepts(self, value, field):
        return isinstance(value, str)


class _Number(Kind):
    def accepts(self, value, field):
        return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


class _Segments(Kind):
    """A list of dicts with `text`, `start` and `end`."""

    def accepts(self, value, field):
        return isinstance(value, list) and all(
            isinstance(segment, Mapping) and {"text", "start", "end"} <= set(segment) for segment in value
        )


class _Array(Kind):
    """Any array or tensor: images, features, labels. Ours; ESPnet3 has none."""

    def accepts(self, value, field):
        return isinstance(value, (np.ndarray, Tensor))


KINDS: dict[str, Kind] = {
    "audio": _Audio(),
    "text": _Text(),
    "segments": _Segments(),
    "number": _Number(),
    "array": _Array(),
}
#: Names that ESPnet3 leaves free: a recipe that was written for it may give them a meaning of its own.
_OURS = {"array"}


def register_kind(name: str, kind: Kind, *, replace: bool = False) -> None:
    """Let a `Field` name a kind of the user's own. ``array``, which is ours, may be redefined without asking.

    Raises:
        TypeError: `kind` is no instance of `Kind`.
        ValueError: the name is taken and `replace` is false.
    """
    if not isinstance(kind, Kind):
        raise TypeError(f"kind {name!r} must be an instance of Kind, got {kind!r}")
    if name in KINDS.keys() - _OURS and not replace:
        raise ValueError(f"kind {name!r} is registered already; pass replace=True to redefine it")
    KINDS[name] = kind


@dataclass(frozen=True)
class Field:
    """One entry of a data set's items.

    Args:
        name: the key in the item; a Python identifier.
        kind: ``audio``, ``text``, ``segments``, ``number``, ``array``, or a registered one.
        label: shown to people. Default: the name, spelt as words.
        optional: whether an item may lack it. Default False.
        channels: number of audio channels; kept, not checked.
        options: settings of the kind; kept, not checked.

    Raises:
        ValueError: an unknown kind, a name that is no identifier, or `channels` below 1.

    >>> Field("reference_speech", "audio").label
    'Reference speech'
    """

    name: str
    kind: str
    label: str = ""
    optional: bool = False
    channels: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"field {self.name!r} has the unknown kind {self.kind!r}; known are "
                f"{', '.join(sorted(KINDS))}{nearest(self.kind, KINDS)}"
            )
        if not self.name.isidentifier():
            raise ValueError(f"a field's name must be a Python identifier, got {self.name!r}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"field {self.name!r}: channels must be at least 1 or None, got {self.channels}")
        if not self.label:
            object.__setattr__(self, "label", self.name.replace("_", " ").capitalize())


class BaseDataset(Dataset, ABC):
    """A recipe's data set: items are dicts that hold what `fields` declares.

    The first item of each instance is checked; later ones cost nothing. `fields` stands in the class, or is
    set on ``self`` where it depends on arguments.

    >>> class Digits(BaseDataset):
    ...     fields = (Field("speech", "audio"), Field("text", "text"))
    ...     def __len__(self):
    ...         return 1
    ...     def __getitem__(self, index):
    ...         return {"speech": np.zeros(8000, dtype=np.float32), "text": "three"}
    >>> Digits()[0]["text"]
    'three'

    Raises:
        DatasetContractError: the first item lacks a declared field or holds something else in it.
        TypeError: `fields` is missing or malformed.
    """

    fields: ClassVar[tuple[Field, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "fields"):
            _check_fields(cls, cls.fields)
        if "__getitem__" in cls.__dict__:
            # The subclass's own method, wrapped.
            cls.__getitem__ = _check_first_item(cls.__getitem__)  # type: ignore[method-assign]

    @abstractmethod
    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        """Return one item, a mapping with every declared field."""


class DatasetBuilder(ABC):
    """What a recipe implements to prepare its data; nothing here calls it, recipes call it themselves.

    >>> class Nothing(DatasetBuilder):
    ...     def is_source_prepared(self, **kwargs):
    ...         return True
    ...     def prepare_source(self, **kwargs): ...
    ...     def is_built(self, **kwargs):
    ...         return True
    ...     def build(self, **kwargs): ...
    >>> Nothing().is_built(recipe_dir=".")
    True
    """

    @abstractmethod
    def is_source_prepared(self, **kwargs: Any) -> bool:
        """Whether the raw data are there."""

    @abstractmethod
    def prepare_source(self, **kwargs: Any) -> None:
        """Download or extract the raw data."""

    @abstractmethod
    def is_built(self, **kwargs: Any) -> bool:
        """Whether what the data set reads (manifests, converted audio) is there."""

    @abstractmethod
    def build(self, **kwargs: Any) -> None:
        """Make it from the raw data."""


def _check_first_item(getitem: Callable) -> Callable:
    @functools.wraps(getitem)
    def checked(self, index):
        item = getitem(self, index)
        if not self.__dict__.get("_first_item_checked", False):
            name = type(self).__qualname__
            if getattr(self, "fields", None) is None:
                raise TypeError(f"{name} does not declare `fields`, neither in the class nor on `self`")
            _check_fields(type(self), self.fields)
            _check_item(name, self.fields, item)
            self._first_item_checked = True
        return item

    return checked


def _check_fields(cls: type, fields: Any) -> None:
    if not isinstance(fields, tuple) or not fields or not all(isinstance(f, Field) for f in fields):
        raise TypeError(f"{cls.__qualname__}.fields must be a tuple of at least one Field, got {fields!r}")
    names = [f.name for f in fields]
    if len(set(names)) < len(names):
        raise TypeError(f"{cls.__qualname__}.fields has a name twice: {names}")


def _check_item(dataset: str, fields: tuple[Field, ...], item: Any) -> None:
    if not isinstance(item, Mapping):
        raise DatasetContractError(f"{dataset}: an item must be a dict, got {type(item).__name__}")
    for declared in fields:
        if declared.name not in item:
            if not declared.optional:
                raise DatasetContractError(
                    f"{dataset}: the item lacks the declared field {declared.name!r}; it has {sorted(item)}"
                    f"{nearest(declared.name, item)}"
                )
        elif not KINDS[declared.kind].accepts(item[declared.name], declared):
            raise DatasetContractError(
                f"{dataset}: field {declared.name!r} is declared as {declared.kind}, the item holds "
                f"{type(item[declared.name]).__name__}"
            )
