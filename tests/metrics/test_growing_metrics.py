"""Metric objects that cannot be reset before they have begun, and get a part an epoch: `MetricTracker`'s kind."""

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule
from espnet3_lite.metrics import metric_objects


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.values = []

    def update(self, value):
        self.values.append(value)

    def compute(self):
        return sum(self.values) / len(self.values)

    def reset(self):
        self.values = []


class Tracker(torch.nn.ModuleList):
    def increment(self):
        self.append(Mean())

    def compute(self):
        return self[-1].compute()

    def reset(self):
        self[-1].reset()


class Tracked(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer, self.tracker = torch.nn.Linear(1, 1), Tracker()

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def on_validation_epoch_start(self):
        self.tracker.increment()

    def validation_step(self, batch, batch_idx):
        self.tracker[-1].update(batch.mean().item())

    def on_validation_epoch_end(self):
        self.log("mean", self.tracker.compute())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saves(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 0):
            trainer.save_checkpoint(self.path)


def test_it_is_tracked_over_validations_and_a_resumed_run_says_what_it_forgets(tmp_path):
    batches, path = [torch.ones(2, 1), 3 * torch.ones(2, 1)], tmp_path / "a.ckpt"
    module = Tracked()
    with pytest.warns(UserWarning, match=r"tracker \(Tracker\) cannot be copied and reset"):
        quiet_trainer(callbacks=[Saves(path)], max_epochs=2, num_sanity_val_steps=0).fit(module, batches, batches)
    assert [one.compute() for one in module.tracker] == [2.0, 2.0]
    resumed = Tracked()
    quiet_trainer(max_epochs=3, num_sanity_val_steps=0).fit(resumed, batches, batches, ckpt_path=path)
    assert [one.compute() for one in resumed.tracker] == [2.0, 2.0]
    with pytest.warns(UserWarning, match=r"Tracker had parts \['0'\] when it was saved, and forgets"):
        metric_objects.restore(Tracker(), {"0": {"values": [1.0]}}, torch.device("cpu"))
