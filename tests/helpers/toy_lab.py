"""Runs of the toy experiment in processes of their own, and what they left behind.

The processes are forked from a server that has imported torch already; each then runs the command as a shell would.
"""

import csv
import json
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import torch

RECIPE = Path(__file__).parents[1] / "toy_recipe"
#: What may differ between two equal runs: where they are, and which files of an interrupted one are yet to go.
PLACES = (
    "replaced",
    "given_up",
    "dirpath",
    "best_model_path",
    "kth_best_model_path",
    "last_model_path",
    "best_k_models",
    "root_dir",
    "version",
)

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        *("espnet3_lite.espnet.experiment", "espnet3_lite.cli.commands", "espnet3_lite.loggers", "matplotlib.figure"),
        "torch._dynamo",  # the first optimizer imports it, which takes as long as torch itself
    ]
)


def make_recipe(folder):
    """A folder with the toy experiment in it."""
    return Path(shutil.copytree(RECIPE, folder))


def start(folder, *arguments, **environment):
    """Start ``espnet3-lite ARGUMENTS`` in a folder; its output goes to ``output.txt`` there."""
    process = _processes.Process(target=_run, args=(str(folder), arguments, environment))
    process.start()
    return process


def run(folder, *arguments, **environment):
    """Run it to its end. Returns the exit code, minus the signal's number where one killed it, and the output."""
    process = start(folder, *arguments, **environment)
    process.join(timeout=120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, (Path(folder) / "output.txt").read_text()


def _run(folder, arguments, environment):
    os.chdir(folder)
    os.environ.update(environment)
    sys.path.insert(0, folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    from espnet3_lite.cli.commands import main

    main(list(arguments))


def wait_for(condition, process):
    """Wait until a condition holds, as long as the process lives."""
    while not condition():
        assert process.is_alive(), f"it ended with {process.exitcode}"
        time.sleep(0.01)


# ---- what a run left behind ----------------------------------------------------------------------------------------


def hidden_files(folder):
    """What was written beside its name and not renamed."""
    return sorted(path.name for path in (Path(folder) / "exp").rglob(".*.tmp"))


def status(folder):
    return json.loads((Path(folder) / "exp" / "status.json").read_text())


def logged(folder):
    """The rows of the run's log: the newest, for one that was killed before its first checkpoint begins anew.

    Times are left out: no two runs have the same.
    """
    file = sorted(Path(folder).glob("exp/lightning_logs/*/metrics.csv"))[-1]
    rows = csv.DictReader(file.read_text().splitlines())
    return [{name: value for name, value in row.items() if not name.endswith("_time")} for row in rows]


def seen(folder):
    """``{(epoch, batch_idx): (ids, sum of the samples)}``; a batch that was trained twice was the same one."""
    batches = {}
    for line in (Path(folder) / "seen.txt").read_text().splitlines():
        epoch, batch_idx, ids, total = line.split()
        previous = batches.setdefault((int(epoch), int(batch_idx)), (ids, total))
        assert previous == (ids, total), f"epoch {epoch}, batch {batch_idx} was another one before"
    return batches


def checkpoint(folder, name="last.ckpt"):
    return torch.load(Path(folder) / "exp" / name, weights_only=True)


def assert_equal_states(one, other, where="checkpoint"):
    """Equal to the last bit, but for the names of folders."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            if key not in PLACES:
                assert_equal_states(one[key], other[key], f"{where}[{key!r}]")
            elif key == "best_k_models":
                assert_equal_states(*({Path(p).name: s for p, s in d[key].items()} for d in (one, other)), where)
            elif isinstance(one[key], str):
                assert Path(one[key]).name == Path(other[key]).name or key in ("dirpath", "root_dir"), (
                    f"{where}[{key!r}]"
                )
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(left, right, f"{where}[{index}]")
    else:
        assert one == other, f"{where}: {one!r} is not {other!r}"


def assert_same_end(folder, undisturbed):
    """Two runs ended alike: every bit of the last checkpoint, the best ones, their average, the log, the samples."""
    assert_equal_states(checkpoint(folder), checkpoint(undisturbed))
    names = sorted(path.name for path in (undisturbed / "exp").iterdir() if path.suffix in (".ckpt", ".pth"))
    assert sorted(path.name for path in (folder / "exp").iterdir() if path.suffix in (".ckpt", ".pth")) == names
    for name in names:
        assert_equal_states(checkpoint(folder, name), checkpoint(undisturbed, name), name)
    assert logged(folder) == logged(undisturbed)
    assert seen(folder) == seen(undisturbed)
    assert (status(folder)["status"], status(folder)["global_step"]) == ("finished", status(undisturbed)["global_step"])
