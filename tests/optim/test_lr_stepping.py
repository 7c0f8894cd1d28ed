"""When monitored schedulers step: by a new value only, and the same in a run that was cut."""

import os
import signal

import pytest
import torch
from quiet import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule
from espnet3_lite.callbacks import ModelCheckpoint

EPOCHS = 8


class Flat(LiteModule):
    """A validation loss that never improves: each step by it brings the plateau's end nearer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 1.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "valid/loss"}}


def rate_after(epochs, folder, every=1, resume=False):
    last = folder / "last.ckpt"
    trainer = quiet_trainer(max_epochs=epochs, check_val_every_n_epoch=every)
    trainer.fit(Flat(), DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(2, 1)), ckpt_path=last if resume else None)
    trainer.save_checkpoint(last)
    return trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(("every", "expected"), [(1, 2**-3), (2, 2**-1), (3, 1.0)])
def test_a_plateau_ends_at_the_same_epoch_in_a_run_that_was_cut(tmp_path, every, expected):
    assert rate_after(EPOCHS, tmp_path, every) == expected
    for cut in range(1, EPOCHS):
        rate_after(cut, tmp_path, every)
        assert rate_after(EPOCHS, tmp_path, every, resume=True) == expected, f"cut after epoch {cut}"


class LoggedLate(LiteModule):
    """Its metric is logged when the batch is over."""

    VALUES = (0.5, 0.4, 0.9, 0.3, 0.2, 0.1)

    def __init__(self):
        super().__init__()
        self.layer, self.rates = nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("metric", self.VALUES[batch_idx])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        settings = {"scheduler": plateau, "monitor": "metric", "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": settings}


@pytest.mark.parametrize("cut", [None, 0, 1, 2, 3])
def test_a_step_plateau_steps_by_what_the_batch_logged_last(tmp_path, cut):
    """As Lightning's does: the third value, 0.9, lowers the rate of the fourth batch. Also where a run is cut there."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # before the module's own hook
            if batch_idx == cut:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    def run(ckpt_path=None):
        module = LoggedLate()
        trainer = quiet_trainer(max_epochs=1, callbacks=[Save()])
        trainer.fit(module, DataLoader(torch.ones(6, 1)), ckpt_path=ckpt_path)
        return module.rates

    rates = run()
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    if cut not in (None, 2):  # what batch 2 logs after that save is lost, and with it the step
        assert run(tmp_path / "cut.ckpt") == rates[cut + 1 :]


class TwoLoaders(Flat):
    """The first validation loader's value is monitored by steps; a signal comes while the second is read."""

    def __init__(self, signal_in=None):
        super().__init__()
        self.validations, self.signal_in, self.steps = 0, signal_in, []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("value", float(self.trainer.global_step))
        self.validations += dataloader_idx == 1 and batch_idx == 0
        if dataloader_idx == 1 and self.validations == self.signal_in:
            os.kill(os.getpid(), signal.SIGTERM)

    def lr_scheduler_step(self, scheduler, metric):
        self.steps.append((self.trainer.global_step, metric.item()))

    def configure_optimizers(self):
        settings = {**super().configure_optimizers()["lr_scheduler"], "interval": "step"}
        optimizer = settings["scheduler"].optimizer
        return {"optimizer": optimizer, "lr_scheduler": {**settings, "monitor": "value/dataloader_idx_0"}}


def test_a_value_of_a_validation_that_was_broken_off_has_no_say(tmp_path):
    def run(module):
        trainer = quiet_trainer(
            max_epochs=1,
            val_check_interval=2,
            num_sanity_val_steps=0,
            auto_resume=True,
            callbacks=[ModelCheckpoint(tmp_path / str(module.signal_in), save_last=True)],
            enable_checkpointing=True,
        )
        loader = DataLoader(torch.ones(2, 1))
        trainer.fit(module, DataLoader(torch.ones(6, 1)), [loader, loader])
        return module.steps

    whole = run(TwoLoaders())
    assert [value for _, value in whole] == [2.0, 4.0, 6.0]
    cut = TwoLoaders(signal_in=2)
    with pytest.raises(SystemExit):
        run(cut)
    resumed = TwoLoaders()
    resumed.signal_in = 2  # the same folder
    resumed.validations = 9
    assert cut.steps + run(resumed) == whole


class ByTrainingLoss(LiteModule):
    """Logs its training loss for steps and for the epoch's mean, and notes what its plateau decides by."""

    def __init__(self, interval="epoch", **logged):
        super().__init__()
        self.layer, self.interval, self.logged, self.decisions = nn.Linear(1, 1), interval, logged, []

    def training_step(self, batch, batch_idx):
        self.log("loss", float(batch_idx + 10 * self.current_epoch), **self.logged)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 1.0)

    def lr_scheduler_step(self, scheduler, metric):
        self.decisions.append(float(metric))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [{"scheduler": plateau, "monitor": "loss", "interval": self.interval}]


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 2}, {"limit_val_batches": 0}], ids=str)
@pytest.mark.parametrize(
    ("interval", "logged", "decisions"),
    [
        ("epoch", {"on_step": True, "on_epoch": True}, [1.5, 11.5]),  # the mean, once an epoch
        ("epoch", {"on_step": False, "on_epoch": True}, [1.5, 11.5]),
        ("epoch", {"on_step": True, "on_epoch": False}, [3.0, 13.0]),  # it has the last value alone
        ("step", {"on_step": True, "on_epoch": True}, [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]),
    ],
)
def test_a_plateau_by_a_training_metric_steps_once_an_epoch_by_its_mean(settings, interval, logged, decisions):
    module = ByTrainingLoss(interval, **logged)
    loader = DataLoader(torch.ones(4, 1))
    quiet_trainer(max_epochs=2, **settings).fit(module, loader, loader)
    assert module.decisions == decisions
