"""One rank of a run on two "machines", each with an agent of torchrun; a rank may kill itself, or its agent as well.

torchrun ... rank_two_machines.py FOLDER KILL   (KILL: "nobody", "rank", "agent"; the second rank's, at its 17th step)
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from quiet import QUIET

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import ModelCheckpoint

SAMPLES, BATCH_SIZE, EPOCHS, KILLED_AT = 96, 4, 3, 17


class Noisy(torch.utils.data.Dataset):
    """Samples that draw random numbers."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.full((4,), index / SAMPLES) + 0.01 * torch.randn(4)


class Layer(LiteModule):
    """One layer with dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.1))

    def training_step(self, batch, batch_idx):
        return (self.layer(batch) - batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid", (self.layer(batch) - batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Killer(Callback):
    """Kills the second rank once, and its agent where it shall."""

    def __init__(self, folder, kill):
        self.kill, self.done = kill, Path(folder, "killed")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.kill != "nobody" and trainer.global_rank == 1 and trainer.global_step == KILLED_AT:
            if not self.done.exists():
                self.done.touch()
                for process in [os.getppid()] * (self.kill == "agent") + [os.getpid()]:
                    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    folder, kill = sys.argv[1:]
    if os.environ["RANK"] == "0":  # as where its agent hears of the other's failure before its own rank has failed
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    saving = ModelCheckpoint(dirpath=Path(folder, "checkpoints"), save_last=True, every_n_train_steps=2)
    settings = {**QUIET, "enable_checkpointing": True, "max_epochs": EPOCHS}
    trainer, module = Trainer(**settings, callbacks=[saving, Killer(folder, kill)]), Layer()
    loaders = (
        torch.utils.data.DataLoader(Noisy(), batch_size=BATCH_SIZE, shuffle=shuffle) for shuffle in (True, False)
    )
    trainer.fit(module, *loaders)
    if trainer.is_global_zero:
        weights = [value.tolist() for value in module.state_dict().values()]
        result = {"steps": trainer.global_step, "weights": weights, "valid": trainer.callback_metrics["valid"].item()}
        Path(folder, "result.json").write_text(json.dumps(result))
