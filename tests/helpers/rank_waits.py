"""Ranks that wait for one another, and what ends the wait. For `rank_lab.torchrun`.

torchrun --nproc-per-node 2 rank_waits.py FOLDER long_work|late|stuck|hangs_in_work|hangs_in_backward
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from rank_alone_cases import Line
from rank_cases import rank_and_size
from rank_lab import Note, loader_of, trainer_of, write_results

from espnet3_lite import Callback
from espnet3_lite.callbacks import AverageCheckpointsCallback, ModelCheckpoint
from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.atomic_files import replacing

RANK = rank_and_size()[0]
TIMEOUT, WORK = 3, 4.5  # seconds


class Prepares(Line):
    def prepare_data(self):
        time.sleep(WORK if RANK == 0 else 0)

    def validation_step(self, batch, batch_idx):
        self.log("x", self.loss(batch, "validation_step"))


class SlowAverage(AverageCheckpointsCallback):
    def average(self):
        time.sleep(WORK)
        return super().average()


def long_work(folder):
    """Rank zero prepares data, saves and averages for longer than a collective would wait."""
    write = files.save_checkpoint

    def slow(*args):
        time.sleep(WORK)
        write(*args)

    files.save_checkpoint = slow
    best = ModelCheckpoint(folder / "best", monitor="x", save_top_k=1)
    trainer = trainer_of(
        max_epochs=1, callbacks=[best, SlowAverage(folder, [best])], enable_checkpointing=True, dist_timeout=TIMEOUT
    )
    trainer.fit(Prepares(), loader_of(8, 1, False), loader_of(4, 1, False))
    write_results(folder, {"step": trainer.global_step, "averages": [path.name for path in folder.glob("*.pth")]})


def late(folder):
    """Rank 1 is not there when rank zero votes on the third batch."""

    def sleep(trainer, module, batch_idx):
        if RANK == 1 and batch_idx == 1:
            time.sleep(2 * TIMEOUT)

    trainer_of(max_epochs=1, callbacks=[Note(sleep)], dist_timeout=TIMEOUT).fit(Line(), loader_of(8, 1, False))


def hang_here():
    """Longer than the others wait, and than torchrun then takes to end this rank; SIGTERM does not."""
    for _ in range(200):
        time.sleep(0.1)
    os._exit(1)


def hangs_in_work(folder):
    """Rank 1 hangs before its third batch, and the others wait in the vote."""

    def hang(trainer, module, batch_idx):
        if RANK == 1 and batch_idx == 1:
            hang_here()

    trainer_of(max_epochs=1, callbacks=[Note(hang)], dist_timeout=TIMEOUT).fit(Line(), loader_of(12, 1, False))


class HangsInBackward(Line):
    def on_before_backward(self, loss):
        if RANK == 1 and self.global_step == 1:
            hang_here()


def hangs_in_backward(folder):
    """Rank 1 hangs after the vote on the second batch, and the others wait for its gradients."""
    trainer_of(max_epochs=1, dist_timeout=TIMEOUT).fit(HangsInBackward(), loader_of(12, 1, False))


class Stuck(Callback):
    """Rank 1 waits in a group of its own for rank zero, which waits in the vote; and a thread writes a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        self.group = dist.new_group()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            (self.folder / f"waits-{RANK}").write_text(str(os.getpid()))
        if batch_idx == 1 and RANK == 1:
            threading.Thread(target=self.write).start()
            dist.all_reduce(torch.ones(1), group=self.group)

    def write(self):
        with replacing(self.folder / "written") as temporary:
            time.sleep(5)
            temporary.write_text("whole")


def stuck(folder):
    trainer_of(max_epochs=1, callbacks=[Stuck(folder)], signal_grace=1).fit(Line(), loader_of(8, 1, False))


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]))
