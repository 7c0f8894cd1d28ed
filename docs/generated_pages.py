"""Writes the pages that follow from the code: `settings.md`, `keys.md`, `hooks.md` and what is below `api/`.

Run it after a setting or a public name has come, gone or changed: ``python docs/generated_pages.py``. What stands in a
page of ``api/`` is filled in by mkdocs, from the docstrings.
"""

import inspect
import re
from pathlib import Path

import espnet3_lite
from espnet3_lite import Callback, LiteDataModule, LiteModule, callbacks, loggers, strategies
from espnet3_lite.config.fields import BATCH_SAMPLER, FIELDS
from espnet3_lite.config.fields import REFUSED as REFUSED_KEYS
from espnet3_lite.module.hooks import ModuleHooks
from espnet3_lite.trainer.hook_table import EVENTS, HOOKS
from espnet3_lite.trainer.properties import TrainerProperties
from espnet3_lite.trainer.settings import AT_ANY_TIME, BETWEEN_CALLS, REFUSED, SETTINGS

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

Some settings may be set on a trainer, `trainer.limit_val_batches = 3`, and are checked as the constructor checks them.
Those "at any time" may be set in any hook too, and count from the next epoch, validation or step on: the
training's limit and `val_check_interval` from the next epoch, `accumulate_grad_batches` from the next window
(while gradients wait for their step, it is an error). Those "between calls" are read when a call begins. To set
any other is an error, since nothing would read it.
""".strip()


def settings() -> str:
    """The table of `Trainer`'s arguments, from `trainer/settings.py`."""
    lines = [
        SETTINGS_PAGE,
        "",
        "| setting | what it does | what it may be | default | may be set |",
        "|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        meaning = setting.meaning.replace("``", "`")
        when = "at any time" if name in AT_ANY_TIME else "between calls" if name in BETWEEN_CALLS else ""
        lines.append(f"| `{name}` | {meaning} | {setting.kind.words} | `{setting.default!r}` | {when} |")
    lines += ["", "## Lightning's settings that are not here", "", "| setting | instead |", "|---|---|"]
    lines += [f"| `{name}` | {instead} |" for name, instead in REFUSED.items()]
    return "\n".join(lines) + "\n"


KEYS_PAGE = """
# The keys of a configuration

This page is for looking things up: each key that `espnet3-lite` knows in a training configuration. (It is written from
`espnet3_lite/config/fields.py`, which also checks the values.) [The configuration language](configuration.md) says how
files are merged and how values refer to others. `trainer` has a [page](settings.md) of its own.

A small configuration:

```yaml
exp_dir: exp/mine
seed: 0
dataset:
  train: {_target_: data.Digits, split: train}
  valid: {_target_: data.Digits, split: valid}
dataloader:
  train: {batch_size: 32, shuffle: true}
  valid: {batch_size: 300}
model: {_target_: model.DigitClassifier}
optimizer: {_target_: torch.optim.AdamW, lr: 3e-3}
best_model_criterion:
  - [valid/acc, 3, max]
trainer: {max_epochs: 12}
```

Keys of your own may stand at the top, for `${...}` to refer to. Below `trainer`, `dataloader`, `optimizers.<name>`,
`schedulers.<name>`, `parallel` and `fit` an unknown key is a mistake. `null` means the same as leaving a key out.
""".strip()

#: What each key of a configuration does; those of `trainer` are in the table of settings.
MEANINGS = {
    "num_device": "A number for `${num_device}`, as ESPnet3's recipes write it; `trainer.devices` is what counts.",
    "num_nodes": "The same for `${num_nodes}`; `trainer.num_nodes` is what counts.",
    "task": "ESPnet2's task that builds the model, such as `espnet2.tasks.asr.ASRTask`; needs espnet.",
    "recipe_dir": "The recipe's folder, whose `src` and `dataset` can be imported.",
    "data_dir": "Where the data are; for `${data_dir}`.",
    "exp_tag": "A run's name; for `${exp_tag}`.",
    "exp_dir": "The folder of the run. Default: `exp`.",
    "stats_dir": "The folder of `collect-stats`; shape files and normalisation are read from there.",
    "dataset_dir": "Where espnet3's stage `create_dataset` writes; read by espnet3 alone.",
    "create_dataset": "Arguments of that stage; read by espnet3 alone.",
    "dataset": "The data sets `train`, `valid` and `test`, each by its `_target_`; or a `DataOrganizer` of them.",
    "tokenizer": "Arguments of espnet3's stage `train_tokenizer`, and a place for `${...}`.",
    "model": "The model by its `_target_`: a `LiteModule`, or one in ESPnet's contract. With `task`: its arguments.",
    "model.freeze_param": "As `freeze_param`, where ESPnet2 has it.",
    "freeze_param": "Parameters that are not trained: their names, or whole dotted beginnings of them.",
    "init_param": "Weights to begin with: `path:source:destination:excludes` each, as in ESPnet2.",
    "ignore_init_mismatch": "Skip what of `init_param` the model lacks or has in another shape. Default: an error.",
    "optimizer": "The optimizer by its `_target_`; its parameters are added. Left out: the module's own.",
    "scheduler": "The learning rate's schedule by its `_target_`; the optimizer is added. Default: none.",
    "scheduler_interval": "When it steps: after each optimizer step (default), or each epoch.",
    "scheduler_monitor": "The metric that a plateau scheduler looks at.",
    "accumulate_by_weight": "Accumulated gradients are means by weight: [several batches for one step](optimizers.md).",
    "optimizers": "Several optimizers by name: [several optimizers](optimizers.md).",
    "optimizers.*": "One of them.",
    "optimizers.*.optimizer": "The optimizer by its `_target_`.",
    "optimizers.*.params": "The part of the parameters' names that it trains.",
    "optimizers.*.accum_grad_steps": "Backward passes for one step.",
    "optimizers.*.step_every_n_iters": "Batches with a loss for it for one step.",
    "optimizers.*.gradient_clip_val": "The largest gradient norm (or value). Default: no clipping.",
    "optimizers.*.gradient_clip_algorithm": "Clip the norm (default), or each value.",
    "schedulers": "A scheduler for each of `optimizers`, by the same names.",
    "schedulers.*": "One of them.",
    "schedulers.*.scheduler": "The scheduler by its `_target_`.",
    "schedulers.*.interval": "When it steps: after each step of its optimizer (default), or each epoch.",
    "schedulers.*.monitor": "The metric that a plateau scheduler looks at.",
    "best_model_criterion": "Which checkpoints are kept and averaged: a list of `[metric, how many, min or max]`. "
    "Default: `[[valid/loss, 3, min]]`.",
    "seed": "The seed of all random generators. Default: none is set.",
    "init": "How the model's weights are initialised. Default: as the model does it.",
    "parallel": "How `collect-stats` is shared among processes.",
    "parallel.env": "Where they run: on this machine.",
    "parallel.n_workers": "How many there are.",
    "parallel.options": "Read by espnet3's own stages alone.",
    "parallel.allow_overwrite_lock": "Read by espnet3's own stages alone.",
    "collect_stats_batch_size": "Samples in a batch of `collect-stats`.",
    "collect_stats_train_mode": "Collect with the training set's augmentation. Default: without.",
    "dataloader": "How batches are made.",
    "dataloader.collate_fn": "The collate function of all splits. Default: torch's own.",
    "dataloader.train": "The training loader: the arguments of `torch.utils.data.DataLoader`, and the keys below.",
    "dataloader.valid": "The validation loader, likewise; test sets are loaded in the same way.",
    "sampler": "A sampler by its `_target_`, for a plain `DataLoader`.",
    "batch_sampler": "A batch sampler by its `_target_`, likewise.",
    "fit": "Arguments of `fit`.",
    "fit.ckpt_path": "The checkpoint to go on from. Default: `last.ckpt` in `exp_dir`, if there is one.",
    "fit.override_optimizer": "A run that goes on takes the configured rate, weight decay and the like.",
    "fit.train_dataloaders": "A training loader by its `_target_`, instead of `dataloader.train`.",
    "fit.val_dataloaders": "The same for validation.",
    "fit.datamodule": "A `LiteDataModule` by its `_target_`, instead of both.",
    "trainer": "The settings of the trainer: [their table](settings.md).",
    "trainer.gan": "Trains ESPnet2's adversarial models: [two turns a batch](espnet-recipes.md).",
    "trainer.gan.generator_first": "The generator's turn comes first. Default: the discriminator's.",
    "trainer.gan.skip_discriminator_prob": "The probability that a batch has no turn of the discriminator. Default: 0.",
    "trainer.gan.no_forward_run": "Load the batches and train nothing.",
    "iter_factory": "ESPnet's iterator by its `_target_`; left out: a plain `DataLoader`.",
    "iter_factory.batches": "Its batch sampler (the table below), or one of your own by its `_target_`.",
    "iter_factory.collate_fn": "Its collate function; default: `dataloader.collate_fn`.",
    "collate_fn": "This loader's collate function; default: `dataloader.collate_fn`.",
    "iter_factory.num_iters_per_epoch": "Steps of an epoch, if an epoch is not to be a whole pass over the data.",
    "iter_factory.shuffle": "Shuffle the batches in each epoch.",
    "batch_distribution": "Each rank takes whole batches (default), or all ranks split each batch.",
    "total_shards": "How many shards a sharded data set has.",
    "num_shards": "Only 1: `total_shards` and `dist_world_size` say how many shards there are.",
    "dist_world_size": "How many shards an epoch takes.",
    "batch_size": "Samples in a batch of each process.",
    "num_workers": "Processes that load samples. Default: 0, the main process loads.",
    "shuffle": "Shuffle the samples in each epoch.",
    "drop_last": "Leave out an epoch's last batch if it is not full.",
}

#: What each key of ``iter_factory.batches`` does.
SAMPLER_MEANINGS = {
    "type": "How utterances are put into batches.",
    "shape_files": "Files that `collect-stats` wrote, with each utterance's shape.",
    "batch_size": "Utterances in a batch: `unsorted`, `sorted`, `folded`.",
    "batch_bins": "The size of a batch with its padding: frames, samples or tokens for `length`, numbers for `numel`.",
    "min_batch_size": "No batch has fewer utterances: `folded`, `length`, `numel`. Default: 1.",
    "sort_in_batch": "The order of lengths within a batch. Default: `descending`.",
    "sort_batch": "The order of lengths among the batches. Default: `ascending`.",
    "drop_last": "Leave out what does not fill a batch.",
    "padding": "Count each utterance as long as the longest of its batch (default): `length`, `numel`.",
    "fold_lengths": "A length for each shape file, beyond which a batch gets smaller: `folded`.",
    "utt2category_file": "Lines `utterance category`; a batch has utterances of one category: `folded`.",
}


def keys() -> str:
    """The table of a configuration's keys, from `config/fields.py`."""
    lines = [KEYS_PAGE, "", "| key | what it does | what it may be |", "|---|---|---|"]
    splits, loader = ("dataloader.train.", "dataloader.valid."), []
    for key, kind in FIELDS.items():
        if key.startswith(splits):
            row = (key.split(".", 2)[2], kind)
            loader += [row] if row[0] not in dict(loader) else []
        elif not key.startswith("trainer.") or key.startswith("trainer.gan"):
            lines.append(f"| `{key}` | {MEANINGS[key]} | {kind.words} |")
    for title, rows, meanings in (
        ("Keys of `dataloader.train` and `dataloader.valid`", loader, MEANINGS),
        ("Keys of `iter_factory.batches`", BATCH_SAMPLER.items(), SAMPLER_MEANINGS),
    ):
        lines += ["", f"## {title}", "", "| key | what it does | what it may be |", "|---|---|---|"]
        lines += [f"| `{key}` | {meanings[key]} | {kind.words} |" for key, kind in rows]
    lines += ["", "## Keys of Lightning and ESPnet that are not here", "", "| key | instead |", "|---|---|"]
    refused = {key: words for key, words in REFUSED_KEYS.items() if key.removeprefix("trainer.") not in REFUSED}
    lines += [f"| `{key}` | {words} |" for key, words in refused.items()]
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
    quiet = "['!^_', '!^on_', '!^(setup|teardown|state_dict|load_state_dict|state_key)$']"
    lines = [f"# {title}", "", words, "", "| name | what it is for |", "|---|---|"]
    for one in objects:
        summary = " ".join((inspect.getdoc(one) or "").split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{one.__name__}` | {summary} |")
    for one in objects:
        lines += ["", f"::: {one.__module__}.{one.__qualname__}"]
        if one.__qualname__ in members:
            lines += ["    options:", f"      members: [{', '.join(members[one.__qualname__])}]"]
        elif isinstance(one, type) and issubclass(one, Callback) and one not in (Callback, callbacks.TrainerCallback):
            lines += ["    options:", f"      filters: {quiet}"]  # which hooks it overrides is its own business
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Each generated page, by its file."""
    top = [getattr(espnet3_lite, name) for name in espnet3_lite.__all__ if name != "__version__"]
    calls = {"Trainer": ["fit", "validate", "test", "predict", "save_checkpoint", "print"]}
    reactions = {id(one): one for name in callbacks.__all__ if (one := getattr(callbacks, name)) not in top}
    return {
        DOCS / "settings.md": settings(),
        DOCS / "keys.md": keys(),
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
            {"Strategy": ["barrier", "broadcast", "reduce", "all_gather"], "DDPStrategy": [], "FSDPStrategy": []},
        ),
    }  # fmt: skip


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
