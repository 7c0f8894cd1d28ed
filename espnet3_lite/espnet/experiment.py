"""From a configuration file to a run: the model, its initialisation, the trainer, and where a run goes on.

The commands (`cli/`) are thin around this; ESPnet3 does the same in its training stage. While a run lasts, imports of
ESPnet's names in a recipe's ``src/`` give ours, unless espnet is installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from espnet3_lite.callbacks.base import HOOKS, Callback
from espnet3_lite.callbacks.learning_rate_finder import Found, LearningRateFinder
from espnet3_lite.callbacks.showing.screen import end_report, report_left_to_the_caller
from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.config import Config
from espnet3_lite.config.schema import check_config
from espnet3_lite.config.targets import instantiate
from espnet3_lite.distributed.group import join_process_group
from espnet3_lite.distributed.launch import choose_device, under_torchrun
from espnet3_lite.distributed.rank import is_global_zero
from espnet3_lite.espnet.configured_module import configure
from espnet3_lite.espnet.data.organizer import data_sets
from espnet3_lite.espnet.folder_lock import locked
from espnet3_lite.espnet.gan import module_of
from espnet3_lite.espnet.import_aliases import espnet_stand_ins
from espnet3_lite.espnet.initialization import initialize
from espnet3_lite.espnet.parameters import load_parameters
from espnet3_lite.espnet.run_folder import RunFolder, best_weights, not_writable, put_aside
from espnet3_lite.espnet.task_models import build_task_model
from espnet3_lite.espnet.trainer import ESPnetTrainer
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, SearchIsOverError
from espnet3_lite.loops.nonfinite import returned_nothing
from espnet3_lite.module.lite_module import LiteModule
from espnet3_lite.report.images import RunImages
from espnet3_lite.seed import seed_everything
from espnet3_lite.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


def exp_dir_of(config: Config) -> Path:
    """The run's folder; ``~`` is the home folder."""
    return Path(os.path.expanduser(config.get("exp_dir") or "exp"))


def build_model(config: Config) -> torch.nn.Module:
    """The model of ``model:``, by its ``_target_``, or by ESPnet2's ``task`` where that is installed.

    Raises:
        MisconfigurationException: `task` is given and espnet is not installed.
    """
    settings = config.model.to_container()
    settings.pop("freeze_param", None)  # the wrapper's, not the model's
    if config.get("task"):
        return build_task_model(config.task, settings)
    return instantiate({"model": settings})["model"]  # so that errors name the place: model.encoder


@espnet_stand_ins()
def build(config: Config) -> ESPnetTrainer:
    """Check the whole configuration, seed, build model and trainer.

    Raises:
        ConfigError: every mistake in the configuration, in one message.
    """
    check_config(config)
    if config.get("seed") is not None:
        seed_everything(int(config.seed), workers=True, verbose=False)
    model = build_model(config)
    if config.get("init"):
        initialize(model, config.init)
    for description in config.get("init_param") or ():
        load_parameters(model, description, bool(config.get("ignore_init_mismatch")))
    module = configure(model, config) if isinstance(model, LiteModule) else module_of(model, config)
    return ESPnetTrainer(
        model=module,
        exp_dir=exp_dir_of(config),
        config=config.get("trainer") or {},
        best_model_criterion=(
            config.best_model_criterion.to_container() if config.get("best_model_criterion") else None
        ),
    )


def build_to_train(config: Config) -> ESPnetTrainer:
    """As `build`, with the callbacks that keep the run's folder, and pictures in it."""
    trainer = build(config)
    run = trainer.trainer
    if not run.fast_dev_run:
        run.callbacks = [RunFolder(trainer.exp_dir, config), *run.callbacks, RunImages(trainer.exp_dir)]
    return trainer


@espnet_stand_ins()
def prepare(config: Config, fresh: bool = False) -> Path | None:
    """Make the run's folder: before the first log line, which is kept there.

    Args:
        config: A loaded configuration.
        fresh: Put an old run in `exp_dir` aside, so that a new one begins.

    Returns:
        The folder; None with ``fast_dev_run``, which leaves nothing.

    Raises:
        MisconfigurationException: every mistake in the configuration; then nothing was written or put aside. Or the
            folder cannot be made.
    """
    check_config(config)
    if (config.get("trainer") or {}).get("fast_dev_run"):
        return None
    exp_dir = exp_dir_of(config)
    if is_global_zero():
        try:
            if exp_dir.exists():
                with locked(exp_dir):  # before another run's log is written to, or its folder renamed
                    if fresh:
                        put_aside(exp_dir)
            exp_dir.resolve().mkdir(parents=True, exist_ok=True)  # where a link leads
        except OSError as error:
            raise not_writable(exp_dir, error) from error
    return exp_dir


@espnet_stand_ins()
def train(config: Config, override_optimizer: bool = False) -> ESPnetTrainer:
    """Train, or go on with a training that was cut, in the folder that `prepare` made.

    Args:
        config: A loaded configuration.
        override_optimizer: A training that goes on takes the configured optimizers' values, as in `Trainer.fit`.

    Returns:
        The trainer, after its run.

    Raises:
        SystemExit: a signal or Ctrl-C ended the run (128 plus the signal's number).
        MisconfigurationException: every training step returned None.
    """
    torch.set_float32_matmul_precision("high")  # as ESPnet3's training stage
    trainer = build_to_train(config)
    fit: dict[str, Any] = config.fit.to_container() if config.get("fit") else {}
    if not trainer.trainer.is_overridden("train_dataloader", trainer.model) and "train_dataloaders" not in fit:
        raise MisconfigurationException(
            f"dataloader: is missing, and {type(trainer.model).__name__} has no train_dataloader of its own: nothing "
            f"says what batches there are; give dataloader.train and dataloader.valid"
        )
    if override_optimizer:
        fit["override_optimizer"] = True
    if not fit.get("ckpt_path"):
        trainer.trainer.auto_resume = True
    try:
        with report_left_to_the_caller():
            trainer.fit(**fit)
    except (SystemExit, KeyboardInterrupt):  # a signal or Ctrl-C, after all was saved
        last = trainer.exp_dir / "last.ckpt"
        if is_global_zero() and last.exists():
            logger.info("the run was cut by a signal; the same command goes on from %s", last)
        raise
    if returned_nothing(trainer.trainer):  # Lightning's trainer warns; a command that succeeds has trained
        raise MisconfigurationException(
            f"nothing was trained: {type(trainer.model).__name__}.training_step returned None for every batch; end it "
            f"with `return loss`"
        )
    return trainer


@espnet_stand_ins()
def evaluate(config: Config, checkpoint: str | None, test: bool = False) -> list[dict[str, float]]:
    """`validate` or `test` with a checkpoint's weights, or an averaged ``.pth``; the best average by default."""
    trainer = build(config)
    trainer.trainer.loggers = []  # who called prints the results; the run's folder may be read-only
    exp_dir = exp_dir_of(config)
    criterion = config.get("best_model_criterion")
    path = (
        Path(os.path.expanduser(checkpoint))
        if checkpoint
        else best_weights(exp_dir, criterion[0][0] if criterion else "valid/loss")
    )
    load_weights(trainer.model, path)
    logger.info("weights from %s", path)
    if not test:
        return trainer.validate(verbose=False)
    sets = getattr(data_sets(config), "test", None)
    if not sets:
        raise MisconfigurationException("dataset.test: the configuration names no test data")
    results = []
    for name, dataset in sets.items() if isinstance(sets, Mapping) else [("test", sets)]:
        loader = cast(Callable[[Any], Any], trainer.model.test_loader)(dataset)
        for result in trainer.trainer.test(trainer.model, loader, verbose=False):  # none of an empty set
            results.append({f"{name}/{key.removeprefix('valid/')}": value for key, value in result.items()})
    return results


@espnet_stand_ins()
def find_lr(config: Config, first: float = 1e-8, last: float = 1.0, steps: int = 100) -> Found:
    """Try growing learning rates on a copy of the model; nothing is written.

    Args:
        config: A loaded configuration.
        first: The first rate.
        last: The last one.
        steps: How many there are.
    """
    trainer, finder = build(config), _FindOnly(first, last, steps, update_attr=False)
    run = trainer.trainer
    run.loggers, run.callbacks = [], [finder]  # a run in this folder stays as it is
    run.fit(trainer.model)
    if finder.optimal_lr is None:
        raise MisconfigurationException("trainer.fast_dev_run: no learning rate is looked for with it; leave it out")
    return finder.optimal_lr


class _FindOnly(LearningRateFinder):
    """Ends the call once it has searched."""

    def on_fit_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Search, and train nothing."""
        super().on_fit_start(trainer, pl_module)
        raise SearchIsOverError("the search for a learning rate is over")


def load_weights(module: LiteModule, path: Path) -> None:
    """Load a checkpoint's or a plain state dict's weights into the model.

    Raises:
        CheckpointError: the file cannot be read, or holds another model's weights.
    """
    state = load_checkpoint(path)
    try:
        module.load_state_dict(state.get("state_dict", state))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the configuration's model: {error}\nGive the configuration that they were "
            f"trained with (config.yaml beside them)"
        ) from error


# ---- what the commands print ---------------------------------------------------------------------------------------


def report(trainer: ESPnetTrainer) -> str:
    """What a run left behind: where it ended, its metrics, the best of them, and what was written where."""
    run, exp_dir = trainer.trainer, trainer.exp_dir
    lines = end_report(run, within=exp_dir)
    if any(isinstance(callback, RunFolder) and not callback.began for callback in run.callbacks):
        lines.insert(0, "nothing was left to do: raise trainer.max_epochs to go on, or begin a new run with --fresh")
    if run.fast_dev_run:
        return "\n".join(lines)
    lines.append(f"written to {exp_dir}:")
    kinds = {
        "config.yaml": "the configuration",
        "train.log": "what was logged",
        "last.ckpt": "the full state; `train` goes on from it",
        "epoch*.ckpt": "the best checkpoints, whose names count epochs from 0",
        "*.ave_*best.pth": "an average of the best: a plain state dict of the model",
        "status.json": "how the run ended",
        "images": "the curves, as pictures",
    }
    for pattern, meaning in kinds.items():
        found = sorted(path.name for path in exp_dir.glob(pattern))
        shown = found if len(found) <= 2 else [f"{found[0]} ... ({len(found)})"]
        lines += [f"  {name:<44} {'' if index else meaning}".rstrip() for index, name in enumerate(shown)]
    folders = [os.path.relpath(folder, exp_dir) for log in run.loggers if (folder := getattr(log, "log_dir", None))]
    lines += [f"  {name:<44} every logged value" for name in folders]
    return "\n".join(lines)


def describe_hooks(trainer: ESPnetTrainer) -> str:
    """The hooks in their order, with the callbacks that listen to each, then the module where it does."""
    run, module = trainer.trainer, trainer.model
    lines = []
    for hook in HOOKS:
        if hook == "on_exception":
            lines.append("at any moment:")
        listeners = [_name_of(c) for c in run.callbacks if c._listener(hook) is not None]
        if run.is_overridden(hook, module):
            listeners.append(type(module).__name__)
        lines.append(f"{hook:<28} {', '.join(listeners) or '-'}")
    return "\n".join(lines)


def _name_of(callback: Callback) -> str:
    """A callback's class, with what tells several of one class apart."""
    monitor = getattr(callback, "monitor", None)
    return type(callback).__name__ + (f"({monitor})" if monitor else "")


@espnet_stand_ins()
def collect(config: Config) -> None:
    """ESPnet3's stage `collect_stats`: the model's normalisation, whose statistics are yet to be made, is left out."""
    model = config.get("model")
    for key in ("normalize", "normalize_conf"):
        if model and key in model:
            del model[key]
    check_config(config)
    if config.get("seed") is not None:
        seed_everything(int(config.seed), workers=True, verbose=False)
    if under_torchrun():
        join_process_group(choose_device("auto"))  # the ranks share the work, each on its own device
    module_of(build_model(config), config).collect_stats()
