"""Writes the pages that follow from the code: `docs/settings.md`, `docs/hooks.md` and what is below `docs/api/`.

Run it after a setting or a public name has come, gone or changed: ``python docs/generated_pages.py``. What stands in a
page of ``api/`` is filled in by mkdocs, from the docstrings.
"""

import inspect
import re
from pathlib import Path

import espnet3_lite
from espnet3_lite import Callback, LiteDataModule, LiteModule, callbacks, loggers, strategies
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.trainer.hook_table import EVENTS, HOOKS
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


#: What the steps are called with; their signatures in `LiteModule` are open.
STEPS = {
    "training_step": "batch, batch_idx",
    **{f"{stage}_step": "batch, batch_idx, dataloader_idx=0" for stage in ("validation", "test", "predict")},
}


HOOKS_PAGE = """
# Hooks and their order

Each hook is called on the callbacks in their order, then on the module. Two kinds of callback come after the module: in
`on_train_batch_end` and `on_train_epoch_end` those that save checkpoints, and in `on_train_epoch_end` those that decide
by a metric (early stopping), since the module may log it there. The list shows an epoch whose last batch is followed by
a validation. `espnet3-lite hooks conf.yaml` prints it for your own configuration, with who listens. (This page is
written from `espnet3_lite/trainer/hook_table.py` and the docstrings.)

<!-- hooks -->
```
{order}
```

## What each gets, and when

A callback's hook gets `trainer, pl_module` first, then what the table says. A module's hook gets only that. A hook
with one star belongs to the module alone; with two stars, to the module or the data module. *Log* says what `self.log`
gives there by default: the step's value, or a mean over the epoch. Where it is empty, `self.log` raises an error.

| hook | arguments | when, and what for | log |
|---|---|---|---|
""".lstrip()

AFTER_HOOKS = """
A callback's own state survives a resume by two more methods: `state_dict()` returns tensors and plain values, and
`load_state_dict(state_dict)` takes them back. A callback that defines an unknown `on_...` method is warned about, with
the nearest known name.
"""


def hooks() -> str:
    """Every hook in order, with its arguments, from `trainer/hook_table.py` and the docstrings."""
    at_any_moment = EVENTS.index("teardown") + 1
    order = "\n".join([*EVENTS[:at_any_moment], "at any moment:", *EVENTS[at_any_moment:]])
    lines = [HOOKS_PAGE.format(order=order).rstrip()]
    for name, hook in HOOKS.items():
        owners = (Callback, LiteModule, LiteDataModule)
        owner = next(one for one in owners if name in dir(one) and (one is not Callback or "callback" in hook.owners))
        method = getattr(owner, name)
        given = [str(one) for one in inspect.signature(method).parameters.values() if one.name != "self"]
        arguments = STEPS.get(name) or ", ".join(
            re.sub(r": [^=]*(?= = |$)", "", one).replace(" = ", "=")
            for one in given
            if owner is not Callback or one.split(":")[0] not in ("trainer", "pl_module")
        )
        meaning = " ".join((inspect.getdoc(method) or "").split("\n\n")[0].split()).replace("``", "`")
        star = "" if "callback" in hook.owners else "**" if "datamodule" in hook.owners else "*"
        log = "" if hook.log is None else "step" if hook.log.on_step else "epoch"
        lines.append(
            f"| `{name}`{star.replace('*', chr(92) + '*')} | {arguments and f'`{arguments}`'} | {meaning} | {log} |"
        )
    lines.append(AFTER_HOOKS)
    return "\n".join(lines)


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
        DOCS / "hooks.md": hooks(),
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
