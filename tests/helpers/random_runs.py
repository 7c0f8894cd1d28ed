"""A run drawn from a seed, in a process of its own, undisturbed or disturbed; what it left behind, to be compared.

What is drawn: the loader's kind and workers, randomness in samples, accumulation, optimizers, schedulers, an averaging
callback, a metric object, the intervals of validation and of saving, and the moments at which the run is killed or gets
SIGTERM. Run by hand for many seeds::

    python tests/helpers/random_runs.py 0 1000
"""

import csv
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from toy_lab import _processes  # forked from a server that has imported torch already

from espnet3_lite import Callback, LiteModule, Trainer, seed_everything
from espnet3_lite.callbacks import EMAWeightAveraging, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from espnet3_lite.loggers import CSVLogger

BATCH, FEATURES = 4, 3


# ---- what is drawn -------------------------------------------------------------------------------------------------


def draw(seed):
    """The run of a seed, and the moments at which it is disturbed, as plain values."""
    dice = random.Random(seed)
    run = {
        "seed": seed,
        "loader": dice.choice(["plain", "shuffled", "weighted", "batched", "iterable", "stateful", "list"]),
        "workers": dice.choice([0, 0, 2]),
        "draws": dice.choice([None, "torch", "numpy", "random"]),
        "samples": dice.choice([20, 22, 24]),
        "epochs": 3,
        "accumulate": dice.choice([1, 1, 2, 3]),
        "optimizers": dice.choice(["one", "one", "manual"]),
        "optimizer": dice.choice(["SGD", "Adam"]),
        "scheduler": dice.choice([None, "step", "epoch", "plateau", "train_plateau"]),
        "averaging": dice.choice([None, None, "ema", "swa", "pruning"]),
        "metric_object": dice.random() < 0.3,
        "dropout": dice.random() < 0.5,
        "clip": dice.choice([None, 0.5]),
        "val_check_interval": dice.choice([1.0, 0.5, 2]),
        "check_val_every_n_epoch": dice.choice([1, 1, 2]),
        "every_n_train_steps": dice.choice([1, 2, 3]),
        "sanity": dice.choice([0, 1]),
    }
    if run["loader"] in ("iterable", "stateful", "list"):
        run["workers"] = 0
    if run["loader"] == "iterable":
        run["val_check_interval"] = dice.choice([1.0, 2])
    if run["optimizers"] == "manual":
        run.update(accumulate=1, clip=None, scheduler=None, averaging=None)
    if run["scheduler"] == "plateau":
        run["check_val_every_n_epoch"] = 1
    moments = ["on_train_batch_start", "on_after_backward", "on_train_batch_end", "on_validation_start",
               "on_validation_batch_end", "on_train_epoch_end", "on_train_epoch_start"]  # fmt: skip
    run["disturbances"] = [
        (dice.choice(["KILL", "TERM"]), dice.choice(moments), dice.randint(1, 6)) for _ in range(dice.randint(1, 3))
    ]
    return run


# ---- the parts of a run --------------------------------------------------------------------------------------------


def noise(kind):
    """Three numbers from one of the three generators that samples may draw from; zeros for None."""
    if kind == "torch":
        return torch.randn(FEATURES)
    if kind == "numpy":
        return torch.as_tensor(np.random.randn(FEATURES), dtype=torch.float32)
    if kind == "random":
        return torch.tensor([random.gauss(0, 1) for _ in range(FEATURES)])
    return torch.zeros(FEATURES)


def sample(index, kind):
    """``(3,)`` float32 features with noise, and a target."""
    x = torch.tensor([index / 10, 1.0, (index * 7 % 5) / 5]) + noise(kind)
    return x, x.sum().reshape(1)


class Map(Dataset):
    def __init__(self, samples, kind):
        self.samples, self.kind = samples, kind

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return sample(index, self.kind)


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        yield from (sample(index, None) for index in range(self.samples))


class Stateful:
    """A loader that knows its own position, as torchdata's does."""

    def __init__(self, samples):
        self.samples, self.position = samples, 0

    def __len__(self):
        return -(-self.samples // BATCH)

    def __iter__(self):
        if self.position == len(self):  # where an epoch was over the next one begins
            self.position = 0
        while self.position < len(self):
            start, self.position = self.position * BATCH, self.position + 1
            rows = [sample(index, None) for index in range(start, min(start + BATCH, self.samples))]
            yield tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def loader_of(run):
    samples, kind, workers = run["samples"], run["draws"], run["workers"]
    if run["loader"] == "iterable":
        return DataLoader(Stream(samples), batch_size=BATCH)
    if run["loader"] == "stateful":
        return Stateful(samples)
    if run["loader"] == "list":
        return [next(iter(DataLoader(Map(BATCH, None), batch_size=BATCH))) for _ in range(samples // BATCH)]
    data, more = Map(samples, kind), {"num_workers": workers}
    if run["loader"] == "weighted":
        more["sampler"] = WeightedRandomSampler(torch.arange(1.0, samples + 1), samples)
    elif run["loader"] == "batched":
        batches = [list(range(start, min(start + 3, samples))) for start in range(0, samples, 3)]
        return DataLoader(data, batch_sampler=batches, **more)
    return DataLoader(data, batch_size=BATCH, shuffle=run["loader"] == "shuffled", **more)


class RunningMean:
    """A metric object with the interface of torchmetrics."""

    def __init__(self):
        self.reset()

    def update(self, value):
        self.total, self.count = self.total + value.detach().double(), self.count + 1

    def compute(self):
        return self.total / max(self.count, 1)

    def reset(self):
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def state_dict(self):
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state):
        self.total, self.count = state["total"], state["count"]


class Module(LiteModule):
    def __init__(self, run):
        super().__init__()
        self.run, self.automatic_optimization = run, run["optimizers"] != "manual"
        self.first, self.norm, self.last = nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.mean = RunningMean() if run["metric_object"] else None

    def loss(self, batch):
        x, y = batch
        hidden = self.norm(self.first(x)) if len(x) > 1 or not self.training else self.first(x)
        if self.run["dropout"]:
            hidden = nn.functional.dropout(hidden, 0.2, self.training)
        return (self.last(hidden) - y).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        if self.mean is not None:
            self.mean.update(loss)
            self.log("train_mean", self.mean, on_step=False, on_epoch=True)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        self.manual_backward(loss / 2)
        if (batch_idx + 1) % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.run["optimizer"])(self.parameters(), lr=0.02)
        schedulers = torch.optim.lr_scheduler
        kind = self.run["scheduler"]
        if kind is None:
            return optimizer
        if kind.endswith("plateau"):
            scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
            monitor = "val_loss" if kind == "plateau" else "train_loss"
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        scheduler = schedulers.ExponentialLR(optimizer, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": kind}}


class Disturb(Callback):
    """Kills the process, or sends it SIGTERM, when a hook is called for the n-th time in this process."""

    def __init__(self, disturbance):
        self.signal, self.hook, self.left = disturbance
        setattr(self, self.hook, self._strike)

    def _strike(self, *arguments):
        if arguments[0].sanity_checking:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, f"SIG{self.signal}"))

    on_train_batch_start = on_after_backward = on_train_batch_end = on_validation_start = on_validation_batch_end = (
        on_train_epoch_end
    ) = on_train_epoch_start = lambda *arguments: None


def callbacks_of(run, folder):
    averaging = {
        "ema": lambda: [EMAWeightAveraging(decay=0.9)],
        "swa": lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)],
        "pruning": lambda: [ModelPruning("l1_unstructured", amount=0.2)],
        None: list,
    }[run["averaging"]]()
    saves = ModelCheckpoint(folder / "full", filename="{step}", every_n_train_steps=run["every_n_train_steps"],
                            save_top_k=-1, auto_insert_metric_name=False)  # fmt: skip
    best = ModelCheckpoint(folder / "best", filename="{epoch}-{step}", monitor="val_loss", save_top_k=2)
    return [*averaging, saves, best]


# ---- a run, and what it leaves -------------------------------------------------------------------------------------


def train(run, folder, disturbance):
    """One process of a run: from the start, or from where the one before it was cut."""
    seed_everything(run["seed"])
    callbacks = callbacks_of(run, folder) + ([Disturb(disturbance)] if disturbance else [])
    trainer = Trainer(
        max_epochs=run["epochs"], accelerator="cpu", callbacks=callbacks, auto_resume=True,
        logger=CSVLogger(folder, flush_logs_every_n_steps=1), log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=run["accumulate"], gradient_clip_val=run["clip"],
        val_check_interval=run["val_check_interval"], check_val_every_n_epoch=run["check_val_every_n_epoch"],
        num_sanity_val_steps=run["sanity"],
    )  # fmt: skip
    module = Module(run)
    trainer.fit(module, loader_of(run), DataLoader(Map(8, None), batch_size=4))
    result = {
        "weights": {name: value.tolist() for name, value in module.state_dict().items()},
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "schedulers": [str(sorted(c.scheduler.state_dict().items())) for c in trainer.lr_scheduler_configs],
        "best": {
            Path(path).name: float(score) for path, score in callbacks[-1 - bool(disturbance)].best_k_models.items()
        },
        "files": sorted(path.name for path in (folder / "best").iterdir()),
        "random": torch.get_rng_state().sum().item(),
    }
    (folder / "result.json").write_text(json.dumps(result))


def rows_of(folder):
    """The logged rows of the newest log."""
    files = sorted(folder.glob("lightning_logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    return list(csv.DictReader(files[-1].read_text().splitlines())) if files else []


def _in_a_process(run, folder, disturbance):
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    try:
        train(run, folder, disturbance)
    except BaseException:
        traceback.print_exc()
        raise


def play(run, folder, disturbances):
    """The whole run: disturbed as it is said, and then to its end. Returns what it left.

    Raises:
        AssertionError: a process ended in another way than it should.
    """
    for disturbance in [*disturbances, None]:
        process = _processes.Process(target=_in_a_process, args=(run, folder, disturbance))
        process.start()
        process.join(timeout=180)
        allowed = (0,) if disturbance is None else (0, -9, 128 + 15)
        output = (folder / "output.txt").read_text() if (folder / "output.txt").exists() else ""
        assert process.exitcode in allowed, f"{run}\n{disturbance}: ended with {process.exitcode}\n{output[-3000:]}"
        if process.exitcode == 0:
            break
    return {**json.loads((folder / "result.json").read_text()), "rows": rows_of(folder)}


def difference(run, folder):
    """What a disturbed run ends with otherwise than an undisturbed one: nothing, or the first key that differs."""
    one, other = folder / "undisturbed", folder / "disturbed"
    one.mkdir()
    other.mkdir()
    expected = play(run, one, [])
    found = play(run, other, run["disturbances"])
    return [key for key in expected if expected[key] != found[key]]


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    failed = []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as place:
            try:
                differs = difference(draw(seed), Path(place))
            except AssertionError as error:
                differs = [str(error)[-1500:]]
        if differs:
            failed.append(seed)
            print(seed, draw(seed), differs, flush=True)
    print(f"{count} runs, {len(failed)} differ: {failed}")
