"""What every progress bar knows: its switch, its metrics and its counts."""

import pytest
import torch
from line_model import Line
from torch.utils.data import DataLoader

from espnet3_lite import MisconfigurationException, Trainer
from espnet3_lite.callbacks import ProgressBar, ProgressBarBase
from espnet3_lite.loggers import CSVLogger

QUIET = {"enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(Line):
    def training_step(self, batch, batch_idx):
        self.log("shown", float(batch_idx), prog_bar=True)
        self.log("hidden", 1.0)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.layer(batch)

    test_step = predict_step = validation_step


def loader(count):
    return DataLoader(torch.zeros(count, 1))


class Counting(ProgressBar):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((self.train_batch_idx, self.total_train_batches, self.total_val_batches))
        self.metrics = self.get_metrics(trainer, pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        changed = self.has_dataloader_changed(dataloader_idx)
        self.seen.append(("val", changed, self.val_batch_idx, self.total_val_batches_current_dataloader))

    def on_validation_end(self, trainer, pl_module):
        self.reset_dataloader_idx_tracker()

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append(
            ("test", self.test_batch_idx, self.total_test_batches, self.total_test_batches_current_dataloader)
        )

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append(("predict", self.predict_batch_idx, self.total_predict_batches_current_dataloader))


def test_counts():
    bar = Counting()
    trainer = Trainer(
        callbacks=bar, max_epochs=2, check_val_every_n_epoch=2, logger=False, num_sanity_val_steps=1, **QUIET
    )
    trainer.fit(Module(), loader(2), [loader(1), loader(2)])
    assert bar.seen == [
        ("val", True, 1, 1), ("val", True, 1, 1),  # the sanity check
        (1, 2, 0), (2, 2, 0),
        (1, 2, 3), (2, 2, 3), ("val", True, 1, 1), ("val", True, 1, 2), ("val", False, 2, 2),
    ]  # fmt: skip
    bar.seen.clear()
    trainer.test(Module(), loader(2))
    trainer.predict(Module(), loader(1))
    assert bar.seen == [("test", 1, 2, 2), ("test", 2, 2, 2), ("predict", 1, 1)]
    assert (bar.total_test_batches, bar.total_predict_batches) == (2, 1)


def test_where_steps_alone_end_the_run_what_is_left_is_the_total():
    bar = Counting()
    Trainer(callbacks=bar, max_epochs=-1, max_steps=3, logger=False, **QUIET).fit(Module(), loader(2))
    assert [total for _, total, _ in bar.seen] == [2, 1, 0]


def test_metrics_are_those_logged_for_the_bar_and_no_version(tmp_path):
    bar = Counting()
    settings = {"callbacks": bar, "max_epochs": 1, **QUIET}
    Trainer(logger=CSVLogger(tmp_path, version=7), **settings).fit(Module(), loader(2))
    assert bar.metrics == {"shown": 1.0}


def test_switch_and_second_name(capsys):
    bar = ProgressBar()
    assert ProgressBarBase is ProgressBar and bar.is_enabled
    bar.disable()
    assert bar.is_disabled and not bar.is_enabled
    bar.enable()
    assert bar.is_enabled
    bar.print("a", 1, sep="-")
    assert capsys.readouterr().out == "a-1\n"
    with pytest.raises(TypeError, match="`ProgressBar.trainer` is not set yet"):
        bar.trainer  # noqa: B018


def test_two_bars_are_refused():
    with pytest.raises(MisconfigurationException, match="multiple progress bar callbacks"):
        Trainer(callbacks=[Counting(), Counting()], max_epochs=1, logger=False, **QUIET)
