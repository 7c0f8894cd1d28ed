"""Lightning's and ESPnet3's own names: each of them gives ours, by import and in a ``_target_``."""

import subprocess
import sys

import pytest
import torch

import espnet3_lite
from espnet3_lite import callbacks, compat, loggers
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


@pytest.mark.parametrize("name", compat.__all__)
def test_every_name_imports(name):
    value = getattr(compat, name)
    assert name == "KINDS" or value.__module__.startswith("espnet3_lite.")


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
    with pytest.raises(TargetError, match="has no 'ModelCheckpont'; did you mean 'ModelCheckpoint'"):
        find_target("lightning.pytorch.callbacks.ModelCheckpont")


def test_importing_it_is_light():
    code = "import espnet3_lite.compat, sys; print(sorted(m for m in sys.modules if m in %r))"
    heavy = ["espnet3_lite.trainer.trainer", "espnet3_lite.espnet.module", "tensorboard", "matplotlib"]
    output = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
