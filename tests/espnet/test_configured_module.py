"""A `LiteModule` and plain torch data sets in YAML: what the configuration gives them, and what stays theirs."""

import copy
import sys
import textwrap

import pytest
import torch

from espnet3_lite.config import Config
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.espnet import experiment
from espnet3_lite.espnet.data.organizer import data_sets
from espnet3_lite.exceptions import MisconfigurationException

OWN = """
import torch
from espnet3_lite import LiteModule


class Numbers(torch.utils.data.Dataset):
    def __init__(self, size, named=False):
        self.size, self.named = size, named

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        x = torch.tensor([float(index)])
        return {"x": x} if self.named else (x, 2 * x)


class Line(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer, self.other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(x.flatten().tolist())
        loss = (self.layer(x) + self.other(x) - y).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("valid/loss", (self.layer(x) - y).square().mean())

    test_step = validation_step


class Alone(Line):
    def train_dataloader(self):
        return [(torch.ones(2, 1), torch.ones(2, 1))]

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Contract(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, x_lengths=None):
        loss = self.layer(x).square().mean()
        return loss, {"loss": loss.detach(), "largest": x.max()}, len(x)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_line.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_line", None)


def settings(tmp_path, **changes):
    return Config.create({
        "exp_dir": str(tmp_path / "exp"),
        "dataset": {
            "train": {"_target_": "own_line.Numbers", "size": 5},
            "valid": {"_target_": "own_line.Numbers", "size": 2},
            "test": {"far": {"_target_": "own_line.Numbers", "size": 3}},
        },
        "dataloader": {"train": {"batch_size": 2, "shuffle": False}, "valid": {"batch_size": 2}},
        "model": {"_target_": "own_line.Line"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0},
        **changes,
    })  # fmt: skip


def test_data_optimizer_and_schedule_are_the_configurations(tmp_path):
    config = settings(tmp_path, scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1})
    trainer = experiment.build(config)
    trainer.fit()
    assert type(trainer.model).__name__ == "Line"
    assert trainer.model.seen == [[0.0, 1.0], [2.0, 3.0], [4.0]]  # as torch's loader makes them
    (optimizer,) = trainer.trainer.optimizers
    assert len(optimizer.param_groups[0]["params"]) == 4 and optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert sorted(torch.load(tmp_path / "exp/last.ckpt", weights_only=True)["state_dict"]) == [
        "layer.bias", "layer.weight", "other.bias", "other.weight",
    ]  # fmt: skip
    (result,) = experiment.evaluate(config, None, test=True)
    x = torch.arange(3.0)[:, None]
    expected = (trainer.model.layer(x) - 2 * x).square().mean().item()
    assert result == {"far/loss": pytest.approx(expected)}


def test_what_is_left_out_is_the_modules_own(tmp_path):
    config = settings(tmp_path, model={"_target_": "own_line.Alone"}, dataset=None, dataloader=None, optimizer=None)
    trainer = experiment.build(config)
    trainer.fit()
    assert trainer.model.seen == [[1.0, 1.0]] and trainer.trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    with pytest.raises(ConfigError, match="optimizer: is missing"):
        check_config(settings(tmp_path, optimizer=None))  # Line makes none


def test_several_optimizers_are_named_and_a_copy_trains_its_own_weights(tmp_path):
    blocks = {
        name: {"params": name, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}} for name in ("layer", "other")
    }
    module = experiment.build(settings(tmp_path, optimizer=None, optimizers=blocks)).model
    copied = copy.deepcopy(module)
    for one in (module, copied):
        optimizers, _ = one.configure_optimizers()
        assert list(one.named_optimizers) == ["layer", "other"]
        assert optimizers[0].param_groups[0]["params"][0] is one.layer.weight


def test_freeze_param_freezes(tmp_path):
    trainer = experiment.build(settings(tmp_path, freeze_param=["other"]))
    assert [p.requires_grad for p in trainer.model.parameters()] == [True, True, False, False]


def test_a_plain_data_set_of_dicts_is_trained_in_espnets_contract(tmp_path):
    sets = {split: {"_target_": "own_line.Numbers", "size": 3, "named": True} for split in ("train", "valid")}
    trainer = experiment.build(settings(tmp_path, model={"_target_": "own_line.Contract"}, dataset=sets))
    trainer.fit()
    assert float(trainer.trainer.callback_metrics["valid/largest"]) == pytest.approx((1 * 2 + 2 * 1) / 3)


def test_what_is_no_data_set_is_refused(tmp_path):
    config = settings(tmp_path, dataset={"train": [{"data_src": "toy"}], "valid": None})
    with pytest.raises(MisconfigurationException, match=r"dataset\.train: .*'toy'.* is not a data set.*DataOrganizer"):
        experiment.build(config)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"trian": {"_target_": "builtins.range", "_args_": [3]}}, r"dataset\.trian: .*; did you mean 'train'\?"),
        (
            {"test2": {"_target_": "builtins.range", "_args_": [3]}},
            r"test2: .*`test: \{clean: \{_target_: ...\}, test2: ",
        ),
        ({"test": [{"_target_": "builtins.range", "_args_": [3]}]}, r"dataset\.test: .*several test sets as a mapping"),
    ],
)
def test_splits_that_there_are_not(part, message):
    with pytest.raises(MisconfigurationException, match=message):
        data_sets({"dataset": {"valid": {"_target_": "builtins.range", "_args_": [3]}, **part}})


def test_other_keys_beside_the_splits_are_the_users_own():
    own = {"folder": "corpus", "sizes": {"train": 3}, "train": {"_target_": "builtins.range", "_args_": [3]}}
    assert data_sets({"dataset": own}).train == range(3)
