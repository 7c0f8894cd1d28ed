"""Runs of this package with what vendors made: `python vendors_lab.py CASE FOLDER` prints what came of it as JSON.

Run in an environment that has Lightning, wandb, mlflow, optuna and torchmetrics; started by `test_vendors.py`.
"""

import json
import os
import struct
import sys

import torch

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.loggers import MLFlowLogger, WandbLogger


class Line(LiteModule):
    """Two steps an epoch; its losses and its validation are known numbers."""

    def __init__(self, width=1, slope=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 0.5 * (batch_idx + 1))
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.hparams.slope * (self.current_epoch + 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def fit(module=None, epochs=2, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
    trainer = Trainer(max_epochs=epochs, **{**quiet, "logger": False, "enable_checkpointing": False, **settings})
    trainer.fit(module or Line(), [torch.ones(1, 1)] * 2, [torch.ones(1, 1)])
    return trainer


def wandb_offline():
    import wandb
    from wandb.proto import wandb_internal_pb2

    logger = WandbLogger("first", project="digits", offline=True, save_dir="logs", prefix="a")
    fit(logger=logger)
    config, summary, folder = logger.experiment.config.as_dict(), dict(logger.experiment.summary), wandb.run.dir
    path = os.path.join(os.path.dirname(folder), f"run-{logger.version}.wandb")
    wandb.finish()
    wandb.teardown()  # its own process has written everything
    rows = []
    for data in _records(path):
        items = wandb_internal_pb2.Record.FromString(data).history.item
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        rows += [row] if row else []
    return {"config": config, "summary": {k: v for k, v in summary.items() if not k.startswith("_")}, "rows": rows}


def _records(path):
    """The records of a file in LevelDB's log format, after wandb's seven bytes."""
    with open(path, "rb") as file:
        data = file.read()
    place, record = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def mlflow_local():
    from mlflow.tracking import MlflowClient

    found = {}
    for name, arguments in {"given": {"tracking_uri": "sqlite:///runs.db"}, "own": {"save_dir": "own"}}.items():
        logger = MLFlowLogger("digits", run_name="first", tags={"who": "me"}, log_model=True, **arguments)
        fit(logger=logger, enable_checkpointing=True, callbacks=[ModelCheckpoint(dirpath=name, monitor="val")])
        client = MlflowClient(arguments.get("tracking_uri", f"sqlite:///{os.getcwd()}/own/mlflow.db"))
        run = client.get_run(logger.run_id)
        history = client.get_metric_history(logger.run_id, "train/loss")
        found[name] = {
            "status": run.info.status, "name": run.info.run_name, "params": run.data.params,
            "tag": run.data.tags["who"], "val": run.data.metrics["val"],
            "train/loss": [[point.step, point.value] for point in history],
            "files": [file.path for file in client.list_artifacts(logger.run_id, "model/checkpoints")],
        }  # fmt: skip
    found["folders"] = sorted(os.listdir())
    return found


def lightnings_loggers():
    import lightning.pytorch as pl
    import wandb
    from lightning.pytorch.demos.boring_classes import BoringModel
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.loggers import WandbLogger as Theirs

    csv, board = CSVLogger("csv"), TensorBoardLogger("board")
    theirs = Theirs(project="digits", offline=True, save_dir="logs")
    trainer = fit(logger=[csv, board, theirs], enable_checkpointing=True)
    summary = dict(theirs.experiment.summary)
    wandb.finish()
    with open("csv/lightning_logs/version_0/metrics.csv") as file:
        lines = file.read().splitlines()
    reference = pl.Trainer(
        max_epochs=2, logger=CSVLogger("elsewhere"), accelerator="cpu", enable_progress_bar=False, log_every_n_steps=1
    )
    reference.fit(BoringModel(), torch.utils.data.DataLoader(torch.ones(2, 32)))
    return {
        "csv": lines, "board": sorted(name.partition(".")[0] for name in os.listdir(board.log_dir)),
        "wandb": summary["train/loss"], "best": trainer.checkpoint_callback.best_model_path,
        "theirs": reference.checkpoint_callback.best_model_path.replace("elsewhere", "csv"),
    }  # fmt: skip


def optuna_prunes():
    import optuna
    from optuna_integration import PyTorchLightningPruningCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = []

    def objective(trial):
        slope = [0.0, 1.0, 1.0][trial.number]
        try:
            trainer = fit(Line(slope=slope), epochs=3, callbacks=[PyTorchLightningPruningCallback(trial, "val")])
        finally:
            epochs.append(trial.number)
        return trainer.callback_metrics["val"].item()

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0))
    study.optimize(objective, n_trials=3)
    return {
        "states": [trial.state.name for trial in study.trials],
        "values": [dict(trial.intermediate_values) for trial in study.trials],
    }


def lightnings_objects():
    import lightning.pytorch as pl

    class Theirs(pl.LightningModule):
        pass

    class Counting(pl.Callback):
        count = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.count += 1

    told = {}
    for name, call in {
        "module": lambda: fit(Theirs()),
        "callback": lambda: fit(callbacks=[pl.callbacks.EarlyStopping("val")]),
        "timer": lambda: fit(callbacks=[pl.callbacks.Timer()]),
        "data": lambda: Trainer(logger=False, max_epochs=1).fit(Line(), datamodule=pl.LightningDataModule()),
    }.items():
        try:
            call()
        except TypeError as error:
            told[name] = str(error)
    counting = Counting()
    fit(callbacks=[counting])
    return {"told": told, "counted": counting.count, "unknown": _unknown_hooks(pl)}


def _unknown_hooks(pl):
    """Hooks of Lightning's callbacks that ours has not."""
    from espnet3_lite.callbacks.base import HOOKS

    return [name for name in dir(pl.Callback) if name.startswith("on_") and name not in HOOKS]


def _both():
    """Lightning's names, and ours for them."""
    import lightning.pytorch as pl

    import espnet3_lite.compat

    return {"theirs": pl, "ours": espnet3_lite.compat}


def _classifier(base):
    """Three collections, as torchmetrics' own page writes them; one is logged by name, one as objects, one by hand."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

    class Classifier(base):
        def __init__(self, width=4, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Linear(width, 3)
            both = MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)])
            self.train_metrics, self.valid_metrics = both.clone(prefix="train_"), both.clone(prefix="val_")
            self.confusion = MulticlassConfusionMatrix(3)

        def training_step(self, batch, batch_idx):
            x, y = batch
            made = self.net(x)
            loss = torch.nn.functional.cross_entropy(made, y)
            self.log_dict(self.train_metrics(made, y))
            self.log_dict({"loss": loss}, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            made = self.net(x)
            self.valid_metrics.update(made, y)
            self.confusion.update(made, y)
            self.log_dict(self.valid_metrics, on_step=False, on_epoch=True)

        def on_validation_epoch_end(self):
            self.log("hits", self.confusion.compute().diagonal().sum().double())
            self.confusion.reset()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    return Classifier


def _classified(count=9):
    x = torch.sin(torch.arange(4.0 * count).reshape(count, 4))
    return torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))


def torchmetrics_collections():
    found = {}
    for name, pl in _both().items():
        torch.manual_seed(0)
        module = _classifier(pl.LightningModule)()
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=pl.loggers.CSVLogger(name), enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
        )  # fmt: skip
        make = torch.utils.data.DataLoader
        trainer.fit(module, make(_classified(), 2), make(_classified(5), 3))
        with open(f"{name}/lightning_logs/version_0/metrics.csv") as file:
            lines = file.read().splitlines()
        found[name] = {
            "metrics": {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}, "csv": lines,
            "weights": module.net.weight.tolist(),
        }  # fmt: skip
    return found


HYDRA = """
seed: 3
model: {_target_: __main__.HydraModel, width: 4, optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.2},
        scheduler: {_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1, gamma: 0.5}}
trainer: {_target_: "${package}.Trainer", max_epochs: 3, accelerator: cpu, devices: 1, enable_progress_bar: false,
          enable_model_summary: false, log_every_n_steps: 1, default_root_dir: "${folder}"}
callbacks:
  best: {_target_: "${package}.callbacks.ModelCheckpoint", monitor: val_acc, mode: max, dirpath: "${folder}/best",
         filename: "epoch_{epoch:03d}", auto_insert_metric_name: false, save_last: true}
  stop: {_target_: "${package}.callbacks.EarlyStopping", monitor: val_acc, mode: max, patience: 100}
  rate: {_target_: "${package}.callbacks.LearningRateMonitor", logging_interval: epoch}
logger: {csv: {_target_: "${package}.loggers.CSVLogger", save_dir: "${folder}", name: csv, prefix: ""}}
"""


def hydra_template():
    """As the well-known template of Hydra and Lightning builds a run, with Hydra itself."""
    import hydra
    from omegaconf import OmegaConf

    found = {}
    for name, pl in _both().items():

        class Model(pl.LightningModule):
            def __init__(self, width, optimizer, scheduler):
                super().__init__()
                self.save_hyperparameters(logger=False)
                self.net = torch.nn.Linear(width, 3)

            def training_step(self, batch, batch_idx):
                loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
                self.log("train_loss", loss)
                return loss

            def validation_step(self, batch, batch_idx):
                self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

            def test_step(self, batch, batch_idx):
                self.log("test_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

            def configure_optimizers(self):
                optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
                schedule = {"scheduler": self.hparams.scheduler(optimizer=optimizer), "monitor": "val_acc"}
                return {"optimizer": optimizer, "lr_scheduler": {**schedule, "interval": "epoch", "frequency": 1}}

        globals()["HydraModel"] = Model
        config = OmegaConf.create(HYDRA)
        config.package = "lightning.pytorch" if name == "theirs" else "espnet3_lite.compat"
        config.folder = f"{os.getcwd()}/{name}"
        pl.seed_everything(config.seed, workers=True)
        model = hydra.utils.instantiate(config.model)
        callbacks = [hydra.utils.instantiate(one) for one in config.callbacks.values()]
        loggers = [hydra.utils.instantiate(one) for one in config.logger.values()]
        trainer = hydra.utils.instantiate(config.trainer, callbacks=callbacks, logger=loggers)
        for logger in trainer.loggers:
            logger.log_hyperparams(OmegaConf.to_container(config.trainer, resolve=True))
        make = torch.utils.data.DataLoader
        trainer.fit(model, make(_classified(), 2), make(_classified(5), 3))
        best = trainer.checkpoint_callback.best_model_path
        # Lightning reads no file of its own that holds the configured functions as it reads others.
        unsafe = {"weights_only": False} if name == "theirs" else {}
        (tested,) = trainer.test(model, make(_classified(4)), ckpt_path=best, **unsafe)
        with open(f"{name}/csv/version_0/metrics.csv") as file:
            lines = file.read().splitlines()
        again = Model.load_from_checkpoint(f"{name}/best/last.ckpt", optimizer=None, scheduler=None, **unsafe)
        found[name] = {
            "files": sorted(os.listdir(f"{name}/best")), "tested": tested, "csv": lines, "width": again.hparams.width,
            "weights": again.net.weight.tolist(), "names": sorted(os.listdir(f"{name}/csv/version_0")),
        }  # fmt: skip
    return found


def grad_norms():
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import grad_norm

    from espnet3_lite import compat

    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    layer(torch.ones(2, 3)).square().sum().backward()
    pairs = [(grad_norm(layer, p), compat.grad_norm(layer, p)) for p in (1, 2, "inf")]
    names = [theirs.keys() == ours.keys() for theirs, ours in pairs]
    close = [all(abs(float(theirs[n]) - float(ours[n])) < 1e-5 for n in theirs) for theirs, ours in pairs]
    top = {name for module in (pl, pl.callbacks, pl.loggers, pl.strategies) for name in module.__all__}
    missing = sorted(name for name in top if not _is_known(name))
    return {"names": names, "close": close, "missing": missing}


def _is_known(name):
    """Here, or left out by name."""
    from espnet3_lite import compat

    try:
        getattr(compat, name)
    except ImportError as error:
        return f"`{name}` is left out" in str(error)
    except AttributeError:
        return False
    return True


if __name__ == "__main__":
    case, folder = sys.argv[1:]
    os.chdir(folder)
    print("RESULT " + json.dumps(globals()[case]()))
