"""Fifteen small programs as people write them for Lightning, each with what it noted.

``python lightning_programs.py`` in an environment with Lightning 2.6.6 writes `lightning_programs.json`. The test has
`python -m espnet3_lite.compat` change the imports of this file, and nothing else, and runs it here.
"""

import functools
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import grad_norm, rank_zero_only
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PROGRAMS = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


def rows(count=8, offset=0.0):
    x = torch.sin(torch.arange(count * 2, dtype=torch.float64).reshape(count, 2) + offset)
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(count=8, batch_size=2, offset=0.0):
    return DataLoader(rows(count, offset), batch_size=batch_size)


class Noting(pl.Callback):
    """The order of the hooks, with the counters."""

    def __init__(self):
        self.calls = []


def _noting(hook):
    def note(self, trainer, pl_module, *args, **kwargs):
        place = [getattr(value, "value", value) for value in [*args, *kwargs.values()] if isinstance(value, (int, str))]
        self.calls.append([hook, trainer.global_step, trainer.current_epoch, *place])

    return note


for _hook in [
    "setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start", "on_train_epoch_start",
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_validation_start", "on_validation_batch_end",
    "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
    "on_test_batch_end", "on_test_epoch_end", "on_predict_batch_end", "teardown",
]:  # fmt: skip
    setattr(Noting, _hook, _noting(_hook))


class Rows(Logger):
    def __init__(self):
        super().__init__()
        self.rows = []

    name = "rows"
    version = 0

    @property
    @rank_zero_experiment
    def experiment(self):
        return self.rows

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self.experiment.append([step, {name: float(value) for name, value in metrics.items()}])

    @rank_zero_only
    def log_hyperparams(self, params, *args, **kwargs):
        self.experiment.append(["hyperparams", sorted(params)])


class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx) -> STEP_OUTPUT:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def trainer(folder, *callbacks, **settings):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "logger": Rows(),
                "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
                "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}  # fmt: skip
    return pl.Trainer(callbacks=[Noting(), *callbacks], **{**defaults, **settings})


@program
def recognizer(folder):
    class Recognizer(Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch[0]))
            return {"loss": loss, "extra": 1}

    run = trainer(folder)
    run.fit(Recognizer(), loader(), loader(4, offset=1.0))
    return run


@program
def adversarial_by_hand(folder):
    class Adversarial(Base):
        def __init__(self):
            super().__init__()
            self.judge = nn.Linear(1, 1)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            x, y = batch
            first, second = self.optimizers()
            self.toggle_optimizer(first)
            made = self(x)
            g_loss = F.mse_loss(made, y) + self.judge(made).mean()
            first.zero_grad()
            self.manual_backward(g_loss)
            self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            first.step()
            self.untoggle_optimizer(first)
            d_loss = self.judge(y).mean() - self.judge(self(x).detach()).mean()
            second.zero_grad()
            self.manual_backward(d_loss)
            second.step()
            assert isinstance(first._optimizer, torch.optim.Adam)
            self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

        def configure_optimizers(self):
            judging = torch.optim.SGD(self.judge.parameters(), lr=0.1)
            return [torch.optim.Adam(self.net.parameters(), lr=0.01), judging], []

    run = trainer(folder)
    run.fit(Adversarial(), loader())
    return run


@program
def warm_up_by_step(folder):
    class WarmUp(Base):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    run = trainer(folder, LearningRateMonitor(logging_interval="step"))
    run.fit(WarmUp(), loader())
    return run


@program
def plateau(folder):
    class Plateau(Base):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=2.0)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    run = trainer(folder, LearningRateMonitor(), max_epochs=4)
    run.fit(Plateau(), loader(), loader(4))
    return run


@program
def stopping_and_best(folder):
    class Worse(Base):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", [2.0, 1.0, 3.0, 4.0, 5.0, 6.0][self.current_epoch])

    best = ModelCheckpoint(folder, monitor="val_loss", filename="{epoch}-{val_loss:.1f}", save_last=True)
    run = trainer(folder, EarlyStopping("val_loss", patience=2), best, max_epochs=6)
    run.fit(Worse(), loader(), loader(2))
    return run, [Path(best.best_model_path).name, float(best.best_model_score), Path(best.last_model_path).name,
                 sorted(path.name for path in Path(folder).glob("*.ckpt"))]  # fmt: skip


@program
def accumulated_and_clipped(folder):
    run = trainer(folder, accumulate_grad_batches=3, gradient_clip_val=0.1, val_check_interval=0.5)
    run.fit(Base(), loader(), loader(4))
    return run


@program
def data_module(folder):
    class Data(pl.LightningDataModule):
        def __init__(self, batch_size=4, offset=0.5):
            super().__init__()
            self.save_hyperparameters()

        def setup(self, stage):
            self.stages = [*getattr(self, "stages", []), str(getattr(stage, "value", stage))]

        def train_dataloader(self):
            return loader(8, self.hparams.batch_size, self.hparams.offset)

        def val_dataloader(self):
            return loader(4, self.hparams.batch_size)

        test_dataloader = val_dataloader

    class Tested(Base):
        def test_step(self, batch, batch_idx):
            self.log("test_loss", F.mse_loss(self(batch[0]), batch[1]))

    run, data, module = trainer(folder), Data(), Tested()
    run.fit(module, datamodule=data)
    return run, [data.stages, run.test(module, datamodule=data, verbose=False), data.stages]


@program
def of_datasets(folder):
    data = pl.LightningDataModule.from_datasets(val_dataset=rows(4), test_dataset=[rows(2), rows(4)], batch_size=2)

    class Two(Base):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("test_loss", F.mse_loss(self(batch[0]), batch[1]))

    run, module = trainer(folder), Two()
    return run, [run.validate(module, datamodule=data, verbose=False), run.test(module, datamodule=data, verbose=False)]


@program
def hyperparameters(folder):
    class Sized(Base):
        def __init__(self, width, make, activation=nn.ReLU):
            super().__init__()
            self.save_hyperparameters(ignore=["activation", "make"])
            self.net = nn.Sequential(nn.Linear(2, width), activation(), nn.Linear(width, 1))
            self.make = make

        def configure_optimizers(self):
            return self.make(self.parameters())

    run = trainer(folder)
    make = functools.partial(torch.optim.SGD, lr=0.1)
    run.fit(Sized(5, make), loader())
    path = Path(folder) / "a.ckpt"
    run.save_checkpoint(path)
    again = Sized.load_from_checkpoint(path, make=make)
    return run, [dict(again.hparams), again.net[0].weight.tolist()]


@program
def outputs_of_an_epoch(folder):
    class Gathering(Base):
        def on_validation_epoch_start(self):
            self.seen = []

        def validation_step(self, batch, batch_idx):
            self.seen.append(self(batch[0]))
            return {"made": self.seen[-1]}

        def on_validation_epoch_end(self):
            self.log("val_mean", torch.cat(self.seen).mean())
            self.log("sanity", float(self.trainer.sanity_checking), reduce_fx="max")

    run = trainer(folder, num_sanity_val_steps=1)
    run.fit(Gathering(), loader(), loader(4))
    return run


@program
def predictions(folder):
    class Predicting(Base):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return self(batch[0]) + dataloader_idx

    run = trainer(folder)
    made = run.predict(Predicting(), [loader(4), loader(2)])
    return run, [[tensor.tolist() for tensor in part] for part in made]


@program
def own_optimizer_step(folder):
    class Warming(Base):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * min(1.0, (self.trainer.global_step + 1) / 4)
            optimizer.step(closure=optimizer_closure)

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    run = trainer(folder)
    run.fit(Warming(), loader())
    return run, run.optimizers[0].param_groups[0]["initial_lr"]


@program
def gradient_norms(folder):
    class Normed(Base):
        def on_before_optimizer_step(self, optimizer):
            self.log_dict(grad_norm(self.net, norm_type=2))

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="value")

    run = trainer(folder)
    run.fit(Normed(), loader(4))
    return run


@program
def a_callback_with_state(folder):
    class Counting(pl.callbacks.Callback):
        count = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.count += 1
            pl_module.log("count", float(self.count))
            loop = trainer.fit_loop.epoch_loop
            assert loop.batch_idx == batch_idx and trainer.state.stage == RunningStage.TRAINING
            assert "16" not in trainer.precision and trainer.precision == "32-true"

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    first = trainer(folder, Counting(), max_epochs=1)
    first.fit(Base(), loader(4))
    first.save_checkpoint(Path(folder) / "a.ckpt")
    counting = Counting()
    run = trainer(folder, counting, max_epochs=3)
    run.fit(Base(), loader(4), ckpt_path=str(Path(folder) / "a.ckpt"))
    return run, counting.count


@program
def averaged(folder):
    scheduling = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    average = pl.callbacks.EMAWeightAveraging(decay=0.5)
    run = trainer(folder, scheduling, average, max_epochs=3, check_val_every_n_epoch=2)
    run.fit(Base(), loader(), loader(4))
    return run


def noted(program, folder):
    """Run one program in float64, and give what it noted."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = program(folder)
    run, more = result if isinstance(result, tuple) else (result, None)
    state = run.lightning_module.state_dict()
    return {
        "calls": next(callback for callback in run.callbacks if isinstance(callback, Noting)).calls,
        "rows": run.logger.rows,
        "metrics": {key: float(value) for key, value in sorted(run.callback_metrics.items())},
        "weights": {key: value.double().sum().item() for key, value in state.items()},
        "steps": [run.global_step, run.current_epoch],
        "more": more,
    }


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {}
    for chosen in sys.argv[1:] or PROGRAMS:
        with tempfile.TemporaryDirectory() as place:
            found[chosen] = noted(PROGRAMS[chosen], place)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
    print(len(found), "programs")
