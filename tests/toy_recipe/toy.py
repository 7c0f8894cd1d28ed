"""A small experiment in ESPnet3's contract, which the tests of the commands and of faults copy into a folder and run.

What goes wrong in a run is said by environment variables, so that the command stays the same: see `Faults`.
"""

import errno
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from espnet3_lite import Callback, OptimizationStep
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.compat import BaseDataset, Field
from espnet3_lite.espnet.data.contract import Kind, register_kind


class Array(Kind):
    def accepts(self, value, field):
        return isinstance(value, np.ndarray)


register_kind("array", Array(), replace=True)


class Dataset(BaseDataset):
    """`size` samples of a linear rule; with `noise`, each look at one is another, drawn from all three generators."""

    fields = (Field("x", "array"), Field("y", "array"))

    def __init__(self, size=24, seed=0, noise=0.0):
        generator = np.random.RandomState(seed)
        self.x = generator.randn(size, 4).astype(np.float32)
        self.y = (self.x @ np.float32([[1.0], [-2.0], [0.5], [3.0]])).astype(np.float32)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        if self.noise:
            drawn = random.gauss(0.0, 1.0), np.random.randn(), torch.randn(()).item()
            x = x + self.noise * np.float32(drawn + (0.0,))
        return {"x": x, "y": self.y[index]}


class Model(nn.Module):
    """BatchNorm has state that is no parameter, dropout draws random numbers: both must survive a resume."""

    def __init__(self, dropout=0.25, fail_at=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 1)
        self.fail_at = fail_at
        self.calls = 0

    def forward(self, x, y):
        if self.training:
            self.calls += 1
            if self.calls == self.fail_at:
                raise ZeroDivisionError("the toy was told to fail here")
        loss = (self.head(self.body(x)) - y).square().mean()
        return loss, {"loss": loss.detach()}, torch.tensor(len(x))


class TwoLosses(Model):
    """The same with an optimizer for each half."""

    def forward(self, x, y):
        loss, stats, weight = super().forward(x, y)
        if not self.training:
            return loss, stats, weight
        shrink = self.body(x).square().mean()
        return [OptimizationStep(loss, "head"), OptimizationStep(shrink + loss, "body")], stats, weight


class Witness(Callback):
    """Writes down each training batch: ``epoch batch_idx uids``, one line in one write."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with open(self.path, "a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {','.join(batch[0])} {float(batch[1]['x'].sum())!r}\n")


def make_read_only(folder):
    """What a file system does that became read-only. (A folder's mode would not do: root may write in any.)"""
    folder, changes = Path(folder).resolve(), os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def refuse(event, arguments):
        names = [name for name in arguments[:2] if isinstance(name, str | Path)]
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
        if event == "open":
            writes, names = arguments[2] & changes, names[:1]
        if writes and any(Path(name).absolute().is_relative_to(folder) for name in names):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(names[0]))

    sys.addaudithook(refuse)


class Faults(Callback):
    """What the environment says.

    ``TOY_KILL_AFTER``: SIGKILL so many seconds after training began. ``TOY_SIGNALS``: ``TERM@5`` sends SIGTERM to this
    very process at the 5th training batch of this run, ``INT,INT@5`` two signals. ``TOY_KILL_IN_SAVE``: SIGKILL in the
    midst of writing the n-th checkpoint. ``TOY_FULL_AT``: from the n-th batch on no file can grow beyond 12 kB, less
    than a checkpoint takes; ``end``: when all is trained and saved, the disk is full. ``TOY_BATCH_SECONDS``: each batch
    takes so long. ``TOY_READ_ONLY_AT``: from the n-th batch on ``exp`` is on a file system that cannot be written.
    """

    def __init__(self):
        self.batches = self.saves = 0
        self.save = torch.save
        names = ("KILL_AFTER", "SIGNALS", "KILL_IN_SAVE", "FULL_AT", "BATCH_SECONDS", "READ_ONLY_AT")
        given = (os.environ.get(f"TOY_{name}") for name in names)
        self.kill_after, self.signals, self.kill_in_save, self.full_at, self.seconds, self.read_only_at = given
        if self.kill_in_save:
            checkpoint_io.torch.save = self.faulty_save

    def on_train_start(self, trainer, pl_module):
        if self.kill_after:
            timer = threading.Timer(float(self.kill_after), os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        time.sleep(float(self.seconds or 0))
        if str(self.batches) == self.full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
        if str(self.batches) == self.read_only_at:
            make_read_only("exp")
        names, _, when = (self.signals or "").partition("@")
        if when and self.batches == int(when):
            for name in names.split(","):
                signal.raise_signal(getattr(signal, f"SIG{name}"))

    def on_fit_end(self, trainer, pl_module):
        if self.full_at == "end":
            checkpoint_io.torch.save = self.no_room

    def no_room(self, checkpoint, file, **_):
        file.write(b"the beginning")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def faulty_save(self, checkpoint, file, **how):
        self.saves += 1
        if self.saves == int(self.kill_in_save or -1):
            self.save(checkpoint, file, **how)
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.save(checkpoint, file, **how)
