"""Lightning's and ESPnet3's own names: each of them gives ours, by import and in a ``_target_``."""

import dataclasses
import importlib
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import tqdm

import espnet3_lite
from espnet3_lite import callbacks, compat, loggers
from espnet3_lite.compat.names import HOMES, LEFT_OUT, find
from espnet3_lite.config.targets import TargetError, find_target
from espnet3_lite.espnet import schedulers

#: Where people import the names from, and what they get.
TARGETS = {
    "lightning.pytorch.LightningModule": espnet3_lite.LiteModule,
    "lightning.pytorch.LightningDataModule": espnet3_lite.LiteDataModule,
    "lightning.pytorch.Trainer": espnet3_lite.Trainer,
    "lightning.pytorch.callbacks.ModelCheckpoint": callbacks.ModelCheckpoint,
    "lightning.pytorch.callbacks.EarlyStopping": callbacks.EarlyStopping,
    "pytorch_lightning.callbacks.LearningRateMonitor": callbacks.LearningRateMonitor,
    "pytorch_lightning.loggers.CSVLogger": loggers.CSVLogger,
    "lightning.pytorch.loggers.TensorBoardLogger": loggers.TensorBoardLogger,
    "lightning.pytorch.utilities.rank_zero_only": compat.rank_zero_only,
    "espnet3.components.modeling.lightning_module.ESPnetLightningModule": espnet3_lite.ESPnetModule,
    "espnet3.components.trainers.trainer.ESPnet3LightningTrainer": espnet3_lite.ESPnetTrainer,
    "espnet3.components.modeling.optimization_spec.OptimizationStep": espnet3_lite.OptimizationStep,
    "espnet3.components.callbacks.default_callbacks.get_default_callbacks": espnet3_lite.get_default_callbacks,
    "espnet3.components.callbacks.default_callbacks.AverageCheckpointsCallback": callbacks.AverageCheckpointsCallback,
    "espnet3.components.callbacks.default_callbacks.MetricsLogger": callbacks.MetricsLogger,
    "espnet3.components.schedulers.linear_warmup_decay.LinearWarmupDecayLR": schedulers.LinearWarmupDecayLR,
    "espnet3.components.data.data_organizer.DataOrganizer": compat.DataOrganizer,
    "espnet3.components.data.base_dataset.BaseDataset": compat.BaseDataset,
    "espnet2.train.collate_fn.CommonCollateFn": compat.CommonCollateFn,
    "espnet2.iterators.sequence_iter_factory.SequenceIterFactory": compat.SequenceIterFactory,
    "espnet2.samplers.folded_batch_sampler.FoldedBatchSampler": compat.FoldedBatchSampler,
    "espnet2.schedulers.warmup_lr.WarmupLR": schedulers.WarmupLR,
}


#: Names for annotations are made of torch's and Python's own types; a logger is one of Python's.
FOREIGN = {"KINDS", "_logger", *compat.utilities.types.__all__}


@pytest.mark.parametrize("name", sorted({*compat.__all__} - FOREIGN))
def test_every_name_imports(name):
    assert getattr(compat, name).__module__.startswith("espnet3_lite.")


@pytest.mark.parametrize("module", [name for name in HOMES if name])
def test_every_name_of_every_module_imports(module):
    served = importlib.import_module(f"espnet3_lite.compat.{module}")
    assert [name for name in served.__all__ if not hasattr(served, name)] == []
    assert set(served.__all__) == set(HOMES[module])


def test_one_import_serves():
    import espnet3_lite.compat as pl

    assert pl.__version__ == "2.6.6"
    assert pl.callbacks.EarlyStopping is callbacks.EarlyStopping
    assert pl.callbacks.progress.TQDMProgressBar is callbacks.TQDMProgressBar
    assert pl.pytorch.loggers.csv_logs.CSVLogger is loggers.CSVLogger
    assert pl.utilities.types.STEP_OUTPUT == torch.Tensor | Mapping[str, Any] | None
    assert pl.utilities.exceptions.MisconfigurationException is espnet3_lite.MisconfigurationException
    assert pl.trainer.states.RunningStage.VALIDATING == "validate"
    assert pl.utilities.rank_zero.rank_zero_only.rank == 0
    assert pl.utilities.rank_zero_only(lambda: 3)() == 3
    assert pl.utilities.seed.seed_everything is espnet3_lite.seed_everything


@pytest.mark.parametrize("name", [name for name in LEFT_OUT if name != "cli"])
def test_what_is_left_out_says_so_by_name(name):
    with pytest.raises(ImportError, match=f"`{name}` is left out: "):
        getattr(compat, name)
    assert name not in dir(compat)


def test_what_is_left_out_says_so_in_an_import_statement_and_in_a_configuration():
    with pytest.raises(ImportError, match="`LightningCLI` is left out: use `espnet3-lite train CONFIG`"):
        from espnet3_lite.compat import LightningCLI  # noqa: F401
    with pytest.raises(TargetError, match="`OnExceptionCheckpoint` is left out: use `ModelCheckpoint"):
        find_target("lightning.pytorch.callbacks.OnExceptionCheckpoint")


def test_gradient_norms():
    layer = torch.nn.Linear(2, 1)
    assert compat.grad_norm(layer, 2) == {}
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, -4.0]]), torch.tensor([12.0])
    assert compat.grad_norm(layer, 2) == {
        "grad_2.0_norm/weight": 5.0, "grad_2.0_norm/bias": 12.0, "grad_2.0_norm_total": 13.0,
    }  # fmt: skip
    assert compat.grad_norm(layer, "inf", ".")["grad_inf_norm_total"] == 12.0
    with pytest.raises(ValueError, match="must be a positive number"):
        compat.grad_norm(layer, 0)


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


def test_apply_to_collection_walks_through_everything():
    data = {"a": (1, True), "b": Pair([2, "x"], None), "c": 0.5}
    expected = {"a": (10, True), "b": Pair([20, "x"], None), "c": 0.5}
    assert compat.apply_to_collection(data, int, lambda value, by: value * by, by=10, wrong_dtype=bool) == expected
    assert compat.apply_to_collection([1, {"b": 2}], (int, dict), str) == ["1", "{'b': 2}"]


def test_a_batch_moves():
    moved = compat.move_data_to_device({"x": torch.ones(2), "name": "a", "y": [torch.ones(1)]}, "meta")
    assert moved["x"].device.type == moved["y"][0].device.type == "meta" and moved["name"] == "a"


def test_random_numbers_are_isolated():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with compat.isolate_rng():
        torch.rand(5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_names_in_a_configuration(name):
    assert find_target(name) is TARGETS[name]
    assert getattr(compat, name.rpartition(".")[2]) is TARGETS[name]


def test_names_for_recipes():
    from espnet3_lite.compat import AbsESPnetModel, AbsPreprocessor, BaseDataset, ESPnetLightningModule, Field

    assert ESPnetLightningModule is espnet3_lite.ESPnetModule
    assert issubclass(AbsESPnetModel, torch.nn.Module)
    assert Field("text", "text").label == "Text"
    assert {AbsPreprocessor.__name__, BaseDataset.__name__} == {"AbsPreprocessor", "BaseDataset"}


def test_all_callbacks_loggers_and_schedulers_are_there():
    assert {*callbacks.__all__, *loggers.__all__, *schedulers.__all__} <= set(compat.__all__) <= set(dir(compat))


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'LightningModul'"):
        _ = compat.LightningModul
    with pytest.raises(TargetError, match="has no 'ModelCheckpont'; .*did you mean 'ModelCheckpoint'"):
        find_target("lightning.pytorch.callbacks.ModelCheckpont")


def test_importing_it_is_light():
    code = "import espnet3_lite.compat, sys; print(sorted(m for m in sys.modules if m in %r))"
    heavy = ["espnet3_lite.trainer.trainer", "espnet3_lite.espnet.module", "tensorboard", "matplotlib"]
    output = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_small_names_that_packages_import():
    def found(module, name):
        return find(f"lightning.pytorch.{module}", name)

    is_overridden = found("utilities.model_helpers", "is_overridden")
    possible = found("utilities.warnings", "PossibleUserWarning")
    assert found("callbacks.prediction_writer", "WriteInterval")("batch").on_batch
    assert found("callbacks.progress.progress_bar", "get_standard_metrics")(None) == {}
    assert found("callbacks.progress.rich_progress", "RichProgressBarTheme")().metrics == "italic"
    assert issubclass(found("callbacks.progress.tqdm_progress", "Tqdm"), tqdm.tqdm)

    class Module(compat.LightningModule):
        def on_fit_start(self):
            pass

    assert is_overridden("on_fit_start", Module()) and not is_overridden("on_fit_end", Module())
    with pytest.raises(ValueError, match="no_such_hook"):
        is_overridden("no_such_hook", Module())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found("utilities", "disable_possible_user_warnings")()
        warnings.warn("possible", possible, stacklevel=1)
        warnings.warn("certain", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["certain"]
