"""The commands that look at a configuration or at a run, and train nothing: check, find-lr, plot, report, hooks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from espnet3_lite.cli.arguments import add_command, read_config, tell
from espnet3_lite.exceptions import MisconfigurationException

# ---- check, find-lr -------------------------------------------------------------------------------------------------


def add_check(commands: Any) -> None:
    parser = add_command(
        commands, "check", _check, "try out a training, and report what would fail or surprise",
        "Loads samples, trains two batches, validates one, saves and resumes, all in a temporary folder. The exit "
        "status is 1 if there is a problem.",
    )  # fmt: skip
    parser.set_defaults(quiet=True)


def _check(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet.check import check

    broken = False
    for kind, text in check(read_config(parsed)):
        tell(f"{kind:<8} {text}")
        broken = broken or kind == "problem"
    if broken:
        raise SystemExit(1)


def add_find_lr(commands: Any) -> None:
    parser = add_command(
        commands, "find-lr", _find_lr, "suggest a learning rate, with a picture",
        "Trains a copy of the model for some steps with a rate that grows; nothing is saved but the picture.",
    )  # fmt: skip
    parser.add_argument("--min", type=float, default=1e-8, metavar="RATE", help="the first rate (default: 1e-8)")
    parser.add_argument("--max", type=float, default=1.0, metavar="RATE", help="the last rate (default: 1)")
    parser.add_argument("--steps", type=int, default=100, help="the number of steps (default: 100)")
    parser.add_argument("--output", type=Path, help="the picture's file (default: EXP_DIR/images/find_lr.png)")


def _find_lr(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment
    from espnet3_lite.report.pictures import HOW_TO_INSTALL, can_draw, draw_search

    config = read_config(parsed)
    found = experiment.find_lr(config, parsed.min, parsed.max, parsed.steps)
    rate = found.suggestion()
    if can_draw():
        output = parsed.output or experiment.exp_dir_of(config) / "images" / "find_lr.png"
        tell(draw_search(found, rate, output))
    else:
        tell(HOW_TO_INSTALL)
    if rate is None:
        raise MisconfigurationException(f"find-lr: {len(found.results['lr'])} steps are too few; give more --steps")
    tell(f"suggested learning rate: {rate:.3g}; the loss falls fastest there; train with optimizer.lr={rate:.3g}")


# ---- plot, report --------------------------------------------------------------------------------------------------

_OR_FILE = ", or the configuration file that names it"


def run_folder(path: Path) -> Path:
    """The folder of a run that is named by itself, or by a configuration file with its ``exp_dir``."""
    from espnet3_lite.espnet.experiment import exp_dir_of

    return exp_dir_of(read_config(argparse.Namespace(config=[str(path)]))) if path.is_file() else path


def add_plot(commands: Any) -> None:
    parser = add_command(
        commands, "plot", _plot, "draw a run's curves, or those of several runs together", config=False,
        details="Draws loss, metrics, learning rates, gradient norm and seconds, from the run's metrics.csv.",
    )  # fmt: skip
    parser.add_argument("exp_dir", nargs="+", type=Path, metavar="EXP_DIR", help=f"the runs' folders{_OR_FILE}")
    parser.add_argument(
        "--output", type=Path, help="the pictures' folder (default: EXP_DIR/images; of several runs: images)"
    )


def _plot(parsed: argparse.Namespace) -> None:
    from espnet3_lite.report.pictures import plot

    tell(*plot([run_folder(path) for path in parsed.exp_dir], parsed.output))


def add_report(commands: Any) -> None:
    parser = add_command(
        commands, "report", _report, "write one HTML page about a run", config=False,
        details="It has curves, checkpoints, skipped batches, where the time went, and the configuration. It needs no "
        "network.",
    )  # fmt: skip
    parser.add_argument("exp_dir", type=Path, metavar="EXP_DIR", help=f"the run's folder{_OR_FILE}")
    parser.add_argument("--output", type=Path, help="the file to write (default: EXP_DIR/report.html)")


def _report(parsed: argparse.Namespace) -> None:
    from espnet3_lite.report.page import write_report

    tell(write_report(run_folder(parsed.exp_dir), parsed.output))


# ---- hooks -------------------------------------------------------------------------------------------------------


def add_hooks(commands: Any) -> None:
    add_command(
        commands, "hooks", _hooks, "print the order of the hooks, and which callbacks listen to each",
        "Builds the configuration's model and callbacks; trains nothing.",
    )  # fmt: skip


def _hooks(parsed: argparse.Namespace) -> None:
    from espnet3_lite.espnet import experiment

    tell(experiment.describe_hooks(experiment.build_to_train(read_config(parsed))))
