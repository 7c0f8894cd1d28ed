"""A small model and data to train in one process and in several, and how to start several. Both sides import this."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from quiet import QUIET
from torch.utils.data import DataLoader, SequentialSampler

from espnet3_lite import Callback, ESPnetModule, OptimizationStep, Trainer
from espnet3_lite.loaders.samplers import EpochSampler


def torchrun(processes, script, *arguments, timeout=120, restarts=0, environment=None):
    """Run one of this folder's scripts under torchrun; returns the ended process, its output in `stdout`."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "--max-restarts", str(restarts), str(Path(__file__).with_name(script)), *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **(environment or {})}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=timeout
    )


def write_results(folder, results):
    """In a rank: what `results_of` reads."""
    Path(folder, f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(results))


def results_of(folder, processes):
    """What each rank wrote, in the order of ranks."""
    return [json.loads(Path(folder, f"rank{rank}.json").read_text()) for rank in range(processes)]


class Samples:
    """`count` samples ``(uid, {x (3,), y ()})``, float64, the same ones each time. Those in `bad` hold a NaN."""

    def __init__(self, count, bad=()):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1).sin()
        self.x[list(bad)] = float("nan")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return f"utt{index}", {"x": self.x[index], "y": self.y[index]}


def collate(samples):
    """ESPnet's batch: ids and a dict of tensors, in the default dtype."""
    uids, items = zip(*samples, strict=True)
    return list(uids), {key: torch.stack([item[key] for item in items]).to(torch.get_default_dtype()) for key in "xy"}


def loader_of(count, batch_size, shuffle=True, bad=(), **arguments):
    """A loader as a configuration makes it: its order is the same for any number of ranks."""
    data = Samples(count, bad)
    sampler = EpochSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, batch_size=batch_size, sampler=sampler, collate_fn=collate, **arguments)


class Model(torch.nn.Module):
    """Two parts with a loss each; the means are over the batch, whose size is the weight.

    Args:
        names: The optimizers whose losses it returns, batch by batch in turn; None: one plain loss.
    """

    def __init__(self, names=None):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.names = names
        self.first, self.second = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)
        self.unused = torch.nn.Linear(2, 2)
        self.unused.requires_grad_(names is not None)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, x, y):
        self.forwards += self.training
        hidden = self.first(x).tanh()
        error = (self.second(hidden).squeeze(1) - y).square().mean()
        stats = {"loss": error.detach(), "square": x.detach().square().mean()}
        weight = torch.tensor(len(y))
        if self.names is None or not self.training:
            return error, stats, weight
        losses = {"second": error, "first": hidden.square().mean() + error}
        wanted = self.names[int(self.forwards - 1) % len(self.names)]  # a counter that checkpoints hold
        return [OptimizationStep(losses[name], name) for name in wanted], stats, weight


class Module(ESPnetModule):
    """Notes which samples it was trained and validated on, a replayed batch does not count; and the forward passes."""

    def __init__(self, model, config):
        super().__init__(model, config)
        self.trained, self.validated, self.forwards = [], [], 0

    def on_train_epoch_end(self):
        self.forwards = int(self.model.forwards)  # this rank's own: a fit ends with rank zero's buffers

    def training_step(self, batch, batch_idx):
        if not self.trainer.train_data.replaying:
            self.trained.append(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += batch[0]
        return super().validation_step(batch, batch_idx)


SINGLE = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.02, "weight_decay": 0.1}}


def several(**settings):
    """A configuration of two optimizers; `settings` are added to that of `second`."""
    optimizer = {"_target_": "torch.optim.AdamW", "lr": 0.02, "weight_decay": 0.1}
    return {
        "optimizers": {
            "second": {"optimizer": optimizer, "params": "second", **settings},
            "first": {"optimizer": dict(optimizer), "params": "first"},
            "unused": {"optimizer": dict(optimizer), "params": "unused"},
        }
    }


def trainer_of(**settings):
    """A quiet trainer for the CPU in float64."""
    defaults = {**QUIET, "precision": "64-true", "max_epochs": 2, "num_sanity_val_steps": 0}
    return Trainer(**{**defaults, **settings})


def whole(tensor):
    """A sharded tensor put together. Collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def report(trainer, module):
    """What a test compares: parameters, counters, metrics, and who saw what."""
    return {
        "parameters": [whole(parameter).detach().double().flatten().tolist() for parameter in module.parameters()],
        "global_step": trainer.global_step,
        "updates": {str(name): slot.update_step for name, slot in trainer.plan.slots.items()},
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "trained": module.trained,
        "validated": module.validated,
        "forwards": getattr(module, "forwards", int(module.model.forwards)),
    }


class Note(Callback):
    """Calls a function at the end of each training batch."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.function(trainer, pl_module, batch_idx)
