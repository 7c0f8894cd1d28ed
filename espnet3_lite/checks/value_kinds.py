"""What a value of a setting may be, in words and as a test: made here, and used by the tables of settings.

Those are the trainer's (`trainer/settings.py`) and a configuration's (`config/fields.py`). Imports nothing of ours but
the errors: every room may use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml

from espnet3_lite.exceptions import MisconfigurationException, nearest


def no_hint(value: Any) -> str:
    """Nothing to say about a value."""
    return ""


@dataclass(frozen=True)
class Kind:
    """What a value may be: in words, as a test, and what to use instead of a value that is often tried."""

    words: str
    accepts: Callable[[Any], bool]
    hint: Callable[[Any], str] = no_hint

    def __or__(self, other: Kind) -> Kind:
        return Kind(
            f"{self.words} or {other.words}",
            lambda value: self.accepts(value) or other.accepts(value),
            lambda value: self.hint(value) or other.hint(value),
        )

    def problem(self, value: Any) -> str:
        """What is wrong with a value and what would do; empty where nothing is wrong.

        >>> one_of("norm", "value").problem("nrom")
        "'nrom' is not 'norm' or 'value'; did you mean 'norm'?"
        """
        if self.accepts(value):
            return ""
        hint = self.hint(value)
        if isinstance(value, str) and not hint and self.accepts(_without_quotes(value)):
            hint = "; it is text: leave the quotes out, or in YAML write ${oc.decode:...} around what makes it"
        elif isinstance(value, str) and not hint:
            hint = nearest(value, re.findall(r"'([^']+)'", self.words))
        return f"{value!r} is not {self.words}{hint}"


def _without_quotes(text: str) -> Any:
    """What a text would be without its quotes: a number, true or false; else the text.

    >>> _without_quotes("3"), _without_quotes("true"), _without_quotes("a: [")
    (3, True, 'a: [')
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # it is no value of YAML's
        return text


def is_whole(value: Any) -> bool:
    """An int, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """An int or float, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(minimum: int, meaning: str = "") -> Kind:
    """A whole number that is not smaller; `meaning` says what the smallest one stands for."""
    words = f"a whole number of at least {minimum}" + (f" ({minimum}: {meaning})" if meaning else "")
    return Kind(words, lambda value: is_whole(value) and value >= minimum)


def number(minimum: float) -> Kind:
    """A number, whole or not, that is not smaller."""
    return Kind(f"a number of at least {minimum}", lambda value: is_number(value) and value >= minimum)


def one_of(*values: Any, hint: Callable[[Any], str] = no_hint) -> Kind:
    """One of these values, of the same type: 1 is not true."""
    words = " or ".join(filter(None, [", ".join(map(repr, values[:-1])), repr(values[-1])]))
    return Kind(words, lambda value: any(value == allowed and type(value) is type(allowed) for allowed in values), hint)


def instead(*pairs: tuple[str, str]) -> Callable[[Any], str]:
    """A hint for values that hold a certain word; the first that fits is given."""
    return lambda value: next((hint for word, hint in pairs if word in str(value).lower()), "")


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NONE = Kind("null (None)", lambda value: value is None)
PATH = Kind("a path", lambda value: isinstance(value, str) or hasattr(value, "__fspath__"))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list | tuple))
OBJECT = Kind(
    "a mapping with _target_",
    lambda value: (
        "_target_" in value
        if isinstance(value, dict)
        else value is not None and not isinstance(value, str | int | float | list)
    ),
)
DURATION = Kind(
    "a duration 'DD:HH:MM:SS' or a mapping such as {hours: 2}",
    lambda value: (
        isinstance(value, timedelta | dict)
        or (isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None)
    ),
)


def plain_containers(value: Any) -> Any:
    """Mappings and sequences of any kind (OmegaConf's `DictConfig` and `ListConfig`, say) as dicts and lists.

    >>> plain_containers({"betas": (0.9, 0.98)})
    {'betas': [0.9, 0.98]}
    """
    if isinstance(value, Mapping):
        return {key: plain_containers(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain_containers(part) for part in value]
    return value


def parse_duration(value: Any) -> timedelta | None:
    """A timedelta from one, from a dict of its arguments, or from ``"DD:HH:MM:SS"``; None stays None.

    >>> parse_duration("00:01:30:00")
    datetime.timedelta(seconds=5400)
    """
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, dict):
        try:
            return timedelta(**value)
        except TypeError as error:
            raise MisconfigurationException(
                f"{value!r} is not a duration ({error}); give numbers of days, hours, minutes or seconds"
            ) from error
    parts = str(value).strip().split(":")
    if isinstance(value, str) and len(parts) == 4 and all(part.isdigit() for part in parts):
        days, hours, minutes, seconds = map(int, parts)
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    raise MisconfigurationException(
        f"{value!r} is not a duration; give 'DD:HH:MM:SS', a timedelta, or a dict such as {{'minutes': 90}}"
    )
