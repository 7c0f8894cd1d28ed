"""Several callbacks save in one hook, and the process is killed between: the run that goes on does the rest.

What a killed run wrote after the state from which it goes on is written again, under the same names.
"""

import os
import signal

import line_model
import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import Callback, Trainer
from espnet3_lite.callbacks import ModelCheckpoint


class Line(line_model.Line):
    """Logs the values 3, 2, 1 and so on, one a validation."""

    def validation_step(self, batch, batch_idx):
        self.log("loss", 3.0 - self.trainer.fit_loop.batches_seen)


class Stop(Callback):
    """SIGTERM in the first validation."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        signal.raise_signal(signal.SIGTERM)


def fit(folder, states, best, stop=False, **settings):
    callbacks = [
        *([Stop()] if stop else []),
        ModelCheckpoint(folder / "states", "{step}", **states),
        ModelCheckpoint(folder / "best", "{step}", monitor="loss", save_weights_only=True, **best),
    ]
    trainer = Trainer(
        max_epochs=3, default_root_dir=folder, logger=False, enable_progress_bar=False, auto_resume=True,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(Line(), DataLoader(torch.ones(4, 1), batch_size=2), DataLoader(torch.ones(2, 1)))


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    """What is imported when it is first used, so that no fork imports it anew."""
    fit(tmp_path_factory.mktemp("first"), {}, {})


def run(folder, kill_at_save, *arguments, **settings):
    """Fit in a process of its own, from the folder's newest state; killed before it writes its n-th file."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        save, saves = Trainer.save_checkpoint, []

        def counted(trainer, *arguments, **more):
            saves.append(1)
            if len(saves) == kill_at_save:
                os.kill(os.getpid(), signal.SIGKILL)
            save(trainer, *arguments, **more)

        Trainer.save_checkpoint = counted
        fit(folder, *arguments, **settings)
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(99)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.ckpt"))


CASES = {
    "epoch's end": ({"every_n_epochs": 1, "save_last": True}, {}, {}),
    "epoch's end, with a link": ({"every_n_epochs": 1, "save_last": "link"}, {"save_top_k": 2}, {}),
    "validation's end": ({"save_on_train_epoch_end": False}, {}, {"val_check_interval": 1}),
    "batch's end": ({"every_n_train_steps": 1}, {"every_n_train_steps": 2, "save_top_k": 9}, {"val_check_interval": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_before_each_save_in_turn(case, tmp_path):
    states, best, settings = CASES[case]
    assert run(tmp_path / "whole", 0, states, best, **settings) == 0
    expected, saves = files(tmp_path / "whole"), 0
    while True:
        saves += 1
        folder = tmp_path / str(saves)
        status = run(folder, saves, states, best, **settings)
        if status == 0:
            break  # it made fewer saves
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert run(folder, 0, states, best, **settings) == 0
        assert files(folder) == expected, saves
    assert saves > 5


def test_killed_and_then_stopped(tmp_path):
    """The signal's state is newer than the files that the killed run had written after the state that was left."""
    states, best = {"every_n_train_steps": 1, "save_top_k": -1}, {"save_top_k": 2, "save_on_train_epoch_end": False}
    interval = {"val_check_interval": 0.5}
    assert run(tmp_path / "whole", 0, states, best, **interval) == 0
    assert os.WTERMSIG(run(tmp_path / "cut", 11, states, best, **interval)) == signal.SIGKILL
    assert os.WEXITSTATUS(run(tmp_path / "cut", 0, states, best, True, **interval)) == 128 + signal.SIGTERM
    assert run(tmp_path / "cut", 0, states, best, **interval) == 0
    assert files(tmp_path / "cut" / "best") == files(tmp_path / "whole" / "best")
