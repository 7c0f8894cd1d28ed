"""Whether a pickle would keep torch busy with hashing: followed instruction by instruction, before torch reads it.

A tuple keeps no hash. One that holds the same tuple twice, which holds the same tuple twice, and so on, takes a few
bytes for each level, and twice the time for each level where it is a key of a dict. What else a file may hold is in
`allowed_types.py`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from typing import BinaryIO, Union

#: How many values may be hashed, or handed to functions, beside one for each byte of the pickle. An honest one needs
#: fewer than it has bytes: a tensor takes about 15 values, and more than 100 bytes.
MOST_VALUES = 100_000

#: A value as far as it matters here, which is the values in it: a tuple, a list for all that can grow, or None.
Value = Union[list["Value"], tuple["Value", ...], None]  # noqa: UP007 - a name in quotes takes no `|`


class _EndlessKeysError(Exception):
    """The values that the pickle hashes are too many."""


def endless_keys(file: BinaryIO) -> str | None:
    """Say that an archive of `torch.save` would keep its reader busy with hashing, or return None.

    Args:
        file: Open for reading; whole, as `zip_integrity.archive_damage` says.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.lower().endswith("/data.pkl"):  # torch does not tell upper from lower case
                try:
                    _Machine().follow(archive.read(entry))
                except _EndlessKeysError:
                    return "forged: its values are so nested that to read them would take for ever"
                # Not a pickle, or one that takes what is not there: torch, which follows it as far, says what is wrong.
                except (ValueError, IndexError, KeyError):
                    pass
    return None


class _Machine:
    """The machine that a pickle is a program for, without the values: which value holds which is all that it knows."""

    def __init__(self) -> None:
        self.stack: list[Value] = []
        self.marks: list[list[Value]] = []  # the stacks below each open mark
        self.memo: dict[int, Value] = {}
        self.left = 0

    def follow(self, program: bytes) -> None:
        """Follow it to its end, or to the first instruction that torch does not know either.

        Raises:
            _EndlessKeysError: it hashes too many values.
        """
        self.left = MOST_VALUES + len(program)
        place, end = 0, len(program)
        while place < end:
            code = program[place : place + 1]
            place += 1
            if code in _BYTES_OF_LENGTH:
                size = _BYTES_OF_LENGTH[code]
                place += size + int.from_bytes(program[place : place + size], "little")
                self.stack.append(None)
            elif code in _BYTES_OF_NUMBER:
                place += _BYTES_OF_NUMBER[code]
                self.stack.append(None)
            elif code in _BYTES_OF_PLACE:
                size = _BYTES_OF_PLACE[code]
                memo_place = int.from_bytes(program[place : place + size], "little")
                place += size
                if code in (pickle.BINPUT, pickle.LONG_BINPUT):
                    self.memo[memo_place] = self.stack[-1]
                else:
                    self.stack.append(self.memo[memo_place])
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            elif code == pickle.GLOBAL:  # two lines: module and name
                place = program.index(b"\n", program.index(b"\n", place) + 1) + 1
                self.stack.append(None)
            elif code == pickle.PROTO:
                place += 1
            else:  # its end, or what torch does not know
                return

    def take(self, count: int) -> list[Value]:
        """The topmost values of the stack, taken from it."""
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def mark(self) -> None:
        """What comes belongs together, up to the instruction that takes it."""
        self.marks.append(self.stack)
        self.stack = []

    def take_to_mark(self) -> list[Value]:
        """All values above the last mark."""
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def make_tuple(self, values: list[Value]) -> None:
        """Of these values."""
        self.stack.append(tuple(values))

    def call(self) -> None:
        """A function may hash all that it is given; what it returns may hold all of that."""
        arguments = self.take(2)[1]
        self.hash(arguments)
        self.stack.append([arguments])

    def read_storage(self) -> None:
        """A tensor's numbers, which torch looks up by their name."""
        self.hash(self.take(1)[0])
        self.stack.append(None)

    def put_items(self, items: list[Value]) -> None:
        """Into a dict: keys and values by turns."""
        for key in items[::2]:
            self.hash(key)
        self.put(items)

    def put(self, items: list[Value]) -> None:
        """Into the topmost value of the stack, if it can hold them; torch finds out if it cannot."""
        holder = self.stack[-1]
        if isinstance(holder, list):
            holder.extend(items)

    def hash(self, value: Value) -> None:
        """Count this value and all in it, as often as it is in it.

        Raises:
            _EndlessKeysError: they are too many.
        """
        waiting = [value]
        while waiting:
            inside = waiting.pop()
            if inside:
                self.left -= len(inside)
                if self.left < 0:
                    raise _EndlessKeysError
                waiting.extend(inside)


#: The instructions that torch knows. Those that push a value and say its length first, in so many bytes; those that
#: push a value of so many bytes; and those that keep a value or bring it back, with its number in so many bytes.
_BYTES_OF_LENGTH = {pickle.BINUNICODE: 4, pickle.SHORT_BINSTRING: 1, pickle.LONG1: 1}
_BYTES_OF_NUMBER = {
    pickle.NONE: 0, pickle.NEWTRUE: 0, pickle.NEWFALSE: 0, pickle.EMPTY_TUPLE: 0, pickle.BININT1: 1, pickle.BININT2: 2,
    pickle.BININT: 4, pickle.BINFLOAT: 8,
}  # fmt: skip
_BYTES_OF_PLACE = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4, pickle.BINGET: 1, pickle.LONG_BINGET: 4}
#: And those that build something of values.
_ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append([]),
    pickle.EMPTY_SET: lambda machine: machine.stack.append([]),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda machine: machine.make_tuple(machine.take_to_mark()),
    pickle.TUPLE1: lambda machine: machine.make_tuple(machine.take(1)),
    pickle.TUPLE2: lambda machine: machine.make_tuple(machine.take(2)),
    pickle.TUPLE3: lambda machine: machine.make_tuple(machine.take(3)),
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: lambda machine: machine.take(1),
    pickle.BINPERSID: _Machine.read_storage,
    pickle.SETITEM: lambda machine: machine.put_items(machine.take(2)),
    pickle.SETITEMS: lambda machine: machine.put_items(machine.take_to_mark()),
    pickle.APPEND: lambda machine: machine.put(machine.take(1)),
    pickle.APPENDS: lambda machine: machine.put(machine.take_to_mark()),
}
