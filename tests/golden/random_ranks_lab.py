"""Random runs of several ranks, by Lightning's DDP and by this package's: those of `random_runs_lab`, changed a little.

``torchrun --nproc_per_node 2 tests/golden/random_ranks_lab.py FIRST LAST``, in an environment with Lightning 2.6.6:
seeds FIRST to LAST - 1. Each rank runs each program by Lightning, then by this package, in one process group, and
compares what happened there. Rank zero's last line is JSON, how many runs had which trait. What differs on purpose (see
``docs/differences.md``) is not drawn: epochs that do not divide, values that the ranks do not reduce, a wish to stop
that comes after a batch.
"""

import collections
import contextlib
import io
import json
import logging
import math
import random
import sys
import tempfile
import warnings
from pathlib import Path

import random_runs_lab as lab
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler


def drawn(seed):
    """A case of `random_runs_lab` for ranks."""
    case, chance = lab.drawn(seed), random.Random(f"ranks {seed}")
    case["train"] = {"stream": False, "count": 24, "size": chance.choice([2, 3])}
    for wanted in case["val"]:
        wanted.update(stream=False, count=12, size=chance.choice([2, 3]))
    case["shuffle"] = chance.random() < 0.5
    case["optimizer"] = case["optimizer"].replace("LBFGS", "Adam")
    if case["returns"] == "none sometimes":  # a loss on one rank alone
        case["returns"] = "tensor"
    if case["stop"] and case["stop"][-1] == "on_train_batch_end":
        case["stop"] = None
    unused = case["optimizers"] > 1 or chance.random() < 0.3
    case["strategy"] = "ddp_find_unused_parameters_true" if unused else "ddp"
    for log in case["logs"]:
        log["how"]["sync_dist"] = True
        if log["hook"] in ("validation_step", "on_validation_batch_end"):
            log["how"].pop("on_step", None)  # the ranks' evaluation batches may differ in number here
    return case


class Run(lab.Run):
    """One rank's part of it. Each rank logs values and weights of its own."""

    def __init__(self, case, side, folder):
        self.rank, strategy = distributed.get_rank(), {"devices": distributed.get_world_size()}
        strategy["strategy"] = case["strategy"]

        class Reduced(side.module):
            def log(self, name, value, **how):
                super().log(name, value, **{"sync_dist": True, **how})

        changes = {"trainer": lambda **settings: side.trainer(**{**settings, **strategy}), "module": Reduced}
        super().__init__(case, type(side)(**{**vars(side), **changes}), folder)

    def log(self, who, hook, module):
        for index, call in enumerate(self.case["logs"]):
            if (call["hook"], call["by"]) == (hook, who):
                self.logged += 1
                how = {**call["how"]}
                if "batch_size" in how:
                    how["batch_size"] += 2 * self.rank  # an odd sum over two ranks Lightning halves to a whole number
                module.log(f"value{index}", torch.tensor(self.logged + 100.0 * self.rank), **how)


def loader(wanted, seed, shuffle=False):
    """Dealt out by torch's own sampler, which both sides leave as it is."""
    data = lab.Numbers(wanted["count"], seed)
    sampler = DistributedSampler(data, shuffle=shuffle, seed=seed)
    return DataLoader(data, batch_size=wanted["size"], sampler=sampler)


def equal(theirs, mine):
    """Numbers may differ by how they were added up."""
    if isinstance(theirs, dict):
        return theirs.keys() == mine.keys() and all(equal(value, mine[name]) for name, value in theirs.items())
    if isinstance(theirs, (list, tuple)):
        return len(theirs) == len(mine) and all(map(equal, theirs, mine))
    return theirs == mine or (isinstance(theirs, float) and math.isclose(theirs, mine, rel_tol=1e-6, abs_tol=1e-8))


def comparable(run):
    """The files are rank zero's: it may have written or removed more when another rank looks."""
    lines = [line for line in run.lines if line[0] != "files" or run.rank == 0]
    return lab.comparable(lines, run.case)


def difference(case):
    """None where both sides did the same on this rank; else the lines around the first difference."""
    runs = []
    for side in (lab.lightnings(), lab.ours()):
        folder = [tempfile.mkdtemp() if distributed.get_rank() == 0 else None]
        distributed.broadcast_object_list(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            runs.append(Run(case, side, Path(folder[0])))
        distributed.barrier()
    for theirs, mine in zip(*map(comparable, runs), strict=True):
        pairs = enumerate(zip(theirs, mine, strict=False))
        place = next((i for i, (a, b) in pairs if not equal(a, b)), min(len(theirs), len(mine)))
        if place < max(len(theirs), len(mine)):
            around, errors = slice(max(0, place - 4), place + 4), [repr(getattr(run, "error", None)) for run in runs]
            return {"case": case, "Lightning": theirs[around], "here": mine[around], "errors": errors}
    return None


def main(first, last):
    """Compare seeds `first` to `last` - 1."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.nn.Dropout = lambda p: torch.nn.Identity()  # Lightning gives the ranks other random numbers
    lab.loader = loader
    distributed.init_process_group("gloo")
    traits = collections.Counter()
    for seed in range(first, last):
        case = drawn(seed)
        wrong = difference(case)
        if wrong is not None:
            sys.exit(json.dumps({"rank": distributed.get_rank(), **wrong}, indent=1))
        traits.update(name for name, value in case.items() if value)
        traits.update([*case["trainer"], *(kind for kind, _ in case["callbacks"]), case["strategy"]])
    if distributed.get_rank() == 0:
        print(json.dumps(traits))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
