"""Any object with `log_metrics` and `log_hyperparams` is a logger; some have names; they hear of saved checkpoints."""

import importlib

import pytest
import torch

from espnet3_lite import LiteModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

QUIET = {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1,
         "num_sanity_val_steps": 0}  # fmt: skip


class Mine:
    """The least that a logger must have."""

    def __init__(self):
        self.rows, self.params = [], []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *args):
        self.params.append(dict(params))


class Line(LiteModule):
    def __init__(self, width=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        self.log("loss", 0.5, prog_bar=True)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def fit(logger, tmp_path, **settings):
    trainer = Trainer(logger=logger, default_root_dir=tmp_path, **{**QUIET, **settings})
    trainer.fit(Line(), [torch.ones(1, 1)], [torch.ones(1, 1)])
    return trainer


def test_two_methods_make_a_logger(tmp_path):
    mine = Mine()
    callbacks = [LearningRateMonitor("step"), DeviceStatsMonitor(), TQDMProgressBar(), ModelCheckpoint(save_last=True)]
    trainer = fit(mine, tmp_path, callbacks=callbacks)
    assert trainer.logger is mine and trainer.log_dir == str(tmp_path)
    assert mine.params == [{"width": 1}]
    rows = [(step, row) for step, row in mine.rows if "loss" in row or "val" in row or "lr-SGD" in row]
    assert rows == [
        (0, {"lr-SGD": 0.25}), (0, {"loss": 0.5, "epoch": 0.0}), (0, {"val": 0.0, "epoch": 0.0}),
        (1, {"lr-SGD": 0.25}), (1, {"loss": 0.5, "epoch": 1.0}), (1, {"val": 1.0, "epoch": 1.0}),
    ]  # fmt: skip
    assert trainer.checkpoint_callback.last_model_path == str(tmp_path / "checkpoints" / "last.ckpt")
    trainer.fit(Line(), [torch.ones(1, 1)], ckpt_path="last")


def test_with_a_run_that_ends_badly(tmp_path):
    class Ending(Mine):
        def finalize(self, status):
            self.status = status

    class Bad(Line):
        def training_step(self, batch, batch_idx):
            raise KeyError("x")

    mine, ending = Mine(), Ending()
    trainer = Trainer(logger=[mine, ending], default_root_dir=tmp_path, enable_progress_bar=False, **QUIET)
    with pytest.raises(KeyError, match="x"):
        trainer.fit(Bad(), [torch.ones(1, 1)])
    assert ending.status == "failed"


@pytest.mark.parametrize("given", [3, object(), Mine, "tensorbord", [Mine(), "csw"]])
def test_what_is_no_logger_is_refused(given):
    with pytest.raises(MisconfigurationException, match="logger"):
        Trainer(logger=given, **QUIET)


def test_the_message_names_the_nearest():
    with pytest.raises(MisconfigurationException, match="did you mean 'tensorboard'"):
        Trainer(logger="tensorbord", **QUIET)
    with pytest.raises(MisconfigurationException, match=r"logger\[0\] must be a logger, an object with.*add the"):
        Trainer(logger=[Mine], **QUIET)


# ---- by name -------------------------------------------------------------------------------------------------------


def test_loggers_by_name(tmp_path):
    trainer = Trainer(logger=["csv", "tensorboard"], default_root_dir=tmp_path, **QUIET)
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger, TensorBoardLogger]
    assert {logger.save_dir for logger in trainer.loggers} == {str(tmp_path)}


@pytest.mark.parametrize(("name", "kind"), [("wandb", WandbLogger), ("mlflow", MLFlowLogger)])
def test_a_package_that_is_missing_is_named_with_its_extra(name, kind, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    with pytest.raises(ImportError, match=rf'{kind.__name__} needs {name}, .*pip install "espnet3_lite\[{name}\]"'):
        Trainer(logger=name, default_root_dir=tmp_path, **QUIET)


def settings(**trainer):
    return {"model": {"_target_": "torch.nn.Linear"}, "trainer": trainer}


@pytest.mark.parametrize("logger", ["csv", ["csv", "wandb"], {"_target_": "lightning.pytorch.loggers.WandbLogger"}])
def test_names_in_a_configuration(logger):
    with pytest.raises(ConfigError) as told:
        check_config(settings(logger=logger, nonsense=1))
    assert "logger" not in str(told.value) and "nonsense" in str(told.value)


def test_wrong_names_in_a_configuration():
    with pytest.raises(ConfigError, match="trainer.logger.*did you mean 'mlflow'"):
        check_config(settings(logger="mlflw"))
    with pytest.raises(ConfigError, match=r"trainer.logger\[0\].*did you mean 'csv'"):
        check_config(settings(logger=["csvv"]))


def test_a_configuration_builds_them(tmp_path):
    from espnet3_lite import ESPnetTrainer

    built = ESPnetTrainer(exp_dir=tmp_path, config={"max_epochs": 1, "logger": ["csv"]})
    assert [type(logger) for logger in built.trainer.loggers] == [CSVLogger]


# ---- saved checkpoints ---------------------------------------------------------------------------------------------


def test_loggers_hear_of_each_file_that_is_saved(tmp_path):
    class Hearing(Logger):
        name, version = "hearing", 0

        def __init__(self):
            self.heard = []

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params):
            pass

        def after_save_checkpoint(self, checkpoint_callback):
            best = checkpoint_callback.best_model_path
            self.heard.append((best.rpartition("/")[2], checkpoint_callback._last_checkpoint_saved == best))

    logger = Hearing()
    saving = ModelCheckpoint(dirpath=tmp_path, monitor="val", mode="max", save_top_k=2, filename="{epoch}")
    fit(logger, tmp_path, callbacks=[saving], enable_progress_bar=False)
    assert logger.heard == [("epoch=0.ckpt", True), ("epoch=1.ckpt", True)]


# ---- wandb, without the package ------------------------------------------------------------------------------------


class FakeRun:
    """The calls that reach a run."""

    id = "abc"

    def __init__(self):
        self.logged, self.config = [], self
        self.params = {}

    def log(self, values):
        self.logged.append(values)

    def update(self, values, allow_val_change):
        self.params.update(values)


def test_wandb_gets_values_with_their_step(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object() if package == "wandb" else find(package))
    run = FakeRun()
    logger = WandbLogger(project="digits", save_dir=tmp_path, experiment=run, prefix="a")
    trainer = fit(logger, tmp_path, enable_progress_bar=False)
    assert run.logged[0] == {"a-loss": 0.5, "a-epoch": 0.0, "trainer/global_step": 0}
    assert run.params == {"width": 1}
    assert (logger.name, logger.version, logger.save_dir) == ("digits", "abc", str(tmp_path))
    assert trainer.checkpoint_callback.best_model_path == f"{tmp_path}/digits/abc/checkpoints/epoch=1-step=2.ckpt"
    with pytest.raises(MisconfigurationException, match="cannot be sent from an offline run"):
        WandbLogger(offline=True, log_model="all")
    with pytest.raises(ValueError, match="2 items for 'x', but 1 values of 'caption'"):
        logger.log_image("x", [1, 2], caption=["a"])
