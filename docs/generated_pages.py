"""Writes the pages that follow from the code: `docs/settings.md` and what is below `docs/api/`.

Run it after a setting or a public name has come, gone or changed: ``python docs/generated_pages.py``. What stands in a
page of ``api/`` is filled in by mkdocs, from the docstrings.
"""

from pathlib import Path

import espnet3_lite
from espnet3_lite import callbacks, loggers, strategies
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.settings import REFUSED, SETTINGS

DOCS = Path(__file__).parent


def settings() -> str:
    """The table of `Trainer`'s arguments, from `trainer/settings.py`."""
    lines = [
        "# The trainer's settings",
        "",
        "Each argument of `Trainer`, and each key of `trainer:` in a configuration. `None`, in YAML `null`, is the",
        "default. (This page is written from `espnet3_lite/trainer/settings.py`, which also checks them.)",
        "",
        "| setting | what it does | what it may be | default |",
        "|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        meaning = setting.meaning.replace("``", "`")
        lines.append(f"| `{name}` | {meaning} | {setting.kind.words} | `{setting.default!r}` |")
    lines += ["", "## Lightning's that are not here", "", "| setting | instead |", "|---|---|"]
    lines += [f"| `{name}` | {instead} |" for name, instead in REFUSED.items()]
    return "\n".join(lines) + "\n"


def reference(title: str, words: str, objects: list[object], members: dict[str, list[str]]) -> str:
    """A page of the reference: a directive for each object, which mkdocs turns into its documentation.

    Args:
        title: The page's title.
        words: What stands below it.
        objects: Classes and functions.
        members: Of a class by its name, the methods that are shown; by default all public ones.
    """
    lines = [f"# {title}", "", words]
    for one in objects:
        lines += ["", f"::: {one.__module__}.{one.__qualname__}"]
        if one.__qualname__ in members:
            lines += ["    options:", f"      members: [{', '.join(members[one.__qualname__])}]"]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Each generated page, by its file."""
    top = [getattr(espnet3_lite, name) for name in espnet3_lite.__all__ if name != "__version__"]
    calls = {"Trainer": ["fit", "validate", "test", "predict", "save_checkpoint", "print"]}
    reactions = {id(one): one for name in callbacks.__all__ if (one := getattr(callbacks, name)) not in top}
    return {
        DOCS / "settings.md": settings(),
        DOCS / "api" / "main.md": reference(
            "espnet3_lite", "What `import espnet3_lite` gives. The trainer's arguments have a [page](../settings.md).",
            [*top, TrainerProperties, ModuleHooks], calls,
        ),
        DOCS / "api" / "callbacks.md": reference(
            "Callbacks", "`espnet3_lite.callbacks`. The hooks are those of `Callback`.", list(reactions.values()), {},
        ),
        DOCS / "api" / "loggers.md": reference(
            "Loggers", "`espnet3_lite.loggers`.", [getattr(loggers, name) for name in loggers.__all__], {},
        ),
        DOCS / "api" / "strategies.md": reference(
            "Strategies", "`espnet3_lite.strategies`.", [getattr(strategies, name) for name in strategies.__all__], {},
        ),
    }  # fmt: skip


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
