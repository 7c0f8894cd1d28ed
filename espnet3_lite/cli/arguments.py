"""What the commands have in common: how one is declared, how a configuration is read from its words, how it speaks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from espnet3_lite.exceptions import MisconfigurationException

logger = logging.getLogger(__name__)

OVERRIDES = "Several files are merged in order. key.path=value changes a key, +key=value adds one, ~key removes one."


def tell(*lines: object) -> None:
    """Print lines, on rank zero alone. Who reads them may have seen enough (``| head``)."""
    from espnet3_lite.callbacks.showing.screen import read_no_further
    from espnet3_lite.distributed.rank import is_global_zero

    if lines and is_global_zero():
        try:
            print(*lines, sep="\n", flush=True)
        except BrokenPipeError:
            read_no_further(sys.stdout)


def add_command(commands: Any, name: str, function: Any, summary: str, details: str = "", config: bool = True) -> Any:
    """One command: what all have in common."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}".strip(),
        epilog=OVERRIDES if config else None,
    )
    parser.set_defaults(command=function)
    parser.add_argument("--quiet", action="store_true", help="show warnings, but no other log lines")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    if config:
        parser.add_argument(
            "config", nargs="+", metavar="CONFIG|key=value", help="YAML files, and changes to single keys"
        )
    parser.set_defaults(options=parser._option_string_actions)  # filled until the command has added its own
    return parser


def read_config(parsed: argparse.Namespace) -> Any:
    from espnet3_lite.config import load_config
    from espnet3_lite.config.files import find_template
    from espnet3_lite.espnet.recipe_path import put_recipe_first

    _refuse_spaces(parsed.config)
    files = [word for word in parsed.config if is_file(word)]
    overrides = [word for word in parsed.config if not is_file(word)]
    if not files:
        raise MisconfigurationException(f"no configuration file among {parsed.config}; name a YAML file first")
    template = find_template(files[0])
    if template is not None and template.resolve() not in [Path(file).resolve() for file in files]:
        logger.info("%s is laid over its template, %s", files[0], template)
        files = [str(template), *files]
    try:
        config = load_config(*files, overrides=overrides)
    except FileNotFoundError as error:
        raise MisconfigurationException(str(error)) from error
    conf = next((folder for folder in Path(files[-1]).resolve().parents if folder.name == "conf"), None)
    for recipe_dir in (conf and conf.parent, config.get("recipe_dir")):  # the second one named comes first
        if recipe_dir is not None:
            put_recipe_first(recipe_dir)
    return config


def _refuse_spaces(words: list[str]) -> None:
    """``key = value`` comes from the shell as several words."""
    for index, word in enumerate(words):
        before, after = words[max(0, index - 1) : index], words[index + 1 : index + 2]
        value_follows = word.endswith("=") and bool(after) and is_file(after[0]) and not os.path.isfile(after[0])
        if before and word.startswith("=") or value_follows:
            given = [*(before if word.startswith("=") else []), word, *(after if word.endswith("=") else [])]
            raise MisconfigurationException(f"{' '.join(given)!r}: write {''.join(given)}, without spaces")


def is_file(word: str) -> bool:
    return os.path.isfile(word) or ("=" not in word and not word.startswith(("~", "+")))
