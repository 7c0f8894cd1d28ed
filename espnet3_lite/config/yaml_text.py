"""YAML text to plain Python values and back: which characters are a number, and where each key stood.

Here: the reader (PyYAML's safe loader with ESPnet3's numbers; it refuses duplicate keys and keeps positions)
    and the writer. Not here: files that include others, ``${...}`` and overrides: see `config` and its
    neighbours.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import yaml

from espnet3_lite.exceptions import MisconfigurationException

KeyPath = tuple[str | int, ...]

#: So many values may be reached through aliases again: a few lines can name one another endlessly often.
_MOST_REPEATED = 20_000
_DEEPEST = 100

# Decimal numbers as OmegaConf and YAML 1.2 read them: an exponent needs neither a dot nor a sign.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
           |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
           |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
           |[-+]?\.(?:inf|Inf|INF)
           |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
# PyYAML's integers without base 60: "10:00:00" is a duration, not 36000.
_INTEGER = re.compile(r"^(?:[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$")
_TAG = "tag:yaml.org,2002:"
_REPLACED = {f"{_TAG}{name}" for name in ("float", "int", "timestamp")}


def _numbers_and_words() -> dict[str, list]:
    """PyYAML's table of what an unquoted word means, with our numbers and without dates."""
    table = {
        first: [(tag, pattern) for tag, pattern in entries if tag not in _REPLACED]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        table.setdefault(first, []).extend([(f"{_TAG}float", _FLOAT), (f"{_TAG}int", _INTEGER)])
    return table


class _Loader(yaml.SafeLoader):
    """The safe loader: no tag makes an object or runs code."""

    yaml_implicit_resolvers = _numbers_and_words()

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        """A bracket opens: PyYAML would scan thousands for seconds before Python's stack ends them."""
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        """A block begins."""
        self._check_depth(len(self.indents))
        return super().add_indent(column)

    def _check_depth(self, depth: int) -> None:
        if depth > _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"its values are nested too deeply: more than {_DEEPEST} levels", problem_mark=self.get_mark()
            )


for _name in ("timestamp", "set"):  # a date or a set is no value of a configuration, in OmegaConf as here
    # typeshed's constructors take their own class of loader alone.
    _Loader.add_constructor(f"{_TAG}{_name}", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]


class _ElementLoader(_Loader):
    """Reads lists and mappings inside of ``${...}``, where OmegaConf's own grammar rules: "yes" and "0x10" are text."""

    yaml_implicit_resolvers: dict = {}


for _name, _pattern in (
    ("null", "null|~|"),
    ("bool", "true|false"),
    ("int", r"[-+]?(?:0|[1-9](?:_?[0-9])*)"),
    ("float", _FLOAT.pattern.strip("^$") + r"|[-+]?inf|[-+]?nan"),
):
    _ElementLoader.add_implicit_resolver(
        f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$", re.VERBOSE | re.IGNORECASE), None
    )


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `_Loader` would read as something else."""

    yaml_implicit_resolvers = _numbers_and_words()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dotted_name(value: Any) -> str:
    """How a message or a file calls a class or function; a name as it is.

    >>> dotted_name(re.compile)
    're.compile'
    """
    return value if isinstance(value, str) else f"{value.__module__}.{value.__qualname__}"


def _represent_by_name(dumper: _Dumper, value: Any) -> yaml.Node:
    """A class or function, from a configuration made in Python: the name by which a file would have it."""
    found: Any = sys.modules.get(value.__module__ or "")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not value:
        return dumper.represent_undefined(value)  # made within a function, it has no name elsewhere
    return dumper.represent_str(dotted_name(value))


for _kind in (type, FunctionType, BuiltinFunctionType):
    _Dumper.add_multi_representer(_kind, _represent_by_name)
_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def format_path(path: KeyPath) -> str:
    """A key's address as users write it.

    >>> format_path(("trainer", "callbacks", 0, "patience"))
    'trainer.callbacks[0].patience'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


#: What PyYAML's messages leave out, by a part of them.
_HINTS = {
    "expected ':'": "; write `key: value`, with a blank after the colon",
    "'\\t'": "; indent with spaces, not with a tab",
    "block mapping": "; look at the indentation, of the line before too: keys of one mapping begin in one column",
    "block collection": "; look at the indentation: the items of one list begin in one column",
    "mapping values are not allowed": "; look at the indentation, of the line before too, or quote a text with ': '",
    "tag": "; a configuration is data: tags that make objects are not read",
}


def read_yaml(text: str, name: str) -> tuple[dict, dict[KeyPath, str]]:
    """Read one YAML document that holds a mapping.

    Args:
        text: The document. Empty (or comments alone) is an empty mapping.
        name: The file's name, for messages.

    Returns:
        The mapping as plain dicts and lists, and for each key path ``"<name>, line <n>"`` (counted from 1).

    Raises:
        MisconfigurationException: Broken YAML, a key given twice, an anchor inside itself, a tag that stands
            for an object, or a document that is no mapping; with file and line.

    >>> read_yaml("lr: 1e-3", "training.yaml")
    ({'lr': 0.001}, {('lr',): 'training.yaml, line 1'})
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise MisconfigurationException(f"{name}: {error}") from error
    try:
        node = loader.get_single_node()
        positions: dict[KeyPath, str] = {}
        if node is None:
            return {}, positions
        _check_aliases(node)
        _record_positions(node, (), name, positions, enclosing=())
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        without_colon = error.context == "while scanning a simple key"  # PyYAML notices it lines later
        mark = error.context_mark if without_colon else error.problem_mark or error.context_mark
        hint = next((hint for word, hint in _HINTS.items() if word in f"{error.context}, {error.problem}"), "")
        if "flow" in str(error.context) and error.context_mark:
            hint += f"; the bracket was opened on line {error.context_mark.line + 1}"
        if "quoted scalar" in str(error.context) and error.context_mark:
            hint += f"; the quotation mark was opened on line {error.context_mark.line + 1}"
        line, problem = f", line {mark.line + 1}" if mark else "", error.problem or error.context
        if str(problem).startswith("but "):  # the other half of a sentence
            problem = f"{error.context}, {problem}"
        raise MisconfigurationException(f"{name}{line}: {problem}{hint}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of too many digits, a tag that does not fit
        raise MisconfigurationException(f"{name}: {error}") from error
    finally:
        loader.dispose()
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise MisconfigurationException(
            f"{name}: a configuration is a mapping of keys to values; this file holds a {type(data).__name__}"
        )
    return data, positions


def _check_aliases(root: yaml.Node) -> None:
    """Refuse a document that is small as text and endless when its aliases are written out.

    Raises:
        yaml.YAMLError: More than `_MOST_REPEATED` values stand behind aliases.
    """
    sizes: dict[yaml.Node, int] = {}  # of each node: how many values it is, aliases written out

    def size_of(node: yaml.Node) -> int:
        if node not in sizes:
            sizes[node] = 1  # one that contains itself is reported by its place, later
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            sizes[node] = 1 + sum(map(size_of, inner))
        return sizes[node]

    repeated = size_of(root) - len(sizes)
    if repeated > _MOST_REPEATED:
        raise yaml.YAMLError(f"its aliases repeat {repeated} values; at most {_MOST_REPEATED} are read")


def _record_positions(node: yaml.Node, path: KeyPath, name: str, positions: dict, enclosing: tuple) -> None:
    """Note each key's line, and refuse duplicate keys and anchors that contain themselves."""
    line = node.start_mark.line + 1
    if node in enclosing:
        raise MisconfigurationException(f"{name}, line {line}: the anchor {format_path(path)!r} contains itself")
    enclosing = (*enclosing, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            positions[(*path, index)] = f"{name}, line {item.start_mark.line + 1}"
            _record_positions(item, (*path, index), name, positions, enclosing)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            key = _key_of(key_node)
            key_line = key_node.start_mark.line + 1
            if key in first_lines:
                raise MisconfigurationException(
                    f"{name}, line {key_line}: the key {format_path((*path, key))!r} is given twice; "
                    f"it is already on line {first_lines[key]}"
                )
            first_lines[key] = key_line
            positions[(*path, key)] = f"{name}, line {key_line}"
            _record_positions(value_node, (*path, key), name, positions, enclosing)


def _key_of(node: yaml.Node) -> Any:
    """A key as the mapping will hold it; what is no scalar is left for the constructor to refuse."""
    if not isinstance(node, yaml.ScalarNode):
        return id(node)
    if node.tag in (f"{_TAG}str", f"{_TAG}merge", f"{_TAG}value"):
        return node.value
    return parse_value(node.value)


def parse_value(text: str, in_interpolation: bool = False) -> Any:
    """One value as YAML reads it, for the right-hand side of an override; or a list or mapping inside of ``${...}``.

    >>> parse_value("1e-3"), parse_value("[a, 2]"), parse_value("null"), parse_value("12:00:00")
    (0.001, ['a', 2], None, '12:00:00')

    Raises:
        MisconfigurationException: The text is not a YAML value, or a mapping without a space after its colon.
    """
    try:
        loader = (_ElementLoader if in_interpolation else _Loader)(text)  # both are SafeLoaders
        node = loader.get_single_node()
        if node is not None:
            _check_aliases(node)
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        raise MisconfigurationException(f"{text!r} is not a YAML value: {problem}; quote it if it is text") from error
    if isinstance(value, dict) and any(item is None and ":" in str(key) for key, item in value.items()):
        raise MisconfigurationException(f"{text!r}: YAML wants a space after the colon, as in {{key: value}}")
    return value


def write_yaml(data: Any) -> str:
    """Plain values as YAML text that `read_yaml` reads back equal; keys keep their order, paths become text.

    Classes and functions become their dotted names.

    Raises:
        MisconfigurationException: A value that YAML cannot hold, such as a module.

    >>> print(write_yaml({"lr": 0.001, "text": "1e-3"}), end="")
    lr: 0.001
    text: '1e-3'
    """
    try:
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        value, kind = error.args[-1], type(error.args[-1]).__name__
        where = next((format_path(path) for path, found in _values_in(data, ()) if found is value), "a key")
        if isinstance(value, type | FunctionType):
            hint = "it has no name of its own: define it at the top of a module, where a file can name it"
        else:
            hint = "write plain values, or a mapping with the `_target_` that makes it"
        raise MisconfigurationException(f"{where}: YAML cannot hold a {kind}: {value!r}; {hint}") from error


def _values_in(data: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Each key and value in nested mappings and lists, with its place."""
    pairs = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list | tuple) else ()
    for key, value in pairs:
        yield (*path, key), key
        yield (*path, key), value
        yield from _values_in(value, (*path, key))
