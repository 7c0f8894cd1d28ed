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


SETTINGS_PAGE = """
# The trainer's settings

This page is for looking things up: each argument of `Trainer`, which is also a key of `trainer:` in a configuration.
A setting that is `None`, in YAML `null`, has its default. (This page is written from
`espnet3_lite/trainer/settings.py`, which also checks the values.)

<!-- run: quick -->
```python
from espnet3_lite import Trainer

trainer = Trainer(max_epochs=3, limit_train_batches=0.5, gradient_clip_val=1.0, logger=False)
```

In YAML:

```yaml
trainer:
  max_epochs: 3
  limit_train_batches: 0.5
  gradient_clip_val: 1.0
  logger: false
```
""".strip()


def settings() -> str:
    """The table of `Trainer`'s arguments, from `trainer/settings.py`."""
    lines = [
        SETTINGS_PAGE,
        "",
        "| setting | what it does | what it may be | default |",
        "|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        meaning = setting.meaning.replace("``", "`")
        lines.append(f"| `{name}` | {meaning} | {setting.kind.words} | `{setting.default!r}` |")
    lines += ["", "## Lightning's settings that are not here", "", "| setting | instead |", "|---|---|"]
    lines += [f"| `{name}` | {instead} |" for name, instead in REFUSED.items()]
    return "\n".join(lines) + "\n"


#: What the steps are called with; their signatures in `LiteModule` are open.
STEPS = {
    "training_step": "batch, batch_idx",
    **{f"{stage}_step": "batch, batch_idx, dataloader_idx=0" for stage in ("validation", "test", "predict")},
}


HOOKS_PAGE = """
# Hooks and their order

This page is for those who write callbacks or override methods of a module. A hook is a method that the trainer calls
at a certain moment. (This page is written from `espnet3_lite/trainer/hook_table.py` and the docstrings.)

<!-- run: quick -->
```python
from espnet3_lite import Callback, Trainer


class Counter(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        print(trainer.global_step, float(outputs["loss"]))


trainer = Trainer(max_epochs=1, callbacks=[Counter()], logger=False)
```

Each hook is called on the callbacks in their order, then on the module. Two kinds of callback come after the module.
Those that save checkpoints come last in `on_train_batch_end` and `on_train_epoch_end`. Those that decide by a metric
(early stopping) come after the module in `on_train_epoch_end`, since the module may log the metric there.

The list shows an epoch whose last batch is followed by a validation. `espnet3-lite hooks conf.yaml` prints the list
for your own configuration, with the callbacks that listen to each hook.

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


CALLBACKS_PAGE = """
A callback reacts to what happens in a run: it saves checkpoints, stops the run, shows progress. This page lists all
of `espnet3_lite.callbacks`. [Hooks and their order](../hooks.md) says when each hook is called.

In Python, give callbacks to the trainer:

<!-- run: quick -->
```python
from espnet3_lite import Trainer
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint

trainer = Trainer(callbacks=[ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss")], logger=False)
```

In YAML a callback is a mapping with `_target_`:

```yaml
trainer:
  callbacks:
    - {_target_: espnet3_lite.callbacks.EarlyStopping, monitor: valid/loss, patience: 5}
```
""".strip()

LOGGERS_PAGE = """
A logger writes what `self.log` was given to a file or to a platform. `Trainer(logger=...)` takes a name (`csv`,
`tensorboard`, `wandb`, `mlflow`), an object of these classes, or a list of them. The default is a `CSVLogger`.
""".strip()

STRATEGIES_PAGE = """
A strategy says how several processes train together ([several GPUs](../gpus.md)). A name does for the defaults,
`Trainer(strategy="ddp")`; an object takes arguments, `Trainer(strategy=DDPStrategy(static_graph=True))`.
""".strip()


def reference(title: str, words: str, objects: list[object], members: dict[str, list[str]]) -> str:
    """A page of the reference: a directive for each object, which mkdocs turns into its documentation.

    Args:
        title: The page's title.
        words: What stands below it, before a table of the objects, each with its docstring's first sentence.
        objects: Classes and functions.
        members: Of a class by its name, the methods that are shown; by default all public ones.
    """
    lines = [f"# {title}", "", words, "", "| name | what it is for |", "|---|---|"]
    for one in objects:
        summary = " ".join((inspect.getdoc(one) or "").split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{one.__name__}` | {summary} |")
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
            "espnet3_lite",
            "What `import espnet3_lite` gives. The trainer's arguments have a [page](../settings.md) of their own.",
            [*top, TrainerProperties, ModuleHooks], calls,
        ),
        DOCS / "api" / "callbacks.md": reference(
            "Callbacks", CALLBACKS_PAGE, list(reactions.values()), {},
        ),
        DOCS / "api" / "loggers.md": reference(
            "Loggers", LOGGERS_PAGE, [getattr(loggers, name) for name in loggers.__all__], {},
        ),
        DOCS / "api" / "strategies.md": reference(
            "Strategies", STRATEGIES_PAGE, [getattr(strategies, name) for name in strategies.__all__],
            {"Strategy": ["barrier", "broadcast", "reduce", "all_gather"]},
        ),
    }  # fmt: skip


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
