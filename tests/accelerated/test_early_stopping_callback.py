"""When it ends a run; its counter; what it keeps."""

import math

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import EarlyStoppingCallback, TrainerCallback


class Module(LiteModule):
    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", -self.losses[self.current_epoch])
        return torch.tensor(self.losses[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Stopped(TrainerCallback):
    messages = ()

    def on_stop_training_error(self, trainer, **kwargs):
        self.messages = (*self.messages, str(trainer.stop_error))


def fit(callback, losses, **settings):
    stopped = Stopped()
    trainer = quiet_trainer(max_epochs=len(losses), callbacks=[callback, stopped], num_sanity_val_steps=0, **settings)
    loader = DataLoader(torch.ones(1, 1))
    trainer.fit(Module(losses), loader, loader)
    return trainer.current_epoch, stopped.messages


@pytest.mark.filterwarnings("ignore:validation batch")
@pytest.mark.parametrize(
    ("arguments", "losses", "epochs"),
    [
        ({}, [1.0, 0.995, 0.0], 2),  # 0.005 is less than the default threshold
        ({}, [1.0, 0.9, 0.8], 3),
        ({"early_stopping_patience": 2}, [1.0, 1.0, 0.9, 0.9, 0.9, 0.0], 5),
        ({"early_stopping_threshold": 0.5}, [1.0, 0.5, 0.0], 2),  # equal to the threshold is not above it
        ({"early_stopping_patience": 2}, [1.0, math.nan, 0.5, 0.0], 4),
        ({"watch_metric": "accuracy", "greater_is_better": True}, [3.0, 2.0, 2.5, 0.0], 3),
    ],
)
def test_when_it_stops(arguments, losses, epochs):
    callback = EarlyStoppingCallback(**arguments)
    reached, messages = fit(callback, losses)
    assert reached == epochs
    name, patience = callback.watch_metric, callback.early_stopping_patience
    message = f"Stopping training due to no improvement of {name} after {patience} epochs"
    assert messages == ((message,) if epochs < len(losses) else ())


def test_counter_and_best():
    callback = EarlyStoppingCallback(early_stopping_patience=5)
    assert callback.best_metric is None
    fit(callback, [1.0, 0.5, 0.6, 0.7])
    assert (callback.early_stopping_patience_counter, callback.best_metric) == (2, 0.5)
    again = EarlyStoppingCallback(early_stopping_patience=9)
    again.load_state_dict(callback.state_dict())
    assert (again.early_stopping_patience_counter, again.best_metric, again._judge.patience) == (2, 0.5, 9)


@pytest.mark.parametrize(("reset", "epochs"), [(True, 2), (False, 1)])
def test_reset_on_train(reset, epochs):
    callback = EarlyStoppingCallback(early_stopping_patience=2, reset_on_train=reset)
    fit(callback, [0.1, 0.2])
    assert fit(callback, [0.5, 0.6])[0] == epochs


def test_epochs_without_an_evaluation_do_not_count():
    assert fit(EarlyStoppingCallback(), [0.0, 1.0, 0.0, 0.5, 0.0, 0.7, 0.0, 0.0], check_val_every_n_epoch=2)[0] == 6
