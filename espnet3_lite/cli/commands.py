"""The commands. Each reads its arguments, sets up logging, and calls one function of another room."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, nearest
from espnet3_lite.version import __version__

logger = logging.getLogger(__name__)

_EPILOG = """examples:
  espnet3-lite init my_recipe
  espnet3-lite train conf/training.yaml
  espnet3-lite train conf/training.yaml trainer.max_epochs=3 optimizer.lr=1e-3 +trainer.limit_train_batches=100
  torchrun --nproc-per-node 2 -m espnet3_lite train conf/training.yaml
  espnet3-lite average exp/train
"""
_OVERRIDES = (
    """several files are merged in order; key.path=value changes a key, +key=value adds one, ~key removes one"""
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``espnet3-lite`` and ``python -m espnet3_lite``.

    Args:
        arguments: The command line; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: 2 for a mistake in the configuration or the command, 1 for a checkpoint that is missing, damaged or
            cannot be written, with the message alone; 128 plus a signal's number.
    """
    parsed = _parse(arguments)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a recipe's own modules, as with `python script.py`
    try:
        from espnet3_lite.cli.log_lines import (
            show_on_terminal,  # torch comes with it, and takes its time: Ctrl-C is heard
        )

        show_on_terminal(parsed.quiet)
        parsed.command(parsed)
    except KeyboardInterrupt:
        if parsed.traceback:
            raise
        raise SystemExit(128 + 2) from None
    except (MisconfigurationException, CheckpointError) as error:
        if parsed.traceback:
            raise
        print(f"espnet3-lite: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, CheckpointError) else 2) from error


def _tell(*lines: object) -> None:
    """Print lines, on rank zero alone. Who reads them may have seen enough (``| head``)."""
    from espnet3_lite.callbacks.screen import read_no_further
    from espnet3_lite.distributed.rank import is_global_zero

    if lines and is_global_zero():
        try:
            print(*lines, sep="\n", flush=True)
        except BrokenPipeError:
            read_no_further(sys.stdout)


class _Parser(argparse.ArgumentParser):
    """Its error about a word that it does not know ends with the nearest one that it knows."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave with status 2."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else ""
        super().error(message + hint)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    parsed, others = parser.parse_known_args(arguments)
    unknown = [word for word in others if word.startswith("-") or not hasattr(parsed, "config")]
    if unknown:
        option = unknown[0].partition("=")[0]
        hint = nearest(option, parsed.options) if option.startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if others:  # key=value after an option, where argparse takes no more of them
        parsed.config += others
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="espnet3-lite",
        description="Train PyTorch and ESPnet3 models from YAML files, without Lightning. New here? Begin with `init`.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"espnet3_lite {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_init(commands)
    _add_train(commands)
    _add_evaluations(commands)
    _add_average(commands)
    _add_plot(commands)
    _add_report(commands)
    _add_hooks(commands)
    _add_collect_stats(commands)
    _add_stage(commands)
    _add_consolidate(commands)
    return parser


def _add(commands: Any, name: str, function: Any, summary: str, details: str = "", config: bool = True) -> Any:
    """One command: what all have in common."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary}. {details}".strip(), epilog=_OVERRIDES if config else None
    )
    parser.set_defaults(command=function)
    parser.add_argument("--quiet", action="store_true", help="log warnings only")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    if config:
        parser.add_argument(
            "config", nargs="+", metavar="CONFIG|key=value", help="YAML files, and changes to single keys"
        )
    parser.set_defaults(options=parser._option_string_actions)  # filled until the command has added its own
    return parser


def _config(parsed: argparse.Namespace) -> Any:
    from espnet3_lite.config import load_config
    from espnet3_lite.config.files import find_template
    from espnet3_lite.espnet.recipe_path import put_recipe_first

    files = [word for word in parsed.config if _is_file(word)]
    overrides = [word for word in parsed.config if not _is_file(word)]
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


def _is_file(word: str) -> bool:
    return os.path.isfile(word) or ("=" not in word and not word.startswith(("~", "+")))


# ---- init ----------------------------------------------------------------------------------------------------------


def _add_init(commands: Any) -> None:
    parser = _add(
        commands, "init", _init, "write a small recipe to make your own", config=False,
        details="Trains on handwritten digits: a data set, a model and a configuration, each a short file.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="DIR", help="the recipe's folder; it is made, or is empty")


def _init(parsed: argparse.Namespace) -> None:
    from espnet3_lite.cli.new_recipe import write_recipe

    _tell(*write_recipe(parsed.folder))


# ---- train ---------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = _add(
        commands, "train", _train, "train a model",
        "Goes on from exp_dir/last.ckpt when there is one, and says so. Ctrl-C once ends the run in order.",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="put an old run in exp_dir aside, and start anew")
    parser.add_argument(
        "--override-optimizer", action="store_true",
        help="a run that goes on takes the configured rate, weight decay, ... instead of the checkpoint's",
    )  # fmt: skip


def _train(parsed: argparse.Namespace) -> None:
    from espnet3_lite.cli.log_lines import kept_in
    from espnet3_lite.espnet import experiment

    config = _config(parsed)
    with kept_in(experiment.prepare(config, fresh=parsed.fresh)):
        trainer = experiment.train(config, override_optimizer=parsed.override_optimizer)
    _tell(experiment.report(trainer))


# ---- validate, test ------------------------------------------------------------------------------------------------


def _add_evaluations(commands: Any) -> None:
    for name, what in (("validate", "validation data"), ("test", "test sets")):
        parser = _add(
            commands, name, _evaluate, f"evaluate weights on the {what}",
            "Without --checkpoint: the newest average in exp_dir, else its last checkpoint.",
        )  # fmt: skip
        parser.add_argument("--checkpoint", help="a .ckpt, or an averaged .pth")
        parser.set_defaults(test=name == "test")


def _evaluate(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    results = experiment.evaluate(_config(parsed), parsed.checkpoint, test=parsed.test)
    _tell(*(f"{name} {value:.6g}" for result in results for name, value in sorted(result.items())))


# ---- average, consolidate ------------------------------------------------------------------------------------------


def _add_average(commands: Any) -> None:
    parser = _add(
        commands, "average", _average, "average the best checkpoints of a run", config=False,
        details="Writes {monitor}.ave_{K}best.pth for each list of best checkpoints found in the folder.",
    )  # fmt: skip
    parser.add_argument("exp_dir", type=Path, help="the run's folder")
    parser.add_argument("--checkpoints", nargs="+", type=Path, help="average these files instead")
    parser.add_argument("--output", type=Path, help="where to write the average of --checkpoints")


def _average(parsed: argparse.Namespace) -> None:
    from espnet3_lite.distributed.rank import is_global_zero
    from espnet3_lite.espnet.run_folder import average_files, average_run

    if parsed.output and not parsed.checkpoints:
        raise MisconfigurationException("--output: names where the average of --checkpoints goes; give both, or none")
    if not is_global_zero():  # it is no work to share
        return
    if parsed.checkpoints:
        output = parsed.output or parsed.exp_dir / f"ave_{len(parsed.checkpoints)}.pth"
        _tell(average_files(parsed.checkpoints, output))
    else:
        _tell(*average_run(parsed.exp_dir))


def _add_consolidate(commands: Any) -> None:
    parser = _add(
        commands, "consolidate", _consolidate, "turn a sharded checkpoint into a plain one", config=False,
        details="Sharded checkpoints are the folders that training with strategy: fsdp writes.",
    )  # fmt: skip
    parser.add_argument("sharded", type=Path, help="the folder")
    parser.add_argument("output", type=Path, help="the file to write")


def _consolidate(parsed: argparse.Namespace) -> None:
    from espnet3_lite.checkpoint.files import consolidate
    from espnet3_lite.distributed.rank import is_global_zero

    if is_global_zero():
        consolidate(parsed.sharded, parsed.output)
        _tell(parsed.output)


# ---- plot, report --------------------------------------------------------------------------------------------------


def _add_plot(commands: Any) -> None:
    parser = _add(
        commands, "plot", _plot, "draw a run's curves, or those of several runs together", config=False,
        details="Loss, metrics, learning rates, gradient norm and seconds, from the run's metrics.csv.",
    )  # fmt: skip
    parser.add_argument("exp_dir", nargs="+", type=Path, metavar="EXP_DIR", help="the runs' folders")
    parser.add_argument("--output", type=Path, help="the pictures' folder (EXP_DIR/images; of several runs: images)")


def _plot(parsed: argparse.Namespace) -> None:
    from espnet3_lite.report.pictures import plot

    _tell(*plot(parsed.exp_dir, parsed.output))


def _add_report(commands: Any) -> None:
    parser = _add(
        commands, "report", _report, "write one HTML page about a run", config=False,
        details="Curves, checkpoints, skipped batches, where the time went, the configuration. It needs no network.",
    )  # fmt: skip
    parser.add_argument("exp_dir", type=Path, metavar="EXP_DIR", help="the run's folder")
    parser.add_argument("--output", type=Path, help="the file to write (EXP_DIR/report.html)")


def _report(parsed: argparse.Namespace) -> None:
    from espnet3_lite.report.page import write_report

    _tell(write_report(parsed.exp_dir, parsed.output))


# ---- hooks, collect-stats ------------------------------------------------------------------------------------------


def _add_hooks(commands: Any) -> None:
    _add(
        commands, "hooks", _hooks, "print the order of the hooks, and who listens to each",
        "Builds the configuration's model and callbacks; trains nothing.",
    )  # fmt: skip


def _hooks(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    _tell(experiment.describe_hooks(experiment.build_to_train(_config(parsed))))


def _add_collect_stats(commands: Any) -> None:
    _add(
        commands, "collect-stats", _collect_stats, "write shapes and statistics of the features below stats_dir",
        "Runs the model's collect_feats over the training and validation data; `parallel.n_workers` processes.",
    )  # fmt: skip


def _collect_stats(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    experiment.collect(_config(parsed))


# ---- stage ---------------------------------------------------------------------------------------------------------


def _add_stage(commands: Any) -> None:
    parser = _add(
        commands, "stage", _stage, "run one of espnet3's stages before training, by espnet3's own code", config=False,
        details="Needs espnet, not Lightning. create_dataset, train_tokenizer or collect_stats; run it in the recipe.",
    )  # fmt: skip
    parser.add_argument("stage", choices=("create_dataset", "train_tokenizer", "collect_stats"))
    parser.add_argument(
        "config", metavar="CONFIG", help="the recipe's training configuration, such as conf/training.yaml"
    )


def _stage(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet.stages import run_stage

    run_stage(parsed.stage, parsed.config)
