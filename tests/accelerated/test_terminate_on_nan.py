"""The first loss that is not finite ends the run, in training, in validation and with manual optimization."""

import math

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import TerminateOnNaNCallback, TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore:epoch .*batch|validation batch")


class Module(LiteModule):
    def __init__(self, bad_training=(), bad_validation=(), manual=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.bad_training, self.bad_validation = bad_training, bad_validation
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum() * (math.nan if batch_idx in self.bad_training else 1)

    def validation_step(self, batch, batch_idx):
        return {"loss": torch.tensor(math.inf if batch_idx in self.bad_validation else 1.0)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stopped(TrainerCallback):
    count = 0

    def on_stop_training_error(self, trainer, **kwargs):
        self.count += 1


def fit(module):
    callback, stopped = TerminateOnNaNCallback(), Stopped()
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback, stopped], num_sanity_val_steps=0)
    loader = DataLoader(torch.ones(4, 1))
    trainer.fit(module, loader, loader)
    assert callback.triggered == (stopped.count == 1)
    return trainer, callback.triggered


def test_training():
    trainer, triggered = fit(Module(bad_training=[2]))
    assert (trainer.global_step, triggered) == (2, True)
    assert str(trainer.stop_error) == "Stopping training due to NaN loss in training step"


def test_validation():
    trainer, triggered = fit(Module(bad_validation=[1]))
    assert (trainer.global_step, trainer.current_epoch, triggered) == (4, 1, True)
    assert str(trainer.stop_error) == "Stopping training due to NaN loss in validation step"


def test_manual_optimization():
    trainer, triggered = fit(Module(bad_training=[1], manual=True))
    assert (trainer.fit_loop.batches_seen, triggered) == (2, True)


def test_a_sound_run_goes_on():
    trainer, triggered = fit(Module())
    assert (trainer.global_step, triggered) == (8, False)
