"""What a drawn run (`random_runs.py`) is made of: loaders, modules, callbacks, and what disturbs it."""

import os
import random
import signal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler, get_worker_info

from espnet3_lite import Callback, ESPnetModule, LiteModule, OptimizationStep
from espnet3_lite.callbacks import (
    AverageCheckpointsCallback,
    BackboneFinetuning,
    EarlyStopping,
    EMACallback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)

BATCH, FEATURES = 4, 3


# ---- data ----------------------------------------------------------------------------------------------------------


def noise(kind, rng):
    """Three numbers from one of the generators that samples may draw from, `rng` for ``own``; zeros for None."""
    if kind == "own":
        return torch.as_tensor(rng.normal(size=FEATURES), dtype=torch.float32)
    if kind == "torch":
        return torch.randn(FEATURES)
    if kind == "numpy":
        return torch.as_tensor(np.random.randn(FEATURES), dtype=torch.float32)
    if kind == "random":
        return torch.tensor([random.gauss(0, 1) for _ in range(FEATURES)])
    return torch.zeros(FEATURES)


def sample(index, kind, rng):
    """An id and ``{"x": (3,), "y": (1,)}`` in the default dtype: a batch of these is what both contracts take."""
    x = torch.tensor([index / 10, 1.0, (index * 7 % 5) / 5]) + noise(kind, rng)
    dtype = torch.get_default_dtype()
    return f"u{index}", {"x": x.to(dtype), "y": x.sum().reshape(1).to(dtype)}


class Map(Dataset):
    def __init__(self, samples, kind=None):
        self.samples, self.kind, self.epoch = samples, kind, 0
        self.rng = np.random.default_rng(3)

    def __len__(self):
        return self.samples

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if int(index) >= self.samples:
            raise IndexError(index)
        uid, item = sample(int(index), self.kind, self.rng)
        item["x"] = item["x"] + self.epoch / 4
        return uid, item


class Items(Map):
    """Samples without ids, as the data sets of a configuration give them."""

    def __getitem__(self, index):
        return super().__getitem__(index)[1]


class Stream(IterableDataset):
    """Dealt out to loader workers as users write it."""

    def __init__(self, samples, kind):
        self.samples, self.kind, self.rng = samples, kind, np.random.default_rng(3)

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        yield from (sample(index, self.kind, self.rng) for index in range(first, self.samples, step))


class StreamOfKnownLength(Stream):
    def __len__(self):
        return self.samples


def _collate(rows):
    return torch.utils.data.default_collate(list(rows))


class Stateful:
    """A loader that knows its own position, as torchdata's does; its samples may be random."""

    def __init__(self, samples, kind):
        self.samples, self.kind, self.position = samples, kind, 0
        self.rng = np.random.default_rng(3)

    def __len__(self):
        return -(-self.samples // BATCH)

    def __iter__(self):
        if self.position == len(self):  # where an epoch was over the next one begins
            self.position = 0
        while self.position < len(self):
            start, self.position = self.position * BATCH, self.position + 1
            yield _collate(
                sample(index, self.kind, self.rng) for index in range(start, min(start + BATCH, self.samples))
            )

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Own:
    """A loader of the user's own without a length, whose order is drawn anew in each epoch."""

    def __init__(self, samples, kind):
        self.samples, self.kind, self.rng = samples, kind, np.random.default_rng(3)

    def __iter__(self):
        order = torch.randperm(self.samples).tolist()
        for start in range(0, self.samples, BATCH):
            yield _collate(sample(index, self.kind, self.rng) for index in order[start : start + BATCH])


class RandomBatches:
    """A batch sampler that shuffles a list of its own in place with Python's generator."""

    def __init__(self, samples):
        self.samples, self.order = samples, list(range(samples))

    def __len__(self):
        return -(-self.samples // 3)

    def __iter__(self):
        random.shuffle(self.order)
        yield from (self.order[start : start + 3] for start in range(0, self.samples, 3))


def loader_of(run):
    """The training loader that is handed to `fit`."""
    samples, kind = run["samples"], run["draws"]
    loader = run["loader"]
    if loader == "stateful":
        return Stateful(samples, kind)
    if loader == "own":
        return Own(samples, kind)
    if loader == "list":
        return list(DataLoader(Map(samples), batch_size=BATCH))
    more = {"num_workers": run["workers"], "persistent_workers": run["persistent"]}
    if loader == "stream":
        return DataLoader(Stream(samples, kind), batch_size=BATCH, **more)
    if loader == "stream of known length":
        return DataLoader(StreamOfKnownLength(samples, kind), batch_size=BATCH, **more)
    data = Map(samples, kind)
    if loader == "with replacement":
        more["sampler"] = WeightedRandomSampler(torch.arange(1.0, samples + 1), samples)
    elif loader == "batches":
        fixed = [list(range(start, min(start + 3, samples))) for start in range(0, samples, 3)]
        return DataLoader(data, batch_sampler=fixed, **more)
    elif loader == "random batches":
        return DataLoader(data, batch_sampler=RandomBatches(samples), **more)
    elif loader == "generator":
        return DataLoader(data, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(7), **more)
    return DataLoader(data, batch_size=BATCH, shuffle=loader == "shuffled", **more)


def configured(run, folder):
    """``dataset`` and ``dataloader`` of a configuration."""
    train = {"num_workers": run["workers"], "persistent_workers": run["persistent"]}
    if run["loader"] == "configured":
        train.update(batch_size=BATCH, shuffle=True)
    else:
        shapes = folder / "shapes"
        if not shapes.exists():
            shapes.write_text("".join(f"{index} {FEATURES}\n" for index in range(run["samples"])))
        train["iter_factory"] = {
            "_target_": "espnet2.iterators.sequence_iter_factory.SequenceIterFactory", "shuffle": True,
            "num_workers": run["workers"], "seed": run["seed"], "num_iters_per_epoch": run["iterations"],
            "batches": {"type": "unsorted", "batch_size": BATCH, "shape_files": [str(shapes)]},
        }  # fmt: skip
        del train["num_workers"], train["persistent_workers"]
    here = "random_run_parts.Items"
    return {
        "dataset": {
            "train": {"_target_": here, "samples": run["samples"], "kind": run["draws"]},
            "valid": {"_target_": here, "samples": 8, "kind": run["validation_draws"]},
        },
        "dataloader": {
            "collate_fn": {"_target_": "espnet3_lite.compat.CommonCollateFn", "not_sequence": ["x", "y"]},
            "train": train, "valid": {"batch_size": 4, "shuffle": False},
        },
    }  # fmt: skip


# ---- modules -------------------------------------------------------------------------------------------------------


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


class Net(nn.Module):
    """Linear, BatchNorm (which has state beside its parameters), dropout (which draws random numbers), linear."""

    def __init__(self, dropout, several=False):
        super().__init__()
        self.backbone, self.last = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4)), nn.Linear(4, 1)
        self.dropout, self.several = 0.2 if dropout else 0.0, several

    def error(self, x, y):
        hidden = self.backbone(x)
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        return (self.last(hidden) - y).square().mean(), hidden

    def forward(self, x, y, **_):
        """ESPnet's contract."""
        loss, hidden = self.error(x, y)
        result = loss
        if self.several and self.training:
            result = [OptimizationStep(loss, "last"), OptimizationStep(hidden.square().mean() + loss, "backbone")]
        return result, {"loss": loss.detach()}, torch.tensor(len(x))


def scheduler_of(run, optimizer):
    """Of torch's; with the name of what it monitors."""
    schedulers, kind = torch.optim.lr_scheduler, run["scheduler"]
    if kind.endswith("plateau"):
        scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"scheduler": scheduler, "monitor": "valid/loss" if kind == "plateau" else "train/loss"}
    return {"scheduler": schedulers.ExponentialLR(optimizer, gamma=0.9), "interval": kind}


class Lite(LiteModule):
    """Lightning's contract, with automatic or manual optimization."""

    def __init__(self, run):
        super().__init__()
        self.run, self.automatic_optimization = run, not run["contract"].startswith("manual")
        net = Net(run["dropout"])
        self.backbone, self.last, self.error = net.backbone, net.last, net.error
        self.net = net
        self.mean = RunningMean() if run["metric_object"] else None
        self.valid_mean = RunningMean() if run["metric_object"] else None

    def training_step(self, batch, batch_idx):
        loss, hidden = self.net.error(**batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(batch[0]))
        if self.mean is not None:
            self.mean.update(loss)
            self.log("train/mean", self.mean, on_step=False, on_epoch=True)
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        if self.run["contract"] == "manual":
            self.manual_backward(loss / 2)
            if (batch_idx + 1) % 2 == 0:
                optimizers.step()
                optimizers.zero_grad()
            return None
        for optimizer, value in zip(optimizers, (loss, loss + hidden.square().mean()), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(value, retain_graph=True)
            self.untoggle_optimizer(optimizer)
        for optimizer in optimizers:
            optimizer.step()
        return None

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = self.net.error(**batch[1])[0]
        self.log("valid/loss", loss, add_dataloader_idx=False, batch_size=len(batch[0]))
        if self.valid_mean is not None:
            self.valid_mean.update(loss)
            self.log("valid/mean", self.valid_mean)

    def configure_optimizers(self):
        kind = self.run["optimizer"]
        make = getattr(torch.optim, kind)
        more = {"lr": 0.02, **({"max_iter": 2} if kind == "LBFGS" else {})}
        if self.run["contract"] == "manual two":
            return make(self.last.parameters(), **more), make(self.backbone.parameters(), **more)
        optimizer = make([p for p in self.parameters() if p.requires_grad], **more)
        if self.run["scheduler"] is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler_of(self.run, optimizer)}


def espnet_module(run, folder):
    """ESPnet3's contract, with one optimizer or two."""
    config = configured(run, folder) if run["loader"].startswith("configured") else {}
    optimizer = {"_target_": f"torch.optim.{run['optimizer']}", "lr": 0.02}
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 0.5, "patience": 0}
    exponential = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.9}
    if run["contract"] == "espnet two":
        config["optimizers"] = {
            "last": {"params": "last", "optimizer": dict(optimizer), "accum_grad_steps": run["windows"][0]},
            "backbone": {"params": "backbone", "optimizer": dict(optimizer), "gradient_clip_val": 1.0,
                         "step_every_n_iters": run["windows"][1]},
        }  # fmt: skip
        if run["scheduler"] is not None:
            config["schedulers"] = {
                "backbone": {"scheduler": dict(exponential), "interval": "step"},
                "last": {"scheduler": dict(plateau), "monitor": "valid/loss"},
            }
    else:
        config.update(optimizer=optimizer, accumulate_by_weight=run["by_weight"])
        kind = run["scheduler"]
        if kind is not None:
            on = kind.endswith("plateau")
            config.update(scheduler=dict(plateau if on else exponential), scheduler_interval="epoch" if on else kind)
            config["scheduler_monitor"] = {"plateau": "valid/loss", "train_plateau": "train/loss"}.get(kind)
    return ESPnetModule(Net(run["dropout"], several=run["contract"] == "espnet two"), config)


# ---- callbacks -----------------------------------------------------------------------------------------------------


def callbacks_of(run, folder):
    """What acts on the weights, then what saves and what averages."""
    acting = {
        None: list,
        "ema": lambda: [EMAWeightAveraging(decay=0.9)],
        "late ema": lambda: [EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=5)],
        "espnet ema": lambda: [EMACallback(update_after_step=3, update_every=2)],
        "swa": lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)],
        "pruning": lambda: [ModelPruning("l1_unstructured", amount=0.2)],
        "kept pruning": lambda: [
            ModelPruning(
                "l1_unstructured", amount=0.2, make_pruning_permanent=False, use_lottery_ticket_hypothesis=False
            )
        ],
        "finetuning": lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)],
        "windows": lambda: [GradientAccumulationScheduler({1: 2, 2: 3})],
        "early": lambda: [EarlyStopping("valid/loss", patience=1, min_delta=0.3)],
    }[run["acting"]]()
    whole = dict(run["saving"])
    saves = ModelCheckpoint(folder / "full", filename="step{step}", auto_insert_metric_name=False, **whole)
    best = ModelCheckpoint(
        folder / "best", filename="{epoch}-{step}", monitor="valid/loss", save_top_k=run["top_k"],
        save_weights_only=run["best_alone"],
    )  # fmt: skip
    return [*acting, saves, best, AverageCheckpointsCallback(folder, [best])]


HOOKS = ["on_fit_start", "on_sanity_check_end", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
         "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
         "on_train_batch_end", "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start",
         "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end",
         "on_save_checkpoint", "on_train_end", "on_fit_end"]  # fmt: skip
#: Calls of the operating system that change a folder; a run may be struck before or after each.
CALLS = ["replace", "link", "unlink", "fsync", "truncate"]


class Disturb(Callback):
    """Strikes when a hook, or a call of the operating system, is reached for the n-th time in this process.

    Args:
        what: ``KILL``, ``TERM``, ``INT``, ``TERM,TERM`` or the like, the signals that this process gets; ``FAIL``, an
            exception.
        where: A hook, or ``before os.replace`` and the like.
        count: At which time.
        place: In the handler's order; the callbacks that save have 1.
        rank: Of which rank.
    """

    def __init__(self, what, where, count, place=0, rank=0):
        self.what, self.where, self.left, self.place = what, where, count, place
        self.process = os.getpid()  # a loader's worker is none of the run's
        self.mine = rank == int(os.environ.get("RANK", "0"))
        when, _, call = where.partition(" os.")
        if call:
            original = getattr(os, call)

            def struck(*arguments, **more):
                if when == "before":
                    self.strike()
                result = original(*arguments, **more)
                if when == "after":
                    self.strike()
                return result

            setattr(os, call, struck)
        else:
            setattr(self, where, self._hook)

    def _hook(self, trainer, *_, **__):
        if not trainer.sanity_checking or self.where == "on_sanity_check_end":
            self.strike()

    def strike(self):
        if not self.mine or os.getpid() != self.process:
            return
        self.left -= 1
        if self.left != 0:
            return
        if self.what == "FAIL":
            raise ZeroDivisionError("the run was told to fail here")
        for name in self.what.split(","):
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))


def _nothing(*_, **__):
    """What a hook is on the class: there, so that the handler asks the instance."""


for _name in HOOKS:
    setattr(Disturb, _name, _nothing)
