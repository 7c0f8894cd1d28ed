"""Several loggers of one run: each goes on with its own log, whatever the order in which they are given."""

import line_model
import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.loggers import CSVLogger, Logger

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:Checkpoint directory")


class Line(line_model.Line):
    def training_step(self, batch, batch_idx):
        self.log("loss", loss := super().training_step(batch, batch_idx))
        return loss


class Counting(Logger):
    """Counts what it was given, and says so in checkpoints; it has no folder."""

    name, version = "counting", 0

    def __init__(self):
        self.count = 0

    def log_metrics(self, metrics, step=None):
        self.count += 1

    def log_hyperparams(self, params):
        pass

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def fit(folder, loggers, epochs):
    trainer = quiet_trainer(
        logger=loggers,
        callbacks=ModelCheckpoint(folder / "states", save_top_k=0, save_last=True),
        enable_checkpointing=True,
        auto_resume=True,
        max_epochs=epochs,
        log_every_n_steps=1,
    )
    trainer.fit(Line(), DataLoader(torch.ones(3, 1)))


def made(folder):
    return {
        "one": CSVLogger(folder, name="one"),
        "two": CSVLogger(folder, name="two"),
        "again": CSVLogger(folder, name="two"),
        "own": Counting(),
    }


@pytest.mark.parametrize("order", [("own", "two", "again", "one"), ("two", "one", "own", "again")])
def test_loggers_in_another_order_go_on_with_their_logs(tmp_path, order):
    before = made(tmp_path)
    fit(tmp_path, list(before.values()), epochs=1)
    assert [before[name].version for name in ("one", "two", "again")] == [0, 0, 1]
    after = made(tmp_path)
    fit(tmp_path, [after[name] for name in order], epochs=2)
    assert [after[name].version for name in ("one", "two", "again")] == [0, 0, 1]
    assert sorted(path.name for path in tmp_path.glob("*/version_*")) == ["version_0", "version_0", "version_1"]
    assert after["own"].count == 2 * before["own"].count > 0


def test_a_logger_that_joins_takes_nobodys_state(tmp_path):
    before = made(tmp_path)
    fit(tmp_path, [before["own"], before["one"]], epochs=1)
    after = made(tmp_path)
    fit(tmp_path, [after["two"], after["own"], after["one"]], epochs=2)
    assert (after["one"].version, after["two"].version) == (0, 0)
    assert after["own"].count == 2 * before["own"].count > 0
