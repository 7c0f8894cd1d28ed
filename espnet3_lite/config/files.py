"""Files behind a configuration: ``defaults`` lists, names that depend on the file, a recipe's template.

Here: what ESPnet3 does with files before anything is resolved. Not here: merging (`config`), YAML text
    (`yaml_text`).
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from espnet3_lite.config.yaml_text import KeyPath, read_yaml
from espnet3_lite.exceptions import MisconfigurationException, nearest

Layer = tuple[dict, dict[KeyPath, str]]

_RELATIVE_PATH = re.compile(r"""\$\{(load_line|config_path):\s*(["']?)([^"',}]+)\2\s*(?=[,}])""")


def read_with_defaults(path: Path, including: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """Read a file and those that its ``defaults`` list names, in the order in which they are to be merged.

    Entries are ``name`` (the file ``name.yaml`` beside this one), ``key: name`` (the file ``key/name.yaml``,
    put under ``key``) and ``_self_`` (this file's own keys; last when it is not listed).

    Yields:
        (tree, locations) for each file, with relative paths in it made absolute.

    Raises:
        FileNotFoundError: A file that is not there.
        MisconfigurationException: A file that is not UTF-8, broken YAML, a ``defaults`` entry of another kind, files
            that include each other.
    """
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"there is no configuration file {str(path)!r}{nearest(path.name, beside, lambda name: Path(name).stem)}"
        )
    if path.resolve() in including:
        raise MisconfigurationException(f"{path}: its defaults lead back to itself")
    including = (*including, path.resolve())
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MisconfigurationException(
            f"{path} is not text in UTF-8 ({error}); is it a configuration, and saved as UTF-8?"
        ) from error
    tree, locations = read_yaml(text, str(path))
    folder = path.parent.resolve()
    tree = _rewrite(tree, lambda text: _RELATIVE_PATH.sub(lambda match: _absolute(match, folder), text))
    entries = tree.pop("defaults") if isinstance(tree.get("defaults"), list) else []
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    for entry in entries:
        if entry == "_self_":
            yield tree, locations
        elif isinstance(entry, str):
            yield from read_with_defaults(_included(path, entry), including)
        elif isinstance(entry, dict):
            for key, name in entry.items():
                if name is not None:  # null switches an entry off
                    included = _included(path, name if "/" in str(name) else f"{key}/{name}")
                    for inner, lines in read_with_defaults(included, including):
                        yield {key: inner}, {(key, *place): line for place, line in lines.items()}
        else:
            raise MisconfigurationException(f"{path}: defaults: {entry!r} is neither a name nor 'key: name'")


def _included(path: Path, entry: str) -> Path:
    suffix = Path(entry).suffix
    if suffix not in ("", ".yaml"):
        raise MisconfigurationException(
            f"{path}: defaults: {entry!r} ends in {suffix!r}; only .yaml files are included"
        )
    return path.parent / (entry if suffix else f"{entry}.yaml")


def _absolute(match: re.Match, folder: Path) -> str:
    resolver, quote, name = match.groups()
    absolute = (folder / name.strip()).resolve().as_posix()
    return f"${{{resolver}:{quote}{absolute}{quote}"


def _rewrite(node: Any, change: Callable[[str], str]) -> Any:
    """A copy of a tree with every text changed."""
    if isinstance(node, dict):
        return {key: _rewrite(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [_rewrite(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def write_in_names(tree: dict, path: Path) -> None:
    """Put ESPnet3's ``${self_name:}`` and ``${set_corpus_and_system:}`` in, for the file that the user named.

    They are written in for good, so that a copy saved under another name still means the same.
    """
    recipe = _recipe_of(path)
    names = {"${self_name:}": path.stem}
    if recipe is not None:
        names["${set_corpus_and_system:}"] = "_".join(recipe[1:])

    def change(text: str) -> str:
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    tree.update(_rewrite(tree, change))


def _recipe_of(path: Path) -> tuple[Path, str, str] | None:
    """The ``egs3`` folder, corpus and system of a file in ``egs3/<corpus>/<system>/conf``, or None."""
    parts = path.resolve().parts
    if "egs3" not in parts:
        return None
    start = parts.index("egs3")
    conf = next((index for index in range(start + 3, len(parts)) if parts[index] == "conf"), None)
    return None if conf is None else (Path(*parts[: start + 1]), parts[start + 1], parts[conf - 1])


def find_template(path: str | Path, name: str = "training.yaml") -> Path | None:
    """The template that ESPnet3 merges a recipe's file over: ``egs3/TEMPLATE/<system>/conf/<name>``.

    It is looked for beside the recipe, then in an installed ``egs3`` package.

    Args:
        path: A recipe's file, in ``egs3/<corpus>/<system>/conf`` or below.
        name: The template's file name, whatever the recipe's is called.

    Returns:
        The template's path; None when the file is in no recipe, or there is no template.

    >>> find_template("conf/training.yaml") is None
    True
    """
    recipe = _recipe_of(Path(path))
    if recipe is None:
        return None
    roots = [recipe[0]]
    package = importlib.util.find_spec("egs3")
    if package is not None and package.submodule_search_locations:
        roots += map(Path, package.submodule_search_locations)
    candidates = [root / "TEMPLATE" / recipe[2] / "conf" / name for root in roots]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
