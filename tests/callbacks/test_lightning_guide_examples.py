"""The eight callbacks of the Lightning guide, pasted with the import alone changed.

(The guide's page lost its indentation; its ``do_something`` is the reader's own.)
"""

import math

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule


class Module(LiteModule):
    """Loss: the mean square of what the head makes of the backbone's output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(2, 1)

    def forward(self, batch):
        return self.head(self.backbone(batch))

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch).square().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(count=4):
    return DataLoader(torch.arange(2.0 * count).reshape(count, 2) / 10)


def fit(callback, epochs=1, batches=4, **settings):
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[callback], num_sanity_val_steps=0, **settings)
    module = Module()
    trainer.fit(module, data(batches), data(2))
    return trainer, module


# ---- metrics logger -------------------------------------------------------------------------------------------------


class MetricsLogger(Callback):
    def __init__(self):
        self.metrics = []

    def on_validation_end(self, trainer, pl_module):
        # Access logged metrics
        metrics = trainer.callback_metrics
        self.metrics.append(dict(metrics))
        print(f"Validation metrics: {metrics}")


def test_metrics_logger(capsys):
    callback = MetricsLogger()
    trainer, module = fit(callback, epochs=2)
    with torch.no_grad():
        expected = torch.stack([module(batch).square().mean() for batch in data(2)]).mean()
    assert len(callback.metrics) == 2 and set(callback.metrics[1]) == {"val_loss"}
    assert callback.metrics[1]["val_loss"].item() == pytest.approx(expected.item())
    assert callback.metrics[0]["val_loss"] != callback.metrics[1]["val_loss"]  # each validation's own
    assert capsys.readouterr().out.count("Validation metrics: {'val_loss': tensor(") == 2


# ---- gradient monitor -----------------------------------------------------------------------------------------------


class GradientMonitor(Callback):
    def on_after_backward(self, trainer, pl_module):
        # Log gradient norms
        for name, param in pl_module.named_parameters():
            if param.grad is not None:
                grad_norm = param.grad.norm().item()
                pl_module.log(f"grad_norm/{name}", grad_norm)


def test_gradient_monitor():
    trainer, module = fit(GradientMonitor(), limit_val_batches=0)
    names = {f"grad_norm/{name}" for name, _ in module.named_parameters()}
    assert set(trainer.callback_metrics) == names
    gradient = module.head.weight.grad.norm().item()  # the last batch's are there still
    assert trainer.callback_metrics["grad_norm/head.weight"].item() == pytest.approx(gradient)


# ---- custom checkpoint ----------------------------------------------------------------------------------------------


class CustomCheckpoint(Callback):
    def __init__(self, save_dir):
        self.save_dir = save_dir

    def on_train_epoch_end(self, trainer, pl_module):
        epoch = trainer.current_epoch
        if epoch % 5 == 0:  # Save every 5 epochs
            filepath = f"{self.save_dir}/custom-{epoch}.ckpt"
            trainer.save_checkpoint(filepath)
            print(f"Saved checkpoint: {filepath}")


def test_custom_checkpoint(tmp_path, capsys):
    fit(CustomCheckpoint(tmp_path), epochs=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["custom-0.ckpt", "custom-5.ckpt"]
    checkpoint = torch.load(tmp_path / "custom-5.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (5, 24)
    assert capsys.readouterr().out.endswith(f"Saved checkpoint: {tmp_path}/custom-5.ckpt\n")
    # It is a whole state: a run goes on from it.
    trainer = quiet_trainer(max_epochs=7)
    trainer.fit(Module(), data(), ckpt_path=tmp_path / "custom-5.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (7, 28)


# ---- freezing -------------------------------------------------------------------------------------------------------


class FreezeUnfreeze(Callback):
    def __init__(self, freeze_until_epoch=10):
        self.freeze_until_epoch = freeze_until_epoch

    def on_train_epoch_start(self, trainer, pl_module):
        epoch = trainer.current_epoch
        if epoch < self.freeze_until_epoch:
            # Freeze backbone
            for param in pl_module.backbone.parameters():
                param.requires_grad = False
        else:
            # Unfreeze backbone
            for param in pl_module.backbone.parameters():
                param.requires_grad = True


def test_freeze_unfreeze():
    fresh = Module()
    _, frozen = fit(FreezeUnfreeze(freeze_until_epoch=2), epochs=2)
    assert torch.equal(frozen.backbone.weight, fresh.backbone.weight)
    assert not torch.equal(frozen.head.weight, fresh.head.weight)
    _, thawed = fit(FreezeUnfreeze(freeze_until_epoch=2), epochs=3)
    assert not torch.equal(thawed.backbone.weight, fresh.backbone.weight)


# ---- learning rate range test ---------------------------------------------------------------------------------------


class LRFinder(Callback):
    def __init__(self, min_lr=1e-5, max_lr=1e-1, num_steps=100):
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_steps = num_steps
        self.lrs = []
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx >= self.num_steps:
            trainer.should_stop = True
            return

        # Exponential LR schedule
        lr = self.min_lr * (self.max_lr / self.min_lr) ** (batch_idx / self.num_steps)
        optimizer = trainer.optimizers[0]
        for param_group in optimizer.param_groups:
            param_group["lr"] = lr

        self.lrs.append(lr)
        self.losses.append(outputs["loss"].item())

    def on_train_end(self, trainer, pl_module):
        # Plot LR vs Loss
        import matplotlib.pyplot as plt

        plt.plot(self.lrs, self.losses)
        plt.xscale("log")
        plt.xlabel("Learning Rate")
        plt.ylabel("Loss")
        plt.savefig("lr_finder.png")


def test_lr_finder(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    callback = LRFinder(num_steps=10)
    trainer, _ = fit(callback, epochs=3, batches=20)
    assert trainer.global_step == 11  # the batch that asked to stop was the last
    assert callback.lrs == pytest.approx([10 ** (-5 + 0.4 * step) for step in range(10)])
    assert len(callback.losses) == 10 and all(math.isfinite(loss) for loss in callback.losses)
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")


# ---- predictions ----------------------------------------------------------------------------------------------------


class PredictionSaver(Callback):
    def __init__(self, save_path):
        self.save_path = save_path
        self.predictions = []

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.predictions.append(outputs)

    def on_predict_end(self, trainer, pl_module):
        # Save all predictions
        torch.save(self.predictions, self.save_path)
        print(f"Predictions saved to {self.save_path}")


def test_prediction_saver(tmp_path, capsys):
    path = tmp_path / "predictions.pt"
    trainer = quiet_trainer(callbacks=[PredictionSaver(path)], max_epochs=1)
    module = Module()
    returned = trainer.predict(module, data(3))
    saved = torch.load(path, weights_only=True)
    with torch.no_grad():
        expected = [module(batch) for batch in data(3)]
    assert all(map(torch.equal, saved, expected)) and all(map(torch.equal, saved, returned)) and len(saved) == 3
    assert capsys.readouterr().out == f"Predictions saved to {path}\n"


# ---- activation after an epoch --------------------------------------------------------------------------------------


class ConditionalCallback(Callback):
    def __init__(self, activate_after_epoch=10):
        self.activate_after_epoch = activate_after_epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch >= self.activate_after_epoch:
            # Only active after specified epoch
            self.do_something(trainer, pl_module)


def test_conditional_callback():
    class Noting(ConditionalCallback):
        def __init__(self, activate_after_epoch):
            super().__init__(activate_after_epoch)
            self.epochs = []

        def do_something(self, trainer, pl_module):
            self.epochs.append(trainer.current_epoch)

    callback = Noting(activate_after_epoch=2)
    fit(callback, epochs=4)
    assert callback.epochs == [2, 3]


# ---- several stages -------------------------------------------------------------------------------------------------


class MultiStageTraining(Callback):
    def __init__(self, stage_epochs=[10, 20, 30]):  # noqa: B006 (the guide's)
        self.stage_epochs = stage_epochs
        self.current_stage = 0

    def on_train_epoch_start(self, trainer, pl_module):
        epoch = trainer.current_epoch
        if epoch in self.stage_epochs:
            self.current_stage += 1
            print(f"Entering stage {self.current_stage}")

            # Adjust learning rate for new stage
            for optimizer in trainer.optimizers:
                for param_group in optimizer.param_groups:
                    param_group["lr"] *= 0.1


def test_multi_stage_training(capsys):
    callback = MultiStageTraining([1, 3])
    trainer, _ = fit(callback, epochs=4)
    assert (callback.current_stage, capsys.readouterr().out) == (2, "Entering stage 1\nEntering stage 2\n")
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
