"""The stages before a training, run by espnet3's own code: making the data set, the tokenizer, the statistics.

Nothing of a stage is written again here. A recipe's ``run.py``, which names the system whose stages they are, is run as
ESPnet3's users run it, while Lightning's names, which espnet3 imports, are ours. The training itself is ours.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet3_lite.config.files import find_template
from espnet3_lite.config.targets import HOW_TO_INSTALL_ESPNET, is_installed
from espnet3_lite.espnet.import_aliases import espnet_stand_ins
from espnet3_lite.espnet.recipe_path import put_recipe_first
from espnet3_lite.exceptions import MisconfigurationException

STAGES = ("create_dataset", "train_tokenizer", "collect_stats")


def run_stage(stage: str, config: str | Path) -> None:
    """Run one of espnet3's stages in this process.

    Args:
        stage: One of `STAGES`.
        config: The recipe's training configuration, in its ``conf`` folder; espnet3 reads it, templates and all.

    Raises:
        MisconfigurationException: espnet is not installed, or there is no such file, or no recipe around it.
    """
    if not is_installed("espnet3"):
        raise MisconfigurationException(f"stage {stage}: {HOW_TO_INSTALL_ESPNET}")
    file = Path(config).resolve()
    if not file.is_file():
        raise MisconfigurationException(f"stage {stage}: there is no configuration file {config}")
    recipe = next((folder.parent for folder in file.parents if folder.name == "conf"), None)
    if recipe is None:
        raise MisconfigurationException(f"stage {stage}: {config} is in no recipe's `conf` folder")
    put_recipe_first(recipe)
    words = ["--stages", stage, "--training_config", str(file)]
    with espnet_stand_ins(), _stand_ins_in_other_processes(), _command_line("run.py", *words):
        script = recipe / "run.py"
        if script.is_file():
            runpy.run_path(str(script), run_name="__main__")
        else:
            launch = importlib.import_module("espnet3.systems.launch").launch
            launch(_system_of(recipe, file), argv=words)


def _system_of(recipe: Path, file: Path) -> Any:
    """The system class of a recipe without ``run.py``: that of the installed system with the recipe's folder's name."""
    name = f"espnet3.systems.{recipe.name}.system"
    base = importlib.import_module("espnet3.systems.base.system").BaseSystem
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        beside = find_template(file)
        hint = f" (its template is {beside})" if beside else ""
        raise MisconfigurationException(
            f"{recipe}: there is no run.py that names the recipe's system, and no {name}{hint}: {error}"
        ) from error
    found = [
        kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, base) and kind is not base
    ]
    return found[0] if found else base


@contextlib.contextmanager
def _stand_ins_in_other_processes() -> Iterator[None]:
    """espnet3's parallel workers are processes that import it anew: Python runs a `sitecustomize` when it starts."""
    before, package = os.environ.get("PYTHONPATH"), Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(
            "from espnet3_lite.espnet.import_aliases import stand_in_for_good\n\nstand_in_for_good()\n",
            encoding="utf-8",
        )
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(package), *([before] if before else [])])
        try:
            yield
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _command_line(*words: str) -> Iterator[None]:
    """espnet3's launcher reads `sys.argv`."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
