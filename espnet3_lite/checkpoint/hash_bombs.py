"""Whether a pickle would keep its reader busy with hashing: followed instruction by instruction, before it is read.

A tuple keeps no hash. One that holds the same tuple twice, which holds the same tuple twice, and so on, takes a few
bytes for each level, and twice the time for each level where it is a key of a dict; one that is nested very deeply
ends the process. What else a file may hold is in `allowed_types.py`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from typing import Union

#: How many values may be hashed, or handed to functions, beside one for each byte of the pickle. An honest one needs
#: fewer than it has bytes: a tensor takes about 15 values, and more than 100 bytes.
MOST_VALUES = 100_000
#: How deep they may be nested. Hashing takes the processor's stack, without a check.
MOST_LEVELS = 1000

#: A value as far as it matters here, which is the values in it: a tuple, a list for all that can grow, or None.
Value = Union[list["Value"], tuple["Value", ...], None]  # noqa: UP007 - a name in quotes takes no `|`

#: Instructions that put values into the one below them, and which of these values are hashed then.
_PUTS = {
    "APPEND": slice(0), "APPENDS": slice(0), "BUILD": slice(0), "ADDITEMS": slice(None), "SETITEM": slice(0, None, 2),
    "SETITEMS": slice(0, None, 2),
}  # fmt: skip
_DROPS = ("POP", "POP_MARK")


class _HashBombError(Exception):
    """The values that the pickle hashes are too many, or nested too deeply."""


def hash_bomb(program: bytes, walked: bool = False) -> str | None:
    """Say that to read a pickle would take for ever, or return None.

    Args:
        program: The pickle, of any protocol.
        walked: Whoever reads it walks through all its values, as often as they are in it.
    """
    try:
        _follow(program, walked)
    except _HashBombError:
        return "forged: its values are so nested that to read them would take for ever"
    # Not a pickle, or one that takes what is not there: its reader, who follows it as far, says what is wrong.
    except (ValueError, IndexError, KeyError):
        pass
    return None


def _follow(program: bytes, walked: bool) -> None:
    """Be the machine that a pickle is a program for, without the values: know only which value holds which.

    Raises:
        _HashBombError: see there.
    """
    stack: list[Value] = []
    marks: list[int] = []  # how high the stack was at each open mark
    memo: dict[int, Value] = {}
    left = MOST_VALUES + len(program)
    for instruction, number, _ in pickletools.genops(program):
        name, takes = instruction.name, instruction.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif "PUT" in name or name == "MEMOIZE":
            memo[len(memo) if number is None else int(number)] = stack[-1]
        elif "GET" in name:
            stack.append(memo[int(number or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif not takes:
            if instruction.stack_after:
                stack.append([] if name.startswith("EMPTY") else None)
        else:
            below = marks.pop() if pickletools.markobject in takes else len(stack) - len(takes) + (name in _PUTS)
            taken = stack[below:]
            del stack[below:]
            if name in _PUTS:
                left = _hash(taken[_PUTS[name]], left)
                if isinstance(holder := stack[-1], list):  # its reader finds out if it can hold nothing
                    holder.extend(taken)
            elif name.startswith("TUPLE"):
                stack.append(tuple(taken))
            elif name == "STOP":
                _hash(taken if walked else (), 10 * left)  # to look at a value costs less than to hash it
            elif name not in _DROPS:
                # A function may hash all that it is given; what it returns may hold all of that.
                left = _hash(taken, left)
                stack.append(taken)


def _hash(values: Iterable[Value], left: int) -> int:
    """Count these values and all in them, as often as they are in them; returns how many may still come.

    Raises:
        _HashBombError: they are too many, or too deep.
    """
    level = [value for value in values if value]
    for _ in range(MOST_LEVELS):
        left -= sum(map(len, level))
        if left < 0:
            break
        level = [inside for value in level for inside in value if inside]
        if not level:
            return left
    raise _HashBombError
