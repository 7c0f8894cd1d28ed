"""`write_recipe`: writes a small recipe for the user to change, from the files in `digits_recipe`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from espnet3_lite.exceptions import MisconfigurationException

TEMPLATE = Path(__file__).parent / "digits_recipe"


def write_recipe(folder: Path) -> list[str]:
    """Write the recipe's files into a folder, which is made.

    Args:
        folder: There is nothing in it yet.

    Returns:
        Lines that say what was written, and what to do next.

    Raises:
        MisconfigurationException: the folder is not empty, is a file, or cannot be written.
    """
    files = sorted(path.relative_to(TEMPLATE) for path in TEMPLATE.rglob("*") if path.is_file())
    files = [path for path in files if path.name != "__init__.py" and "__pycache__" not in path.parts]
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MisconfigurationException(f"init: {folder} exists and is not empty; name a folder that is not there")
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TEMPLATE / path, folder / path)
    except OSError as error:
        raise MisconfigurationException(f"init: {folder} cannot be written: {error}") from error
    needed = "" if importlib.util.find_spec("sklearn") else "pip install scikit-learn && "
    lines = [f"written to {folder}:", *(f"  {path}" for path in files)]
    return [*lines, "next:", f"  cd {folder} && {needed}espnet3-lite train conf/training.yaml"]
