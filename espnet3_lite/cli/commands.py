"""The commands. Each reads its arguments, sets up logging, and calls one function of another room."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from espnet3_lite.cli import looking
from espnet3_lite.cli.arguments import add_command, read_config, tell
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException, nearest
from espnet3_lite.version import __version__

logger = logging.getLogger(__name__)

_EPILOG = """examples:
  espnet3-lite init my_recipe
  espnet3-lite check conf/training.yaml
  espnet3-lite train conf/training.yaml
  espnet3-lite train conf/training.yaml trainer.max_epochs=3 optimizer.lr=1e-3 +trainer.limit_train_batches=100
  torchrun --nproc-per-node 2 -m espnet3_lite train conf/training.yaml
  espnet3-lite average exp/train

espnet3-lite COMMAND --help tells the options of a command.
"""


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
        hint = nearest(option, parsed.options, lambda name: name.strip("-")) if option.startswith("-") else ""
        if hasattr(parsed, "config") and "." in option:
            hint = f"; a setting of the configuration has no dashes: {unknown[0].lstrip('-')}"
        elif not hint and hasattr(parsed, "config"):
            hint = "; a setting of the configuration is changed by key=value, such as optimizer.lr=1e-3"
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
    looking.add_check(commands)
    looking.add_find_lr(commands)
    looking.add_plot(commands)
    looking.add_report(commands)
    looking.add_hooks(commands)
    _add_collect_stats(commands)
    _add_stage(commands)
    _add_consolidate(commands)
    return parser


# ---- init ----------------------------------------------------------------------------------------------------------


def _add_init(commands: Any) -> None:
    parser = add_command(
        commands, "init", _init, "write a small recipe to make your own", config=False,
        details="It trains on handwritten digits: a data set, a model and a configuration, each a short file.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="DIR", help="the recipe's folder, new or empty")


def _init(parsed: argparse.Namespace) -> None:
    from espnet3_lite.cli.new_recipe import write_recipe

    tell(*write_recipe(parsed.folder))


# ---- train ---------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = add_command(
        commands, "train", _train, "train a model",
        "Goes on from exp_dir/last.ckpt if there is one, and says so. Ctrl-C ends the run in order: it saves first.",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="put an old run in exp_dir aside, and start anew")
    parser.add_argument(
        "--override-optimizer", action="store_true",
        help="where a run goes on, take the configured learning rate, weight decay, ... and not the checkpoint's",
    )  # fmt: skip


def _train(parsed: argparse.Namespace) -> None:
    from espnet3_lite.cli.log_lines import kept_in
    from espnet3_lite.espnet import experiment

    config = read_config(parsed)
    with kept_in(experiment.prepare(config, fresh=parsed.fresh)):
        trainer = experiment.train(config, override_optimizer=parsed.override_optimizer)
    tell(experiment.report(trainer))


# ---- validate, test ------------------------------------------------------------------------------------------------


def _add_evaluations(commands: Any) -> None:
    for name, what in (("validate", "validation data"), ("test", "test sets")):
        parser = add_command(
            commands, name, _evaluate, f"evaluate weights on the {what}",
            "Without --checkpoint it takes the newest average in exp_dir, else the last checkpoint.",
        )  # fmt: skip
        parser.add_argument("--checkpoint", help="the weights: a .ckpt, or an averaged .pth")
        parser.set_defaults(test=name == "test")


def _evaluate(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    results = experiment.evaluate(read_config(parsed), parsed.checkpoint, test=parsed.test)
    tell(*(f"{name} {value:.6g}" for result in results for name, value in sorted(result.items())))


# ---- average, consolidate ------------------------------------------------------------------------------------------


def _add_average(commands: Any) -> None:
    parser = add_command(
        commands, "average", _average, "average the best checkpoints of a run", config=False,
        details="Writes {monitor}.ave_{K}best.pth for each list of best checkpoints found in the folder.",
    )  # fmt: skip
    parser.add_argument(
        "exp_dir", type=Path, metavar="EXP_DIR", help="the run's folder, or the configuration file that names it"
    )
    parser.add_argument("--checkpoints", nargs="+", type=Path, help="average these files instead")
    parser.add_argument(
        "--output", type=Path, help="the file for the average of --checkpoints (default: EXP_DIR/ave_N.pth)"
    )


def _average(parsed: argparse.Namespace) -> None:
    from espnet3_lite.distributed.rank import is_global_zero
    from espnet3_lite.espnet.run_folder import average_files, average_run

    if parsed.output and not parsed.checkpoints:
        raise MisconfigurationException("--output names the file for the average of --checkpoints; give both, or none")
    if not is_global_zero():  # it is no work to share
        return
    if parsed.checkpoints:
        output = parsed.output or parsed.exp_dir / f"ave_{len(parsed.checkpoints)}.pth"
        tell(average_files(parsed.checkpoints, output))
    else:
        tell(*average_run(looking.run_folder(parsed.exp_dir)))


def _add_consolidate(commands: Any) -> None:
    parser = add_command(
        commands, "consolidate", _consolidate, "turn a sharded checkpoint into a plain one", config=False,
        details="Sharded checkpoints are the folders that training with strategy: fsdp writes.",
    )  # fmt: skip
    parser.add_argument("sharded", type=Path, help="the checkpoint's folder")
    parser.add_argument("output", type=Path, help="the file to write")


def _consolidate(parsed: argparse.Namespace) -> None:
    from espnet3_lite.checkpoint.files import consolidate
    from espnet3_lite.distributed.rank import is_global_zero

    if is_global_zero():
        consolidate(parsed.sharded, parsed.output)
        tell(parsed.output)


# ---- collect-stats ------------------------------------------------------------------------------------------------


def _add_collect_stats(commands: Any) -> None:
    add_command(
        commands, "collect-stats", _collect_stats, "write shapes and statistics of the features to stats_dir",
        "Runs the model's collect_feats over the training and validation data, in `parallel.n_workers` processes.",
    )  # fmt: skip


def _collect_stats(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    experiment.collect(read_config(parsed))


# ---- stage ---------------------------------------------------------------------------------------------------------


def _add_stage(commands: Any) -> None:
    parser = add_command(
        commands, "stage", _stage, "run one of espnet3's stages before training, by espnet3's own code", config=False,
        details="It needs espnet, not Lightning. Run it in the recipe's folder.",
    )  # fmt: skip
    parser.add_argument(
        "stage", choices=("create_dataset", "train_tokenizer", "collect_stats"), help="which stage of espnet3's"
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="the recipe's training configuration, such as conf/training.yaml"
    )


def _stage(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet.stages import run_stage

    run_stage(parsed.stage, parsed.config)
