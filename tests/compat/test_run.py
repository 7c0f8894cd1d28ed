"""Programs and packages that import Lightning run as they stand: `espnet3_lite.compat.run` and `install`."""

import abc
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from quiet import quiet_trainer

import espnet3_lite
from espnet3_lite import LiteModule, callbacks, compat
from espnet3_lite.compat import names
from espnet3_lite.exceptions import MisconfigurationException

PROGRAM = """
import sys
import lightning.pytorch as pl
import pytorch_lightning
from lightning.fabric.utilities.cloud_io import get_filesystem
from pytorch_lightning.callbacks.early_stopping import EarlyStopping
from lightning.pytorch.plugins.environments import SLURMEnvironment  # imported, and never used

class Own(SLURMEnvironment): pass

assert pytorch_lightning.LightningModule is pl.LightningModule and pl.callbacks.EarlyStopping is EarlyStopping
print(pl.__version__, EarlyStopping.__module__, __name__, sys.argv[1:])
"""


@pytest.fixture
def program(tmp_path):
    """A script beside an installed Lightning that must not be taken; a module of a package that is run with ``-m``."""
    for package in ("lightning", "pytorch_lightning"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the installed one')\n")
    (tmp_path / "theirs").mkdir()
    for path in ("train.py", "theirs/train.py", "theirs/__init__.py"):
        (tmp_path / path).write_text("" if path.endswith("__init__.py") else PROGRAM)
    return tmp_path


@pytest.mark.parametrize(
    "words", [["train.py"], pytest.param(["-m", "theirs.train"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_program_runs_as_it_stands(program, words):
    command = [sys.executable, "-m", "espnet3_lite.compat.run", *words, "--lr", "1"]
    done = subprocess.run(command, cwd=program, capture_output=True, text=True, check=False)
    expected = f"{compat.__version__} espnet3_lite.callbacks.early_stopping __main__ ['--lr', '1']"
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


@pytest.mark.parametrize(("words", "status"), [([], 2), (["-m"], 2), (["--help"], 0)])
def test_usage(words, status, capsys):
    from espnet3_lite.compat.run import main

    assert main(words) == status
    assert "usage: python -m espnet3_lite.compat.run" in capsys.readouterr().err


def test_installing_comes_too_late_after_lightnings_import(monkeypatch):
    there = types.ModuleType("lightning")
    there.__file__ = "/somewhere/lightning/__init__.py"
    monkeypatch.setitem(sys.modules, "lightning", there)
    with pytest.raises(RuntimeError, match="too late: .*lightning.* from /somewhere/lightning"):
        compat.install()


#: What public packages import of Lightning's, beside the most usual names.
IMPORTED = {
    "lightning.fabric.utilities.types": ["_PATH", "_MAP_LOCATION_TYPE"],
    "lightning.pytorch.utilities.parsing": ["get_init_args"],
    "lightning.pytorch.utilities.types": ["_EVALUATE_OUTPUT", "_PREDICT_OUTPUT"],
    "lightning.pytorch.utilities.rank_zero": ["rank_prefixed_message"],
    "lightning.pytorch.trainer.connectors.accelerator_connector": ["_AcceleratorConnector"],
    "lightning_fabric.utilities.types": ["_DEVICE"],
    "lightning.fabric.accelerators.cuda": ["num_cuda_devices"],  # of a part that is left out
    "lightning.pytorch.cli": ["LRSchedulerTypeTuple"],
    "lightning.pytorch.utilities.memory": ["is_oom_error"],
    "lightning.fabric.utilities.cloud_io": ["_load", "get_filesystem"],
    "lightning.pytorch.core.mixins": ["HyperparametersMixin"],
    "lightning.pytorch.trainer.connectors.logger_connector.result": ["_OUT_DICT"],
    "pytorch_lightning.tuner": ["Tuner"],
    "lightning.pytorch.tuner.lr_finder": ["_LRFinder"],
    "pytorch_lightning.utilities.warnings": ["PossibleUserWarning"],
    "pytorch_lightning.core.saving": ["get_filesystem"],
    "lightning.pytorch.utilities.imports": ["package_available"],
    "lightning.pytorch.loggers.utilities": ["_scan_checkpoints"],
    "lightning.pytorch.core.module": ["_jit_is_scripting"],
    "lightning.pytorch.callbacks.timer": ["Interval", "Timer"],
    "lightning.pytorch.callbacks.model_checkpoint": ["ModelCheckpoint", "_is_local_file_protocol"],
}


@pytest.mark.parametrize("module", IMPORTED)
def test_names_that_packages_import(module):
    assert names.home_of(module) is not None
    for name in IMPORTED[module]:
        assert not isinstance(names.find(module, name), names.LeftOut)


def test_what_is_left_out_may_be_imported_and_derived_from_and_raises_when_used():
    left_out = names.find("lightning_fabric.plugins.io.torch_io", "TorchCheckpointIO")
    derived = type("Own", (left_out,), {})
    assert not isinstance(3, derived)
    for use in (left_out, derived):
        with pytest.raises(MisconfigurationException, match="torch_io.TorchCheckpointIO`: plugins are Lightning's own"):
            use()
    with pytest.raises(AttributeError, match="plugins are Lightning's own.*'detect'"):
        left_out.detect()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("lightning.pytorch.loggers.comet", "CometLogger"),
        ("lightning.pytorch.strategies", "StrategyRegistry"),
        ("lightning.pytorch.trainer", "call"),
        ("lightning.pytorch.loops", "_TrainingEpochLoop"),
        ("lightning.pytorch.trainer.connectors.checkpoint_connector", "_CheckpointConnector"),
        ("lightning.pytorch.loops.optimization.automatic", "ClosureResult"),
        ("lightning.pytorch.utilities.signature_utils", "is_param_in_hook_signature"),
    ],
)
def test_what_is_left_out_may_be_imported(module, name):
    """anomalib imports two, NeMo the others, and they need none of them."""
    assert names.home_of(module) is not None
    assert isinstance(names.find(module, name), names.LeftOut)


def test_what_is_left_out_goes_with_an_abstract_class():
    class Own(names.find("lightning.fabric.plugins.io.checkpoint_io", "CheckpointIO"), abc.ABC):
        pass

    with pytest.raises(MisconfigurationException, match="plugins are Lightning's own"):
        Own()


def test_small_things_that_nemo_takes():
    assert compat._logger is logging.getLogger("espnet3_lite")
    assert compat.Interval.epoch == "epoch"
    with compat._jit_is_scripting():
        assert [compat.package_available(name) for name in ("json.decoder", "no_such_package", "no_such.one")] == [
            True, False, False,
        ]  # fmt: skip
    paths = ("exp/last.ckpt", "file:///exp/last.ckpt", "s3://bucket/last.ckpt")
    assert [compat._is_local_file_protocol(path) for path in paths] == [True, True, False]


def test_the_files_of_a_checkpoint_callback_that_are_new(tmp_path):
    paths = [str(tmp_path / f"{name}.ckpt") for name in ("a", "b", "gone")]
    for number, path in enumerate(paths[:2]):
        Path(path).write_text("")
        os.utime(path, (number, number))
    callback = compat.callbacks.ModelCheckpoint(monitor="loss")
    callback.best_k_models, callback.best_model_path, callback.best_model_score = {paths[0]: 1, paths[1]: 2}, "", None
    callback.last_model_path, callback.current_score = paths[1], 2
    assert compat._scan_checkpoints(callback, {}) == [(0.0, paths[0], 1, "best_k"), (1.0, paths[1], 2, "best_k")]
    assert compat._scan_checkpoints(callback, {paths[0]: 0.0}) == [(1.0, paths[1], 2, "best_k")]


def test_hyperparameters_that_are_set_anew_as_nemo_does():
    class Module(compat.LightningModule):
        def __init__(self, cfg):
            super().__init__()
            self.save_hyperparameters()

        @property
        def hparams(self):
            self._set_hparams({"cfg": {"width": 8}})
            return super().hparams

    assert Module({"width": 4}).hparams == {"cfg": {"width": 8}}


@pytest.mark.parametrize(("devices", "found"), [("auto", 1), (1, 1), ([0], [0])])
def test_what_auto_means_here(devices, found):
    """scvi-tools chooses its device by Lightning's private class."""
    connector = compat._AcceleratorConnector("auto", devices)
    assert connector._accelerator_flag == ("cuda" if torch.cuda.is_available() else "cpu")
    assert connector._devices_flag == found or torch.cuda.is_available()


def test_an_unknown_name_has_the_nearest():
    with pytest.raises(AttributeError, match="no stand-in for 'lightning.pytorch.Trainr'; did you mean 'Trainer'"):
        names.find("lightning.pytorch", "Trainr")


class Line(LiteModule):
    def __init__(self, width=1, net=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


DATA = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)


def test_a_package_takes_hyperparameters_back_out():
    """pytorch-forecasting: what no checkpoint can hold goes from both tables, and its key is the class's."""
    net = torch.nn.Linear(1, 1)
    model = Line(net=net)
    assert model.hparams_initial["net"] is net
    del model._hparams["net"]
    del model._hparams_initial["net"]
    assert dict(model.hparams_initial) == {"width": 1}
    assert (model.CHECKPOINT_HYPER_PARAMS_KEY, model.CHECKPOINT_HYPER_PARAMS_NAME) == (
        "hyper_parameters",
        "hparams_name",
    )


def test_a_method_of_a_hooks_old_name_that_the_program_calls_itself(monkeypatch):
    """pytorch-forecasting's models call their own `on_epoch_end`: a warning, and they train."""

    class Calls(Line):
        ends = 0

        def on_train_epoch_end(self):
            self.on_epoch_end([])

        def on_epoch_end(self, outputs):
            self.ends += 1

    model = Calls()
    with pytest.warns(UserWarning, match="`Calls.on_epoch_end` was a hook of Lightning 1's.* Unless your code does"):
        quiet_trainer(max_epochs=2).fit(model, DATA)
    assert model.ends == 2


@pytest.mark.parametrize("validation", [DATA, None])
def test_a_module_asks_whether_a_fit_will_validate(validation):
    """GluonTS's models choose their scheduler's metric by it."""
    found = []

    class Asks(Line):
        def configure_optimizers(self):
            found.append(self.trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())
            return super().configure_optimizers()

    quiet_trainer(max_epochs=1).fit(Asks(), DATA, validation)
    assert found == [validation is not None]


@pytest.mark.parametrize(
    ("interval", "batch", "epoch"), [("batch", True, False), ("epoch", False, True), ("batch_and_epoch", True, True)]
)
def test_a_prediction_writers_interval(interval, batch, epoch):
    """pytorch-forecasting's writers ask ``self.interval.on_epoch``."""
    found = callbacks.BasePredictionWriter(interval).interval
    assert (found, found.on_batch, found.on_epoch) == (interval, batch, epoch)


def test_arguments_of_an_init_from_its_frame():
    class Model:
        def __init__(self, width, *, depth=2, **more):
            self.found = compat.get_init_args(sys._getframe())

    def build(width):
        return compat.get_init_args(sys._getframe())

    assert Model(3, lr=1).found == {"width": 3, "depth": 2, "lr": 1}
    assert build(3) == {}


def test_the_version_is_lightnings():
    assert names.find("pytorch_lightning", "__version__") == compat.__version__ != espnet3_lite.__version__


class Counting(callbacks.Callback):
    starts = 0

    def on_fit_start(self, trainer, pl_module):
        self.starts += 1


def test_a_list_of_callbacks_that_is_changed_in_place_counts():
    """Packages append to ``trainer.callbacks`` and take out of it, which Lightning follows."""
    first, second, run = Counting(), Counting(), quiet_trainer(max_epochs=1)
    run.callbacks.append(first)
    run.fit(Line(), DATA, DATA)
    run.callbacks.remove(first)
    run.callbacks.append(second)
    run.fit(Line(), DATA, DATA)
    assert (first.starts, second.starts) == (1, 1)


def test_an_empty_list_of_callbacks_is_empty():
    first, run = Counting(), quiet_trainer(max_epochs=1)
    run.callbacks = [first]
    run.callbacks = []
    run.fit(Line(), DATA, DATA)
    assert (first.starts, run.callbacks) == (0, [])


def test_a_class_that_overrides_loading_from_a_checkpoint_and_calls_lightnings(tmp_path):
    """rl4co's REINFORCE imports the function behind it."""

    class Own(Line):
        @classmethod
        def load_from_checkpoint(cls, path, **kwargs):
            return names.find("lightning.pytorch.core.saving", "_load_from_checkpoint")(cls, path, None, None, False)

    run = quiet_trainer(max_epochs=1)
    run.fit(model := Own(width=2), DATA, DATA)
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Own.load_from_checkpoint(tmp_path / "a.ckpt")
    assert type(loaded) is Own and torch.equal(loaded.layer.weight, model.layer.weight)


class ScviCheckpoint(callbacks.ModelCheckpoint):
    """scvi-tools' `SaveCheckpoint`: a folder of its own takes each file's place."""

    def _folder_of(self, path):
        return path.removesuffix(".ckpt")

    def on_save_checkpoint(self, trainer, *args):
        candidates = self._monitor_candidates(trainer)
        Path(self._folder_of(self.format_checkpoint_name(candidates))).mkdir(parents=True)

    def _remove_checkpoint(self, trainer, filepath):
        super()._remove_checkpoint(trainer, filepath)
        Path(self._folder_of(filepath)).rmdir()

    def _update_best_and_save(self, current, trainer, monitor_candidates):
        super()._update_best_and_save(current, trainer, monitor_candidates)
        Path(self.best_model_path).unlink()
        self.best_model_path = self._folder_of(self.best_model_path)


def test_a_checkpoint_callback_that_keeps_something_else_in_place_of_a_file(tmp_path):
    """A later, worse state must not take the best one's place because its file is not there."""

    class Falls(Line):
        def validation_step(self, batch, batch_idx):
            self.log("val", [3.0, 1.0, 2.0, 5.0][self.current_epoch])

    best = ScviCheckpoint(tmp_path, "{epoch}-{val}", monitor="val")
    run = quiet_trainer(max_epochs=4, callbacks=[best], enable_checkpointing=True, num_sanity_val_steps=0)
    run.fit(Falls(), DATA, DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=1-val=1.0"]
    assert Path(best.best_model_path).name == "epoch=1-val=1.0"


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_what_a_package_may_ask_of_any_logger(logger, tmp_path):
    """rl4co calls `log_graph` of each of its loggers; Lightning's base class has it."""
    (made,) = quiet_trainer(logger=logger, default_root_dir=tmp_path).loggers
    assert made.log_graph(Line()) is None
    assert (made.group_separator, made.root_dir) == ("/", f"{tmp_path}/lightning_logs")


def test_what_a_logger_of_ones_own_inherits():
    class Own(compat.loggers.Logger):
        name, version = "own", 0

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params):
            pass

    assert (Own().log_graph(Line()), Own().group_separator, Own().root_dir) == (None, "/", None)


def test_a_logger_for_both_of_lightnings_bases(capsys):
    """As DVCLive's is built: what it does stands in a class for Fabric, which one for the trainer is derived from."""
    theirs, add_prefix, flat, plain = (
        names.find(f"lightning.fabric.{module}", name)
        for module, name in (
            ("loggers.logger", "Logger"), ("utilities.logger", "_add_prefix"), ("utilities.logger", "_flatten_dict"),
            ("utilities.logger", "_sanitize_params"),
        )
    )  # fmt: skip

    class ForFabric(theirs):
        name, version = "both", 0

        def __init__(self, word, **kwargs):
            super().__init__()
            self.word = word

        def log_metrics(self, metrics, step=None, sync=True):
            print(self.word, step, sync, dict(add_prefix(metrics, "p", "/")))

        def log_hyperparams(self, params):
            print(plain(flat(params)))

        def finalize(self, status):
            print(status)

    class Both(names.find("lightning.pytorch.loggers.logger", "Logger"), ForFabric):
        def __init__(self, word):
            super().__init__(word=word)

        def log_metrics(self, metrics, step=None, sync=False):
            super().log_metrics(metrics, step, sync)

        def finalize(self, status):
            super().finalize(status)

    logger = Both("logged")
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_hyperparams({"model": {"width": 8, "kind": str}})
    logger.finalize("success")
    lines = ["logged 1 False {'p/loss': 0.5}", "{'model/width': 8, 'model/kind': \"<class 'str'>\"}", "success"]
    assert capsys.readouterr().out.splitlines() == lines and logger.save_dir is None
