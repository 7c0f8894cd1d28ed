"""A recipe's own code comes first: where Python looks for ``src``, ``dataset`` and ``egs3.<corpus>.<system>``.

ESPnet3's ``path.sh`` puts the folder that holds ``egs3``, and the recipe, before everything that is installed. espnet's
wheel has a package `egs3` too, with recipes of its own, and an installed package is stronger than a plain folder,
wherever the two stand on the path. Hence a finder: what the recipe's ``egs3`` has is found there, the rest elsewhere.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_ROOT = "egs3"


def put_recipe_first(recipe_dir: str | Path) -> None:
    """Let a recipe's modules, its ``src`` among them, be found before those of the same names that are installed.

    Args:
        recipe_dir: The folder with ``conf``, ``src`` and ``dataset``; in ``egs3/<corpus>/<system>`` or anywhere.
    """
    _to_front(Path(recipe_dir).resolve())
    put_egs3_first(recipe_dir)


def put_egs3_first(recipe_dir: str | Path) -> None:
    """Let `egs3` be the one that a recipe stands in, before an installed one; nothing changes where it is in none."""
    root = next((parent.parent for parent in Path(recipe_dir).resolve().parents if parent.name == _ROOT), None)
    if root is not None:
        _to_front(root)  # worker processes inherit it
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _RecipeFinder)]
        sys.meta_path.insert(0, _RecipeFinder(root))


def _to_front(folder: Path) -> None:
    sys.path[:] = [str(folder), *(path for path in sys.path if path != str(folder))]


class _RecipeFinder(MetaPathFinder):
    """Finds ``egs3`` and what is in it below one folder; its packages go on in the installed ones of their names."""

    def __init__(self, root: Path):
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parts = fullname.split(".")
        if parts[0] != _ROOT:
            return None
        place = self.root.joinpath(*parts)
        if place.is_dir():
            init = place / "__init__.py"
            spec = ModuleSpec(fullname, None, is_package=True)  # a plain folder
            if init.is_file():
                spec = importlib.util.spec_from_file_location(fullname, init) or spec
            spec.submodule_search_locations = list(pkgutil.extend_path([str(place)], fullname))
            return spec
        file = place.with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None
