"""A run drawn from a seed, undisturbed and disturbed; what both leave behind must be the same, bit for bit.

What is drawn: the kind of module and of loader, workers, randomness in samples, accumulation, optimizers, schedulers,
number formats, what averages or prunes, metric objects, the intervals of validation and of saving, one or two ranks,
and the moments at which a process of the run is killed, gets signals or fails: at a hook, or at a call that changes a
file. The processes are forks of this one, which has imported torch already. Run by hand for many seeds::

    python tests/helpers/random_runs.py FIRST COUNT

With ``kills``: four runs whose samples are random, own loader and configured one, 0 and 2 workers, 20 times killed.
"""

import csv
import gc
import hashlib
import json
import multiprocessing.util
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from random_run_parts import CALLS, HOOKS, Disturb, Lite, Map, callbacks_of, espnet_module, loader_of
from torch.utils.data import DataLoader

from espnet3_lite import Trainer, seed_everything
from espnet3_lite.distributed.group import leave_process_group
from espnet3_lite.loggers import CSVLogger

SECONDS = 60  # that a process may take


# ---- what is drawn -------------------------------------------------------------------------------------------------


def draw(seed):
    """The run of a seed, and the moments at which it is disturbed, as plain values."""
    dice = random.Random(seed)
    run = {
        "seed": seed,
        "ranks": dice.choice([1, 1, 1, 1, 1, 2]),
        "contract": dice.choice(["lite", "lite", "lite", "manual", "manual two", "espnet", "espnet two"]),
        "loader": dice.choice(["plain", "shuffled", "with replacement", "batches", "random batches", "generator",
                               "stream", "stream of known length", "stateful", "own", "list", "configured",
                               "configured factory"]),
        "workers": dice.choice([0, 0, 1, 2]),
        "draws": dice.choice([None, "torch", "numpy", "random", "own"]),
        "validation_draws": dice.choice([None, None, "torch", "own"]),
        "samples": dice.choice([20, 23, 24]),
        "accumulate": dice.choice([1, 1, 2, 3]),
        "windows": (dice.choice([1, 2, 3]), dice.choice([1, 2, 3])),
        "by_weight": dice.random() < 0.3,
        "optimizer": dice.choice(["SGD", "Adam", "Adam", "LBFGS"]),
        "scheduler": dice.choice([None, "step", "epoch", "plateau", "train_plateau"]),
        "acting": dice.choice([None, None, "ema", "late ema", "espnet ema", "swa", "pruning", "kept pruning",
                               "finetuning", "windows", "early"]),
        "precision": dice.choice(["32-true", "32-true", "64-true", "bf16-mixed", "16-mixed"]),
        "metric_object": dice.random() < 0.3,
        "dropout": dice.random() < 0.5,
        "clip": dice.choice([None, 0.5]),
        "iterations": dice.choice([None, 4, 7]),
        "top_k": dice.choice([1, 2, -1]),
        "best_alone": dice.random() < 0.5,
        "saving": dice.choice([
            {"every_n_train_steps": 1, "save_top_k": -1}, {"every_n_train_steps": 2, "save_last": "link"},
            {"every_n_train_steps": 3, "keep_newest": 2, "save_last": "link"}, {"every_n_epochs": 1, "save_last": True},
            {"train_time_interval": {"seconds": 0}, "keep_newest": 2},
        ]),
        "settings": {
            "max_epochs": 3,
            "async_save": dice.random() < 0.3,
            "val_check_interval": dice.choice([1.0, 1.0, 0.5, 2]),
            "check_val_every_n_epoch": dice.choice([1, 1, 2]),
            "num_sanity_val_steps": dice.choice([0, 1]),
            "limit_train_batches": dice.choice([1.0, 1.0, 3]),
            "reload_dataloaders_every_n_epochs": dice.choice([0, 0, 1]),
            **dice.choice([{}, {}, {"max_steps": 7}]),
        },
    }  # fmt: skip
    run["persistent"] = run["workers"] > 0 and dice.random() < 0.5
    _reconcile(run)
    run["disturbances"] = [_disturbance(dice, run["ranks"]) for _ in range(dice.randint(1, 3))]
    return run


def _reconcile(run):
    """Change what does not go together."""
    settings, contract, loader = run["settings"], run["contract"], run["loader"]
    if loader.startswith("configured") and not contract.startswith("espnet"):
        contract = run["contract"] = "espnet"
    if not loader.startswith("configured") and settings["reload_dataloaders_every_n_epochs"]:
        settings["reload_dataloaders_every_n_epochs"] = 0  # a loader that is handed over stays
    if loader in ("stateful", "own", "list"):
        run.update(workers=0, persistent=False)
    if loader in ("stream", "own") and settings["val_check_interval"] == 0.5:
        settings["val_check_interval"] = 2  # half of an unknown length
    if loader == "stream of known length" and run["workers"] > 1 and settings["val_check_interval"] == 0.5:
        settings["val_check_interval"] = 1.0
    if run["ranks"] == 2:
        run.update(workers=0, persistent=False)
        if settings["val_check_interval"] == 2:
            settings["val_check_interval"] = 1.0
    if contract.startswith("manual"):
        run.update(accumulate=1, clip=None, scheduler=None, acting=None, by_weight=False)
        if run["optimizer"] == "LBFGS":  # needs a closure there
            run["optimizer"] = "SGD"
    if contract == "espnet two":
        run.update(accumulate=1, clip=None)
        if run["acting"] in ("windows", "swa"):
            run["acting"] = None
    if contract != "lite" and run["acting"] in ("finetuning", "pruning", "kept pruning"):
        run["acting"] = None
    if contract.startswith("espnet") and run["optimizer"] == "LBFGS":
        run["optimizer"] = "Adam"
    if run["optimizer"] == "LBFGS":
        run.update(accumulate=1, acting=None, precision="64-true", clip=None)
    if run["acting"] == "windows":
        run["accumulate"] = 1
    if run["acting"] == "swa":
        run["scheduler"] = None
    if run["acting"] == "finetuning" and run["optimizer"] == "Adam":
        run["optimizer"] = "SGD"
    if run["scheduler"] == "plateau" or contract == "espnet two" or run["acting"] == "early":
        settings["check_val_every_n_epoch"] = 1


def _disturbance(dice, ranks):
    what = dice.choice(["KILL", "KILL", "KILL", "TERM", "TERM", "INT", "TERM,TERM", "FAIL"])
    if dice.random() < 0.6:
        where, count = dice.choice(HOOKS), dice.randint(1, 6)
    else:
        where, count = f"{dice.choice(['before', 'after'])} os.{dice.choice(CALLS)}", dice.randint(1, 12)
        what = "KILL" if what == "FAIL" else what
    return what, where, count, dice.choice([0, 2]), dice.randrange(ranks)


# ---- a process of a run --------------------------------------------------------------------------------------------


def train(run, folder, disturbance, rank):
    """From the start, or from where the process before it was cut."""
    torch.set_default_dtype(torch.float64 if run["precision"] == "64-true" else torch.float32)
    seed_everything(run["seed"])
    callbacks = callbacks_of(run, folder)
    best = callbacks[-2]
    if disturbance is not None:
        callbacks.append(Disturb(*disturbance))
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, auto_resume=True, precision=run["precision"],
        logger=CSVLogger(folder, flush_logs_every_n_steps=1), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=run["accumulate"], gradient_clip_val=run["clip"],
        dist_timeout=20, signal_grace=2, **run["settings"],
    )  # fmt: skip
    module = espnet_module(run, folder) if run["contract"].startswith("espnet") else Lite(run)
    loaders = {}
    if not run["loader"].startswith("configured"):
        valid = DataLoader(Map(8, run["validation_draws"]), batch_size=4)
        loaders = {"train_dataloaders": loader_of(run), "val_dataloaders": valid}
    trainer.fit(module, **loaders)
    result = {
        "weights": _digest(module.state_dict()),
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "updates": [slot.update_step for slot in trainer.plan.slots.values()],
        "optimizers": _digest([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": [str(sorted(c.scheduler.state_dict().items())) for c in trainer.lr_scheduler_configs],
        "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        "random": _digest([torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()[1]]),
    }
    if rank == 0:
        result["best"] = {Path(path).name: float(score) for path, score in best.best_k_models.items()}
        result["best weights"] = {
            path.name: _digest(torch.load(path, weights_only=True)["state_dict"])
            for path in sorted(folder.glob("best/*"))
        }
        result["full"] = sorted(path.name for path in folder.glob("full/*"))
        result["averages"] = {path.name: _digest(torch.load(path)) for path in sorted(folder.glob("*.pth"))}
    (folder / f"result{rank}.json").write_text(json.dumps(result))


def _digest(value):
    """Of tensors and plain values, nested: to the bit."""
    digest = hashlib.sha256()

    def feed(part):
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}{part.double().tolist()!r}".encode())
        elif isinstance(part, dict):
            for key in part:
                digest.update(repr(key).encode())
                feed(part[key])
        elif isinstance(part, (list, tuple)):
            for item in part:
                feed(item)
        else:
            digest.update(repr(part).encode())

    feed(value)
    return digest.hexdigest()[:16]


def _fork(run, folder, disturbance, rank, environment):
    """Start a process of the run; returns its number. It is the first of a process group, its loader workers' too."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        output = os.open(folder / f"output{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        train(run, folder, disturbance, rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:  # of what runs at a process's end that which is the run's, not the parent's
            multiprocessing.util._exit_function()
            if run["ranks"] > 1:
                leave_process_group()
        finally:
            sys.stdout.flush()
            os._exit(code)


def _free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def _processes(run, folder, disturbance):
    """All ranks, to their end; when one has died the others are told, as torchrun does. Returns the exit codes."""
    ranks = run["ranks"]
    several = {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()), "TORCHELASTIC_RUN_ID": "random",
    }  # fmt: skip
    numbers = {}
    for rank in range(ranks):
        own = {} if ranks == 1 else {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        numbers[_fork(run, folder, disturbance, rank, own)] = rank
    codes, deadline = {}, time.monotonic() + SECONDS
    while len(codes) < ranks and time.monotonic() < deadline:
        for number in set(numbers) - set(codes):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                codes[number] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            for number in set(numbers) - set(codes):
                os.kill(number, signal.SIGTERM)
        time.sleep(0.002)
    for number in numbers:  # what hangs, and loader workers that a killed process left behind
        try:
            os.killpg(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for number in set(numbers) - set(codes):
        os.waitpid(number, 0)
    return [codes.get(number, "hangs") for number in numbers]


def import_all():
    """A short fit in this process: what torch and this package import when it is first used, no fork imports again."""
    for seed in (0, 2):
        with tempfile.TemporaryDirectory() as place:
            train(
                {**draw(seed), "ranks": 1, "workers": 0, "persistent": False, "loader": "shuffled"},
                Path(place),
                None,
                0,
            )
    gc.freeze()


# ---- a whole run, and what it leaves -------------------------------------------------------------------------------


def rows_of(folder):
    """The logged rows of the newest log."""
    files = sorted(folder.glob("lightning_logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    return list(csv.DictReader(files[-1].read_text().splitlines())) if files else []


#: How a process may end that was struck: in order, by a signal, after one, or with the failure that it was told.
STRUCK = {
    "KILL": (-9,), "TERM": (128 + 15, -15), "INT": (130,), "TERM,TERM": (128 + 15, -15), "FAIL": (1,),
}  # fmt: skip


def play(run, folder, disturbances):
    """The whole run: disturbed as it is said, and then to its end. Returns what it left.

    Raises:
        AssertionError: a process ended in another way than it should.
    """
    for disturbance in [*disturbances, None]:
        codes = _processes(run, folder, disturbance)
        output = "".join(path.read_text() for path in sorted(folder.glob("output*.txt")))
        expected = (0,) if disturbance is None else (0, *STRUCK[disturbance[0]])
        if disturbance is None or run["ranks"] == 1:
            right = all(code in expected for code in codes)
        else:  # the others end with the one that was struck, each in its way
            right = codes[disturbance[-1]] in (*expected, 1, 128 + 15) and "hangs" not in codes
        in_order = disturbance is not None and disturbance[0] not in ("FAIL", "KILL") and run["ranks"] == 1
        told = in_order and "KeyboardInterrupt" not in output and "Traceback" in output
        assert right and not told, f"after {disturbance}: ended with {codes}\n{output[-2500:]}"
        if all((folder / f"result{rank}.json").exists() for rank in range(run["ranks"])):
            break
        assert disturbance is not None, f"ended with {codes}, and without a result\n{output[-2500:]}"
        states = [*folder.glob("full/*.ckpt"), *([] if run["best_alone"] else folder.glob("best/*.ckpt"))]
        if not states:  # nothing to go on from: a run that begins anew cannot know whose files these are
            shutil.rmtree(folder)
            folder.mkdir()
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(run["ranks"])]
    left = sorted(path.name for path in folder.rglob(".*.tmp"))
    return {**{f"{key} {rank}": value for rank, result in enumerate(results) for key, value in result.items()},
            "rows": rows_of(folder), "left behind": left}  # fmt: skip


def difference(run, folder):
    """What a disturbed run ends with otherwise than an undisturbed one: the keys that differ."""
    one, other = folder / "undisturbed", folder / "disturbed"
    one.mkdir()
    other.mkdir()
    expected = play(run, one, [])
    found = play(run, other, run["disturbances"])
    ended_in_order = any(what not in ("KILL", "FAIL") for what, *_ in run["disturbances"])
    left_out = {"full 0"} if ended_in_order else set()  # a signal saves a state more
    return [key for key in expected if expected[key] != found.get(key) and key not in left_out]


def killed_often(loader, workers, kills=20):
    """A run whose samples are random, of 12 epochs, killed again and again wherever it is then."""
    dice = random.Random(f"{loader} {workers}")
    run = draw(1)
    run.update(
        ranks=1, contract="espnet", loader=loader, workers=workers, persistent=False, draws="numpy", dropout=True,
        acting=None, samples=24, saving={"every_n_train_steps": 1, "keep_newest": 2, "save_last": "link"},
    )  # fmt: skip
    run["settings"] = {"max_epochs": 12, "num_sanity_val_steps": 0}
    hooks = [hook for hook in HOOKS if "batch" in hook or "before" in hook or "validation" in hook]
    run["disturbances"] = [("KILL", dice.choice(hooks), dice.randint(2, 4), 0, 0) for _ in range(kills)]
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_all()
    if sys.argv[1] == "kills":
        for case in [(loader, workers) for loader in ("shuffled", "configured") for workers in (0, 2)]:
            with tempfile.TemporaryDirectory() as place:
                differs = difference(killed_often(*case), Path(place))
            print(*case, differs, flush=True)
        sys.exit()
    first, count = int(sys.argv[1]), int(sys.argv[2])
    failed, began = [], time.monotonic()
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as place:
            try:
                differs = difference(draw(seed), Path(place))
            except AssertionError as error:
                differs = [str(error)]
        if differs:
            failed.append(seed)
            print(seed, draw(seed), *differs, flush=True)
        if (seed - first) % 50 == 49:
            print(f"{seed - first + 1} runs so far, {len(failed)} differ", file=sys.stderr, flush=True)
    print(f"{count} runs in {time.monotonic() - began:.0f} s, {len(failed)} differ: {failed}")
