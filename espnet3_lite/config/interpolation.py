r"""What ``${...}`` stands for, as OmegaConf defines it.

=========================  =======================================================================
``${a.b}``, ``${a[0].b}``  another key's value; its type is kept when it is the whole value
``${.x}``, ``${..x}``      a key beside this one, a key one level further out
``${a.${which}}``          nested
``${oc.env:VAR,default}``  an environment variable, always text (``oc.decode`` reads it as YAML)
``\${text}``               the characters ``${text}`` themselves
=========================  =======================================================================

Here: the grammar, the search for a key, the resolvers (`RESOLVERS`: OmegaConf's and ESPnet3's). Not here:
    files. ESPnet3's ``${self_name:}`` and ``${config_path:...}`` need their names, which `config` writes in
    as it loads.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet3_lite.config.effort import TOO_MUCH, Effort
from espnet3_lite.config.environment import masked, take
from espnet3_lite.config.yaml_text import KeyPath, format_path, parse_value
from espnet3_lite.exceptions import MisconfigurationException, nearest

_OPENING = re.compile(r"(\\*)\$\{")
_REFERENCE = re.compile(r"(\.*)((?:[^.\[\]\s]+|\[[^\[\]]+\])(?:\.[^.\[\]\s]+|\[[^\[\]]+\])*)")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?\d)*)")
_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?|inf|nan)"
)
_texts, _copies = Effort(), Effort()
_WORDS = {"null": None, "true": True, "false": False}


class InterpolationError(MisconfigurationException):
    """A ``${...}`` that cannot be resolved: ``path`` is its key, ``problem`` says why."""

    def __init__(self, path: KeyPath, problem: str):
        self.path = path
        self.problem = problem
        super().__init__(masked(f"{format_path(path)}: {problem}"))

    def __reduce__(self):
        return type(self), (self.path, self.problem)


class _KeyNotFound(LookupError):
    """The search for a key ended; the message says where."""


@dataclass(frozen=True)
class Reference:
    """The result of an interpolation that names a mapping or a list: its place in the tree."""

    path: KeyPath


@dataclass(frozen=True)
class Position:
    """Which value is being resolved: where it stands, and which keys led there (to find cycles)."""

    tree: dict
    path: KeyPath
    chain: tuple[KeyPath, ...] = ()

    def error(self, problem: str) -> InterpolationError:
        """An error that begins with this value's address."""
        return InterpolationError(self.path, problem)


def is_interpolated(value: Any) -> bool:
    """Whether a raw value needs resolving."""
    return isinstance(value, str) and "${" in value


def node_at(tree: dict, path: KeyPath) -> Any:
    """The raw value at an exact path."""
    node: Any = tree
    for part in path:
        node = node[part]
    return node


def resolve(tree: dict, path: KeyPath, chain: tuple[KeyPath, ...] = ()) -> Any:
    """The value of a key, with its interpolation resolved.

    Args:
        tree: The whole configuration, as plain dicts and lists.
        path: Where the value stands.
        chain: The keys whose resolution led here.

    Returns:
        A scalar, or a `Reference` where the value is a mapping or a list.

    Raises:
        InterpolationError: A key that is missing, a cycle, an unknown resolver, or broken syntax.

    >>> resolve({"a": {"lr": 0.5}, "b": "${a.lr}"}, ("b",))
    0.5
    """
    value = node_at(tree, path)
    if isinstance(value, dict | list):
        return Reference(path)
    if not is_interpolated(value):
        return value
    if _texts.exceeded(outermost=not chain):
        raise InterpolationError(chain[0], TOO_MUCH)
    if path in chain:
        cycle = " -> ".join(map(format_path, (*chain[chain.index(path) :], path)))
        raise InterpolationError(path, f"the interpolations go round in a cycle: {cycle}")
    result = _Reader(value, Position(tree, path, (*chain, path))).whole_text()
    if isinstance(result, Reference) and path[: len(result.path)] == result.path:
        raise InterpolationError(path, f"{value!r} points at a mapping or list that contains it")
    return result


def plain_value(tree: dict, path: KeyPath, chain: tuple[KeyPath, ...] = (), inside: tuple[KeyPath, ...] = ()) -> Any:
    """The value at a path as plain dicts, lists and scalars, everything inside it resolved.

    ``chain`` is as for `resolve`; ``inside`` names the containers being copied, to find one that contains
    itself.
    """
    value = resolve(tree, path, chain)
    if not isinstance(value, Reference):
        return value
    if (value.path != path or not inside) and _copies.exceeded(outermost=not inside):
        raise InterpolationError(inside[0], TOO_MUCH)
    inside = (*inside, value.path)
    if value.path in inside[:-1]:
        cycle = " -> ".join(map(format_path, inside[inside.index(value.path) :]))
        raise InterpolationError(path, f"the interpolations go round in a cycle: {cycle}")
    node = node_at(tree, value.path)
    if isinstance(node, dict):
        return {key: plain_value(tree, (*value.path, key), chain, inside) for key in node}
    return [plain_value(tree, (*value.path, index), chain, inside) for index in range(len(node))]


def find_key(container: Any, part: str) -> str | int | None:
    """How a container spells the key written as ``part`` (positions in lists are numbers), or None."""
    if isinstance(container, list):
        return int(part) if part.isdecimal() and int(part) < len(container) else None
    if part in container:
        return part
    return next((key for key in container if str(key) == part), None)


def split_reference(text: str) -> tuple[int, list[str]] | None:
    """Leading dots and parts of ``a.b[0]``; None when it is no reference.

    >>> split_reference("..a.b[0]")
    (2, ['a', 'b', '0'])
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    return len(match[1]), [part for part in re.split(r"[.\[\]]+", match[2]) if part]


def _look_up(position: Position, dots: int, parts: list[str]) -> Any:
    """The resolved value of a reference; a scalar or a `Reference`."""
    if dots > len(position.path):
        raise _KeyNotFound(f"has {dots} dots, but its key is only {len(position.path)} levels deep")
    path: KeyPath = position.path[: len(position.path) - dots] if dots else ()
    for part in parts:
        value = resolve(position.tree, path, position.chain)
        if not isinstance(value, Reference):
            raise _KeyNotFound(f"asks for {part!r} inside of {format_path(path)!r}, which is {value!r}")
        container = node_at(position.tree, value.path)
        key = find_key(container, part)
        if key is None:
            where = f"{format_path(value.path)!r}" if value.path else "the configuration"
            if isinstance(container, list):
                raise _KeyNotFound(f"asks for item {part} of {where}, which has {len(container)}")
            hint = nearest(part, map(str, container))
            if not hint and len(parts) == 1 and part in os.environ:
                hint = f"; the environment variable is ${{oc.env:{part}}}"
            raise _KeyNotFound(f"names a key that is missing: {where} has no {part!r}{hint}")
        path = (*value.path, key)
    return resolve(position.tree, path, position.chain)


class _Reader:
    """Reads one text from left to right, replacing each ``${...}`` by its value."""

    def __init__(self, text: str, position: Position):
        self.text = text
        self.position = position
        self.at = 0

    def whole_text(self) -> Any:
        pieces: list[Any] = []
        while (match := _OPENING.search(self.text, self.at)) is not None:
            backslashes = len(match[1])
            literal = self.text[self.at : match.start()] + "\\" * (backslashes // 2)
            self.at = match.end()
            if backslashes % 2:  # an escaped opening is text
                pieces.append(literal + "${")
                continue
            if literal:
                pieces.append(literal)
            pieces.append(self._interpolation())
        if self.at < len(self.text):
            pieces.append(self.text[self.at :])
        return pieces[0] if len(pieces) == 1 else "".join(self._as_text(piece) for piece in pieces)

    def _as_text(self, value: Any) -> str:
        if isinstance(value, Reference):
            value = plain_value(self.position.tree, value.path, self.position.chain)
        return str(value)

    def _interpolation(self) -> Any:
        """From behind ``${`` to behind its ``}``."""
        start = self.at
        head = ""
        while True:
            character = self._next_character(start)
            if self.text.startswith("${", self.at - 1):
                self.at += 1
                head += self._as_text(self._interpolation())
            elif character == "}":
                return self._reference(head.strip())
            elif character == ":":
                return self._call(head.strip(), self._arguments(start))
            else:
                head += character

    def _next_character(self, start: int) -> str:
        if self.at >= len(self.text):
            raise self.position.error(f"{self.text!r} opens '${{' and never closes it")
        self.at += 1
        return self.text[self.at - 1]

    def _reference(self, head: str) -> Any:
        split = split_reference(head)
        if split is None:
            raise self.position.error(f"{self.text!r} is not an interpolation such as ${{a.b[0]}}")
        try:
            return _look_up(self.position, *split)
        except _KeyNotFound as error:
            raise self.position.error(f"{self.text!r} {error}") from None

    def _arguments(self, start: int) -> list[Any]:
        """The comma-separated arguments of a resolver, up to behind the closing brace."""
        arguments: list[Any] = []
        pieces: list[Any] = []  # of the current argument: text, and values of nested interpolations in a 1-tuple
        depth, quote, quoted = 0, "", False
        while True:
            character = self._next_character(start)
            if self.text.startswith("${", self.at - 1):
                self.at += 1
                pieces.append((self._interpolation(),))
            elif character == "\\" and self.text[self.at : self.at + 1] in ("\\", ",", "'", '"', "}"):
                pieces.append(self._next_character(start))
            elif quote:
                quote = "" if character == quote else quote
                pieces.append(character if quote or depth else "")
            elif character in "'\"" and (depth or not "".join(map(str, pieces)).strip()):
                quote, quoted = character, not depth
                pieces = [*pieces, character] if depth else []
            elif character in "}," and not depth:
                if pieces or quoted or arguments or character == ",":
                    arguments.append(self._argument(pieces, quoted))
                if character == "}":
                    return arguments
                pieces, quoted = [], False
            else:
                depth += (character in "[{") - (character in "]}")
                pieces.append(character)

    def _argument(self, pieces: list[Any], quoted: bool) -> Any:
        values = [piece for piece in pieces if not (isinstance(piece, str) and not piece.strip())]
        if len(values) == 1 and isinstance(values[0], tuple) and not quoted:
            return values[0][0]
        text = "".join(self._as_text(piece[0]) if isinstance(piece, tuple) else piece for piece in pieces)
        return text if quoted else _primitive(self.position, text.strip())

    def _call(self, name: str, arguments: list[Any]) -> Any:
        function = RESOLVERS.get(name)
        if function is None:
            raise self.position.error(f"{self.text!r} uses an unknown resolver {name!r}{nearest(name, RESOLVERS)}")
        parameters = inspect.signature(function)
        try:
            parameters.bind(self.position, *arguments)
        except TypeError as error:
            usage = ",".join(list(parameters.parameters)[1:])
            raise self.position.error(f"{self.text!r}: {error}; use it as ${{{name}:{usage}}}") from None
        return function(self.position, *arguments)


def _parse(position: Position, text: str) -> Any:
    try:
        return parse_value(text, in_interpolation=True)
    except MisconfigurationException as error:
        raise position.error(str(error)) from None


def _primitive(position: Position, text: str) -> Any:
    """An unquoted argument: null, true, false, a number, a list, a mapping, or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _parse(position, text) if text.startswith(("[", "{")) else text


def _environment(position: Position, variable, default=...):
    if variable in os.environ:
        return take(variable)
    if default is ...:
        raise position.error(f"the environment variable {variable!r} is not set and no default is given")
    return None if default is None else str(default)


def _decode(position: Position, text):
    if not isinstance(text, str):
        return text
    # As an unquoted argument is read: "yes" and "0x10" stay text, as in OmegaConf.
    return _parse(position, text) if text.startswith(("'", '"')) else _primitive(position, text)


def _create(position: Position, value):
    return plain_value(position.tree, value.path, position.chain) if isinstance(value, Reference) else value


def _deprecated(position: Position, key, message="'$OLD_KEY' is deprecated; use '$NEW_KEY'"):
    from espnet3_lite.distributed.rank import rank_zero_warn  # it imports torch

    rank_zero_warn(message.replace("$OLD_KEY", format_path(position.path)).replace("$NEW_KEY", str(key)))
    split = split_reference(str(key))
    if split is None:
        raise position.error(f"oc.deprecated: {key!r} is not a key")
    try:
        return _look_up(position, *split)
    except _KeyNotFound as error:
        raise position.error(f"oc.deprecated {error}") from None


def _select(position: Position, key, default=None):
    split = split_reference(str(key))
    if split is None:
        raise position.error(f"oc.select: {key!r} is not a key")
    try:
        return _look_up(position, *split)
    except _KeyNotFound:
        return default


def _mapping_for(position: Position, key) -> dict:
    value = _select(position, key)
    mapping = plain_value(position.tree, value.path, position.chain) if isinstance(value, Reference) else value
    if not isinstance(mapping, dict):
        raise position.error(f"{key!r} is not a mapping but {mapping!r}")
    return mapping


def _dict_keys(position: Position, key):
    return list(_mapping_for(position, key))


def _dict_values(position: Position, key):
    return list(_mapping_for(position, key).values())


def _lines_of_file(position: Position, path):
    if not Path(path).is_file():
        raise position.error(f"load_line: there is no file {str(path)!r}")
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _name_from_file(position: Position, value=None):
    if not value:
        raise position.error(
            f"{node_at(position.tree, position.path)!r} needs a recipe's file; load it with load_config"
        )
    return value


RESOLVERS: dict[str, Callable] = {
    "oc.env": _environment,
    "oc.decode": _decode,
    "oc.select": _select,
    "oc.create": _create,
    "oc.deprecated": _deprecated,
    "oc.dict.keys": _dict_keys,
    "oc.dict.values": _dict_values,
    "load_line": _lines_of_file,
    "self_name": _name_from_file,
    "config_path": _name_from_file,
    "set_corpus_and_system": _name_from_file,
}
"""What may stand before the colon in ``${name:arguments}``: functions of the position and the arguments.
A program may add its own."""
