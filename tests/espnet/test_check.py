"""`check` and `find-lr`: what a configuration would break or surprise with, before hours are spent on it."""

import logging
import sys

import pytest
from toy_lab import make_recipe

from espnet3_lite.cli.commands import main

BROKEN = """
import time

import torch
from espnet3_lite import LiteModule
from toy import Dataset as Sound, Model


class Dataset(Sound):
    def __init__(self, size=26, slow=0.0, missing=False):
        super().__init__(size)
        self.slow, self.missing = slow, missing

    def __getitem__(self, index):
        time.sleep(self.slow)
        if self.missing and index == len(self) - 1:
            open("wav/last.wav")
        return super().__getitem__(index)


class Unused(Model):
    def __init__(self):
        super().__init__()
        self.never = torch.nn.Linear(2, 3)


class Waits(Model):
    def __init__(self):
        super().__init__()
        self.register_buffer("statistics", torch.tensor(float("nan")))


class Unvalidated(LiteModule):
    def __init__(self):
        super().__init__()
        self.model = Model()

    def training_step(self, batch, batch_idx):
        return self.model(**batch[1])[0]


class Forgets(Unvalidated):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    folder = make_recipe(tmp_path / "recipe")
    (folder / "broken.py").write_text(BROKEN)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("toy", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield folder
    for name in ("toy", "broken"):
        sys.modules.pop(name, None)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def check(capsys, *overrides, code=0):
    """The findings by kind."""
    capsys.readouterr()
    try:
        main(["check", "train.yaml", *overrides])
        status = 0
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr().out
    assert status == code, printed
    found = {"ok": [], "note": [], "problem": [], "text": printed}
    for line in printed.splitlines():
        kind, _, text = line.partition(" ")
        if kind in ("ok", "note", "problem"):
            found[kind].append(text.strip())
    return found


def test_a_sound_configuration_is_rehearsed_and_leaves_nothing(recipe, capsys):
    before = sorted(recipe.rglob("*"))
    found = check(capsys)
    assert found["problem"] == []
    assert "dataset.train: 26 samples; 20 of them were loaded" in found["ok"]
    assert "dataset.valid: 10 samples; 10 of them were loaded" in found["ok"]
    assert "trained 1 step(s) on 2 batches, validated 1 batch" in found["ok"]
    assert "each of 6 parameters got a gradient" in found["ok"]
    assert "saved a checkpoint, and a second run went on from it" in found["ok"]
    after = [path for path in sorted(recipe.rglob("*")) if "__pycache__" not in path.parts and path.name != "seen.txt"]
    assert after == [path for path in before if "__pycache__" not in path.parts]


def test_a_missing_file_is_named(recipe, capsys):
    found = check(capsys, "dataset.train=[{data_src: broken, data_src_args: {missing: true}}]", code=1)
    assert found["problem"] == [
        "dataset.train[25]: FileNotFoundError: [Errno 2] No such file or directory: 'wav/last.wav'"
    ]


def test_a_parameter_without_gradient_is_named(recipe, capsys):
    (note,) = [one for one in check(capsys, "model._target_=broken.Unused")["note"] if "gradient" in one]
    assert note.startswith("2 of 8 parameters got no gradient in two batches: ")
    assert "never.weight" in note and "never.bias" in note


def test_a_training_step_that_forgets_to_return_its_loss_is_a_problem(recipe, capsys):
    scheduler = ["~scheduler", "~scheduler_interval", "~scheduler_monitor"]
    found = check(capsys, "model._target_=broken.Forgets", *scheduler, code=1)
    assert found["problem"] == [
        "Forgets.training_step returned None for both batches: nothing is trained; end it with `return loss`"
    ]
    assert "trained" not in "".join(found["ok"]) and found["note"] == []


def test_a_model_without_validation_step_is_not_said_to_be_validated(recipe, capsys):
    scheduler = ["~scheduler", "~scheduler_interval", "~scheduler_monitor"]
    found = check(capsys, "model._target_=broken.Unvalidated", *scheduler, code=1)
    assert "trained 1 step(s) on 2 batches" in found["ok"]
    assert (
        "nothing is validated, because the model has no `validation_step`: no best checkpoint is kept, and none is "
        "averaged" in found["note"]
    )


def test_weights_that_are_lost_are_the_only_problem(recipe, capsys):
    scheduler = ["~scheduler", "~scheduler_interval", "~scheduler_monitor"]
    (problem,) = check(capsys, "optimizer.lr=.inf", *scheduler, code=1)["problem"]
    assert problem.startswith("after 1 step(s) ") and problem.endswith("is the learning rate too large?")


def test_a_buffer_that_is_not_a_number_is_none(recipe, capsys):
    assert check(capsys, "model._target_=broken.Waits")["problem"] == []


def test_a_metric_that_nobody_logs_is_a_problem(recipe, capsys):
    found = check(capsys, "best_model_criterion=[[valid/acc, 2, max]]", code=1)
    assert "valid/acc" in found["problem"][0] and "valid/loss" in found["problem"][0]


def test_a_selector_that_selects_nothing_is_a_problem(recipe, capsys):
    overrides = [
        "~optimizer", "~scheduler", "~scheduler_interval", "~scheduler_monitor",
        "trainer.gradient_clip_val=null", "trainer.accumulate_grad_batches=1",
        "+optimizers={a: {optimizer: {_target_: torch.optim.SGD, lr: 0.1}, params: body}, "
        "b: {optimizer: {_target_: torch.optim.SGD, lr: 0.1}, params: haed}}",
    ]  # fmt: skip
    printed = check(capsys, *overrides, code=1)["text"]
    assert "problem  ConfigError" in printed and "optimizers.b.params" in printed and "'haed'" in printed


@pytest.mark.slow
def test_a_loader_that_is_slower_than_the_model_is_noted(recipe, capsys):
    found = check(capsys, "dataset.train=[{data_src: broken, data_src_args: {slow: 0.1}}]")
    (note,) = [one for one in found["note"] if "waits" in one]
    assert note.endswith("training waits for data; raise dataloader.train.num_workers (now 0)")


def test_mistakes_in_the_configuration_come_first(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "train.yaml", "+optimzer.lr=1"])
    assert ended.value.code == 2 and "optimzer" in capsys.readouterr().err


def test_find_lr_suggests_a_rate_and_draws_it(recipe, capsys):
    pytest.importorskip("matplotlib")
    main(["find-lr", "train.yaml", "~scheduler", "~scheduler_interval", "~scheduler_monitor", "--steps", "40",
          "trainer.accumulate_grad_batches=1"])  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    rate = float(printed[-1].removeprefix("suggested learning rate: ").partition(";")[0])
    assert 1e-8 < rate <= 1 and printed[-1].endswith(f"train with optimizer.lr={rate:.3g}")
    picture = recipe / "exp" / "images" / "find_lr.png"
    assert picture.read_bytes()[:4] == b"\x89PNG" and printed[-2] == "exp/images/find_lr.png"
    assert [path.name for path in (recipe / "exp").iterdir()] == ["images"]


def test_find_lr_with_too_few_steps_says_so(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["find-lr", "train.yaml", "--steps", "3"])
    assert ended.value.code == 2 and "give more --steps" in capsys.readouterr().err


def test_a_configuration_without_loaders_is_told_in_its_own_words(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "train.yaml", "~dataloader"])
    assert ended.value.code == 2
    error = "dataloader: is missing, and ESPnetModule has no train_dataloader of its own"
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["+trainer.fast_dev_run=true"]])
def test_a_training_that_trained_nothing_does_not_succeed(recipe, capsys, more):
    with pytest.raises(SystemExit) as ended:
        main(["train", "train.yaml", "model._target_=broken.Forgets", "~scheduler", "~scheduler_interval",
              "~scheduler_monitor", "trainer.max_epochs=1", *more])  # fmt: skip
    assert ended.value.code == 2
    error = "nothing was trained: Forgets.training_step returned None for every batch; end it with `return loss`"
    assert error in capsys.readouterr().err
