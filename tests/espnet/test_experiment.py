"""An ESPnet3 recipe, moved in unchanged: `egs3_recipe` has ESPnet3's template and a toy recipe laid over it.

The recipe's files import from espnet2 and espnet3, neither of which is installed.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.cli import commands
from espnet3_lite.cli.arguments import read_config
from espnet3_lite.config import Config, load_config
from espnet3_lite.config.files import find_template
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.config.targets import find_target
from espnet3_lite.espnet import experiment
from espnet3_lite.espnet.data.preprocessor import AbsPreprocessor
from espnet3_lite.espnet.import_aliases import espnet_stand_ins
from espnet3_lite.espnet.schedulers import WarmupLR
from espnet3_lite.espnet.task_models import AbsESPnetModel, build_task_model, write_task_config
from espnet3_lite.exceptions import MisconfigurationException

RECIPE = Path(__file__).parents[1] / "egs3_recipe"


@contextlib.contextmanager
def imports_put_back():
    """A recipe's `src` and its folders on the path are a process's own; here several recipes share one."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.split(".")[0] in ("src", "egs3", "faked_task") or name.startswith("_recipe_dataset"):
                del sys.modules[name]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A copy of the recipe, which is the working folder."""
    shutil.copytree(RECIPE / "egs3", tmp_path / "egs3", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "egs3" / "toy" / "esp2_asr"
    monkeypatch.chdir(folder)
    with imports_put_back():
        yield folder


def command(*words):
    commands.main([*words, "--traceback", "--quiet"])


# ---- the template --------------------------------------------------------------------------------------------------


def test_the_template_trains_without_an_edit(recipe):
    """collect-stats, then train: WarmupLR, CommonCollateFn, the sequence iterator with shape files, TensorBoard."""
    command("collect-stats", "conf/training.yaml")
    lines = (recipe / "exp/stats/train/feats_shape").read_text().splitlines()
    assert len(lines) == 22
    command("train", "conf/training.yaml")
    exp = recipe / "exp" / "training"
    checkpoint = load_checkpoint(exp / "last.ckpt")
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 15)  # 22 utterances in batches of 4: ESPnet makes 5
    assert checkpoint["lr_schedulers"][0]["warmup_steps"] == 6
    rate = 0.002 * 6**0.5 * 16**-0.5  # of the coming update
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)
    assert sorted(checkpoint["state_dict"])[:2] == ["output.bias", "output.weight"]
    assert [path.name for path in exp.glob("*.pth")] == ["valid.loss.ave_3best.pth"]
    assert list((exp / "tensorboard" / "tb_logger" / "version_0").glob("events.out.tfevents*"))
    written = load_config(exp / "config.yaml")
    assert written.exp_tag == "training" and written.model["_target_"] == "src.model.Recognizer"
    assert not [name for name in sys.modules if name.partition(".")[0] in ("espnet2", "espnet3")]


def test_a_half_trained_run_goes_on(recipe):
    command("collect-stats", "conf/training.yaml")
    command("train", "conf/training.yaml")
    whole = load_checkpoint(recipe / "exp/training/last.ckpt")
    command("train", "conf/training.yaml", "exp_tag=cut", "trainer.max_epochs=1")
    command("train", "conf/training.yaml", "exp_tag=resumed", "+fit.ckpt_path=exp/cut/last.ckpt")
    resumed = load_checkpoint(recipe / "exp/resumed/last.ckpt")
    assert resumed["global_step"] == whole["global_step"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_test_sets_have_their_names(recipe, capsys):
    command("collect-stats", "conf/training.yaml")
    command("train", "conf/training.yaml", "trainer.max_epochs=1")
    capsys.readouterr()
    command("test", "conf/training.yaml")
    name, value = capsys.readouterr().out.split()[-2:]
    assert name == "held_out/loss" and 0 < float(value) < 100


@pytest.mark.slow
def test_two_ranks_of_the_command_share_the_work(recipe):
    command("collect-stats", "conf/training.yaml")
    words = ["-m", "espnet3_lite", "collect-stats", "conf/training.yaml", "exp_tag=two", "stats_dir=exp/two"]
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "collect_stats train (rank 0 of 2)" in done.stderr, done.stderr
    one, two = Path("exp/stats"), Path("exp/two")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files and files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for path in files:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path


@pytest.mark.slow
def test_two_workers_collect_what_one_does(recipe):
    """The recipe's modules, which import espnet's names, are imported anew in each worker."""
    command("collect-stats", "conf/training.yaml")
    command("collect-stats", "conf/training.yaml", "parallel.n_workers=2", "exp_tag=two", "stats_dir=exp/two")
    for name in ("feats_shape", "speech_shape", "text_shape"):
        for mode in ("train", "valid"):
            one, two = (recipe / "exp" / folder / mode / name for folder in ("stats", "two"))
            assert one.read_bytes() == two.read_bytes()
    one, two = (np.load(recipe / f"exp/{folder}/train/feats_stats.npz") for folder in ("stats", "two"))
    assert all((one[key] == two[key]).all() for key in ("count", "sum", "sum_square"))


@pytest.mark.slow
def test_a_loaders_spawned_worker_finds_the_recipes_modules(recipe):
    settings = [f"dataloader.{split}.iter_factory=null" for split in ("train", "valid")]
    settings += [f"+dataloader.{split}.batch_size=4" for split in ("train", "valid")]
    settings += ["+dataloader.train.num_workers=1", "+dataloader.train.multiprocessing_context=spawn"]
    command("train", "conf/training.yaml", "trainer.max_epochs=2", *settings)
    assert load_checkpoint(recipe / "exp/training/last.ckpt")["global_step"] == 12  # 22 utterances in batches of 4


def test_started_from_another_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("collect-stats", str(recipe / "conf/training.yaml"), f"recipe_dir={recipe}")
    command("train", str(recipe / "conf/training.yaml"), f"recipe_dir={recipe}", "trainer.max_epochs=1")
    assert (recipe / "exp/training/last.ckpt").exists()


def test_the_recipe_is_laid_over_the_template_once(recipe, tmp_path):
    template = tmp_path / "egs3/TEMPLATE/esp2_asr/conf/training.yaml"
    assert find_template("conf/training.yaml") == template
    parsed = commands._parser().parse_args(["train", "conf/training.yaml", "trainer.max_epochs=7"])
    config = read_config(parsed)
    assert (config.exp_tag, config.trainer.max_epochs, config.optimizer.lr) == ("training", 7, 0.002)
    parsed = commands._parser().parse_args(["train", str(template), "conf/training.yaml"])
    assert read_config(parsed).trainer.max_epochs == 3
    assert str(recipe) in sys.path and str(tmp_path) in sys.path


def test_a_missing_part_of_the_recipe_is_told(recipe, capsys):
    with pytest.raises(SystemExit, match="2"):
        commands.main(["train", "conf/training.yaml", "model._target_=src.model.Recogniser"])
    assert "'src.model' has no 'Recogniser'; did you mean 'Recognizer'?" in capsys.readouterr().err
    assert not (recipe / "exp").exists()


def test_what_a_model_raises_is_told_with_its_place_and_its_values(recipe, capsys):
    command("collect-stats", "conf/training.yaml")
    with pytest.raises(SystemExit, match="2"):
        commands.main(["train", "conf/training.yaml", "model.features=abc"])
    assert "model: src.model.Recognizer(features='abc', letters=4) raised TypeError" in capsys.readouterr().err


def test_an_interval_that_the_data_cannot_have_is_a_mistake_in_the_configuration(recipe, capsys):
    command("collect-stats", "conf/training.yaml")
    with pytest.raises(SystemExit, match="2"):
        commands.main(["train", "conf/training.yaml", "+trainer.val_check_interval=1000"])
    error = capsys.readouterr().err
    assert "`val_check_interval` (1000) must be less than or equal to the number of the training batches (5)" in error
    assert "Traceback" not in error


def test_keys_of_other_stages_are_left_alone(recipe):
    config = load_config(find_template("conf/training.yaml"), "conf/training.yaml")
    config["tokenizer"] = {"vocab_size": 30, "text_builder": {"func": "src.tokenizer.gather"}}
    config["publish"] = {"hf_repo": "somebody/something"}
    sys.path.append(str(recipe))
    with espnet_stand_ins():
        check_config(config)
    config["trainer"]["strategy"] = "deepspeed_stage_2"
    with (
        espnet_stand_ins(),
        pytest.raises(ConfigError, match="DeepSpeed is not supported: use fsdp with one optimizer, ddp with several"),
    ):
        check_config(config)


# ---- seed and init -------------------------------------------------------------------------------------------------


def test_seed_and_init_decide_the_weights(recipe):
    config = load_config(find_template("conf/training.yaml"), "conf/training.yaml")
    sys.path.append(str(recipe))
    first = experiment.build(config).model.state_dict()
    assert all(torch.equal(value, again) for value, again in zip(
        first.values(), experiment.build(config).model.state_dict().values(), strict=True))  # fmt: skip
    assert torch.equal(first["output.bias"], torch.zeros(5))
    assert float(first["output.weight"].abs().max()) <= (6 / (16 + 5)) ** 0.5  # Glorot's bound
    config["seed"] = 4
    assert not torch.equal(first["output.weight"], experiment.build(config).model.state_dict()["output.weight"])


# ---- task ----------------------------------------------------------------------------------------------------------


class FakeModel(AbsESPnetModel):
    """What the faked task builds."""

    def __init__(self, arguments):
        super().__init__()
        self.arguments = arguments
        self.layer = torch.nn.Linear(1, arguments.size)

    def forward(self, x, **batch):
        loss = self.layer(x).square().mean()
        return loss, {"loss": loss.detach()}, torch.tensor(len(x))

    def collect_feats(self, **batch):
        return {}


class FakeTask:
    """As ESPnet2's tasks: its defaults come from a command line's parser, which reads `sys.argv`."""

    @classmethod
    def get_default_config(cls):
        assert len(sys.argv) == 1, "the training's own arguments are not the task's"
        return {"size": 1, "depth": 2, "frontend_conf": None, "betas": (0.9, 0.99)}

    @classmethod
    def build_model(cls, arguments):
        return FakeModel(arguments)


@pytest.fixture
def faked_task(monkeypatch):
    module = types.ModuleType("faked_task")
    module.Task = FakeTask
    module.Tokens = type("Tokens", (AbsPreprocessor,), {})
    monkeypatch.setitem(sys.modules, "faked_task", module)
    monkeypatch.setattr(sys, "argv", ["espnet3-lite", "train", "conf/training.yaml"])


def test_a_task_without_espnet_says_so():
    message = "task: espnet3.systems.esp2_asr.task.ASRTask needs espnet, and cannot be imported here .*Install espnet"
    with pytest.raises(MisconfigurationException, match=message):
        build_task_model("espnet3.systems.esp2_asr.task.ASRTask", {"encoder": "transformer"})
    config = Config.create({"task": "espnet2.tasks.asr.ASRTask", "model": {"encoder": "transformer"}})
    with pytest.raises(MisconfigurationException, match="task: espnet2.tasks.asr.ASRTask needs espnet"):
        experiment.build_model(config)


def test_a_task_builds_the_model(faked_task):
    config = Config.create({"task": "faked_task.Task", "model": {"size": 3, "freeze_param": ["layer.bias"]}})
    model = experiment.build_model(config)
    assert vars(model.arguments) == {"size": 3, "depth": 2, "frontend_conf": None, "betas": (0.9, 0.99)}
    assert sys.argv == ["espnet3-lite", "train", "conf/training.yaml"]


def test_a_task_leaves_espnets_configuration(faked_task, tmp_path):
    """As ESPnet3 leaves it for decoding: defaults, the model's keys at the top, the preprocessor's too, no tuples."""
    config = Config.create(
        {
            "task": "faked_task.Task",
            "exp_dir": str(tmp_path / "exp"),
            "model": {"_target_": "x.y", "size": 3},
            "dataset": {"train": [], "preprocessor": {"_target_": "faked_task.Tokens", "token_type": "char"}},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1},
        }
    )
    write_task_config("faked_task.Task", config.to_container(), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        "size": 3, "depth": 2, "frontend_conf": {}, "betas": [0.9, 0.99], "token_type": "char",
        "task": "faked_task.Task", "exp_dir": str(tmp_path / "exp"), "dataset": {"train": []},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1},
    }  # fmt: skip


# ---- espnet's own classes ------------------------------------------------------------------------------------------


def test_espnets_own_classes_where_the_user_asks_for_them(monkeypatch):
    name = "espnet2.schedulers.warmup_lr.WarmupLR"
    assert find_target(name) is WarmupLR
    theirs = type("WarmupLR", (), {})
    for part in ("espnet2", "espnet2.schedulers", "espnet2.schedulers.warmup_lr"):
        module = types.ModuleType(part)
        module.WarmupLR = theirs
        monkeypatch.setitem(sys.modules, part, module)
    monkeypatch.setattr(sys.modules["espnet2"], "schedulers", sys.modules["espnet2.schedulers"], raising=False)
    monkeypatch.setattr(
        sys.modules["espnet2.schedulers"], "warmup_lr", sys.modules["espnet2.schedulers.warmup_lr"], raising=False
    )
    assert find_target(name) is WarmupLR
    monkeypatch.setenv("ESPNET3_LITE_USE_ESPNET", "1")
    assert find_target(name) is theirs


def test_the_recipes_data_are_what_the_shape_files_say(recipe):
    command("collect-stats", "conf/training.yaml")
    stats = np.load(recipe / "exp/stats/train/feats_stats.npz")
    lines = (recipe / "exp/stats/train/feats_shape").read_text().splitlines()
    frames = [int(line.split()[1].split(",")[0]) for line in lines]
    assert stats["count"] == sum(frames)
