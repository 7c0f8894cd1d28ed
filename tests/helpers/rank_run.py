"""One training under torchrun to which something happens: a signal, a kill, an exception. For `rank_lab.torchrun`.

    torchrun --nproc-per-node 2 rank_run.py FOLDER '{"signal": "SIGTERM", "rank": 1, "at": [1, 2]}'

The run saves in ``FOLDER/checkpoints``; each rank writes ``FOLDER/rank<R>.json`` when its run ends in order, and a line
``<epoch> <uids>`` of ``FOLDER/seen-<R>of<N>-<attempt>.txt`` for each batch that it trained on.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from rank_lab import SINGLE, Model, Module, Note, loader_of, report, several, trainer_of

from espnet3_lite import Callback, StopTrainingError
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.espnet.status_file import StatusFile
from espnet3_lite.strategies import FSDPStrategy


class NoisyModel(Model):
    """With dropout: what is drawn in a step must be the same after a resume."""

    def forward(self, x, y):
        return super().forward(torch.nn.functional.dropout(x, 0.2, self.training), y)


class LeavingModule(Module):
    """Wants to stop in the middle of a batch, where the other ranks wait for it; or gets a signal in a test."""

    def __init__(self, model, run):
        super().__init__(model, SINGLE)
        self.run, self.tested = run, 0

    def training_step(self, batch, batch_idx):
        if self.run.is_here(self.trainer, batch_idx):
            raise StopTrainingError("enough")
        return super().training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        if self.run.is_here(self.trainer, batch_idx):
            os.kill(os.getpid(), getattr(signal, self.run.settings["signal"]))
        time.sleep(0.02)  # so that a test which goes on to its end is seen to
        self.tested += 1
        return super().validation_step(batch, batch_idx)


class AsksTheOthers(Callback):
    """After an exception, when nobody answers any more."""

    def on_exception(self, trainer, pl_module, exception):
        number = torch.tensor(2.0)
        found = [trainer.strategy.reduce(number).item(), trainer.strategy.all_gather(number).item()]
        print(f"rank {trainer.global_rank} asked: {found}", flush=True)


class FailsInTeardown(Callback):
    """When the training is over, and only on one rank."""

    def __init__(self, rank):
        self.rank = rank

    def teardown(self, trainer, pl_module, stage):
        if trainer.global_rank == self.rank:
            raise ValueError("the disk of this rank is full")


class Run:
    """The training, and what happens to it after batch `at` (epoch, batch) on one rank."""

    def __init__(self, folder, settings):
        self.folder, self.settings = Path(folder), settings
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]

    def is_here(self, trainer, batch_idx):
        """Where and when it happens."""
        here = [trainer.current_epoch, batch_idx] == self.settings.get("at")
        return here and self.rank == self.settings.get("rank")

    def happen(self, trainer, module, batch_idx):
        seen = self.folder / f"seen-{self.rank}of{self.world_size}-{self.attempt}.txt"
        if not trainer.train_data.replaying:
            with open(seen, "a") as file:
                file.write(f"{trainer.current_epoch} {' '.join(module.trained[-1])}\n")
        if not self.is_here(trainer, batch_idx) or self.attempt != "0":
            return
        if "signal" in self.settings:
            target = os.getppid() if self.settings.get("to") == "torchrun" else os.getpid()
            os.kill(target, getattr(signal, self.settings["signal"]))
        else:
            raise ValueError("the data of this rank are broken")

    def others_work(self, trainer, module, batch_idx):
        """The other ranks are busy for longer than torchrun waits; only a signal that kills them helps."""
        if self.settings.get("error") == "while others work" and self.rank != self.settings["rank"]:
            if [trainer.current_epoch, batch_idx] == self.settings["at"]:
                time.sleep(600)

    def start(self):
        torch.manual_seed(11 + self.rank)
        names = self.settings.get("named")
        module = Module(NoisyModel(names), several(accum_grad_steps=3) if names else SINGLE)
        happens = [Note(self.happen), Note(self.others_work), AsksTheOthers()]
        if self.settings.get("error") == "stop within a batch" or self.settings.get("call") == "test":
            module, happens = LeavingModule(NoisyModel(names), self), []
        if self.settings.get("error") == "in teardown":
            happens = [FailsInTeardown(self.settings["rank"])]
        saving = ModelCheckpoint(
            self.folder / "checkpoints", filename="step{step}", auto_insert_metric_name=False, every_n_train_steps=2,
            save_last="link", keep_newest=2, enable_version_counter=False,
        )  # fmt: skip
        status = StatusFile(self.folder / "run_status.json")
        strategy = self.settings.get("strategy", "auto")
        if "sync_each_batch" in self.settings:
            strategy = FSDPStrategy(sync_each_batch=self.settings["sync_each_batch"])
        trainer = trainer_of(
            max_epochs=3, enable_checkpointing=True, callbacks=[*happens, saving, status],
            auto_resume=self.settings.get("resume", False), accumulate_grad_batches=1 if names else 3,
            default_root_dir=self.folder, strategy=strategy,
        )  # fmt: skip
        if self.settings.get("call") == "test":
            try:
                trainer.test(module, loader_of(400, 1, False), verbose=False)
            finally:
                print(f"rank {self.rank} tested {module.tested} batches, {trainer.state.status.value}")
            return
        trainer.fit(module, loader_of(40, self.settings.get("batch_size", 4)), loader_of(7, 2, False))
        result = {**report(trainer, module), "resumed_from": trainer.ckpt_path}
        (self.folder / f"rank{self.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    Run(sys.argv[1], json.loads(sys.argv[2])).start()
