"""Which metrics are logged when; where they are printed."""

import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import LogMetricsCallback


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return batch.mean() * self.weight

    def validation_step(self, batch, batch_idx):
        self.log("quality", 0.5)
        return batch.mean() * 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(callback):
    trainer = quiet_trainer(max_epochs=2, callbacks=callback)
    loader = DataLoader(torch.ones(4, 1))
    trainer.fit(Module(), loader, loader)
    return trainer


def test_a_platform_gets_training_and_other_metrics_apart():
    class Platform(LogMetricsCallback):
        def __init__(self):
            self.logged = []

        def log_metrics(self, trainer, metrics):
            self.logged.append(metrics)

    platform = Platform()
    fit(platform)
    assert platform.logged == [{"eval_loss_epoch": 2.0, "quality": 0.5}, {"train_loss_epoch": 1.0}] * 2


def test_by_default_each_machine_s_first_process_prints(capsys, monkeypatch):
    trainer = fit(LogMetricsCallback())
    assert capsys.readouterr().out == "eval_loss_epoch: 2.0\nquality: 0.5\ntrain_loss_epoch: 1.0\n" * 2
    monkeypatch.setenv("LOCAL_RANK", "1")
    LogMetricsCallback().log_metrics(trainer, {"quality": 1.0})
    assert capsys.readouterr().out == ""
