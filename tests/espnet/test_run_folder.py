"""A run's folder: when the configuration is written, old runs that cannot go on, averages by the run's own lists."""

import os
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import ESPnetModule, ESPnetTrainer, Trainer
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.config import Config
from espnet3_lite.espnet.run_folder import RunFolder, average_files, average_run, best_lists, put_aside
from espnet3_lite.exceptions import CheckpointError, CheckpointNotFoundError, MisconfigurationException


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        loss = self.layer(x).square().mean()
        return loss, {"loss": loss.detach(), "acc": -loss.detach()}, torch.tensor(len(x))


BATCHES = DataLoader([(["a", "b"], {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})], batch_size=None)
CRITERION = [("valid/loss", 2, "min"), ("valid/acc", 1, "max")]


def train(exp_dir, epochs, config=None, **settings):
    """As the command does: with its callback, going on from the folder's own state."""
    torch.manual_seed(0)
    module = ESPnetModule(Model(), {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01}})
    settings = {"max_epochs": epochs, "enable_progress_bar": False, "accelerator": "cpu", **settings}
    trainer = ESPnetTrainer(module, exp_dir, settings, CRITERION)
    trainer.trainer.auto_resume = True
    trainer.trainer.callbacks = [RunFolder(exp_dir, Config.create(config or {})), *trainer.trainer.callbacks]
    trainer.fit(BATCHES, BATCHES)
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of three epochs, whose last two checkpoints are the best by loss."""
    exp_dir = tmp_path_factory.mktemp("finished") / "exp"
    train(exp_dir, 3, {"made": "these"})
    return exp_dir


@pytest.fixture
def old(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "exp")


# ---- the configuration ---------------------------------------------------------------------------------------------


def test_the_configuration_is_that_of_the_last_run_that_trained(old):
    train(old, 2, {"trained": "nothing"})
    assert (old / "config.yaml").read_text() == "made: these\n"
    train(old, 4, {"trained": "an epoch"})
    assert (old / "config.yaml").read_text() == "trained: an epoch\n"


def test_a_full_disk_leaves_the_old_configuration_whole(old, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    folder = RunFolder(old, Config.create({"new": 1}))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MisconfigurationException, match="exp_dir: .*exp' cannot be written: .*No space left"):
        folder.on_train_start(Trainer(logger=False), None)
    assert (old / "config.yaml").read_text() == "made: these\n" and not list(old.glob(".*"))


def test_what_no_file_can_hold_is_told_with_its_place_before_anything_runs(old):
    with pytest.raises(MisconfigurationException, match=r"scheduler\.lr_lambda: YAML cannot hold a function"):
        train(old, 4, {"scheduler": {"lr_lambda": lambda step: 1.0}})
    assert (old / "config.yaml").read_text() == "made: these\n"


# ---- old runs ------------------------------------------------------------------------------------------------------


def damage(exp_dir, *names):
    for name in names:
        os.truncate(exp_dir / name, 100)


def test_a_folder_whose_states_are_all_damaged_is_refused(old):
    damage(old, "last.ckpt", "step2.ckpt", "step3.ckpt")
    before = (old / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"holds an old run.*last\.ckpt, step2\.ckpt, step3\.ckpt.*--fresh"):
        train(old, 4, {"made": "others"})
    assert (old / "config.yaml").read_text() == before
    assert load_checkpoint(old / "epoch2_step3_valid.loss.ckpt")["epoch"] == 2, "it was not written over"


def test_a_link_that_leads_nowhere_is_named_with_its_target(old):
    for path in old.glob("*.ckpt"):
        path.unlink()
    (old / "last.ckpt").symlink_to("step3.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt \(a link to step3\.ckpt\)"):
        train(old, 4)


def test_best_checkpoints_without_a_state_are_refused_but_for_the_first_epochs(old):
    for path in [*old.glob("step*.ckpt"), old / "last.ckpt"]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"epoch1_step2_valid\.loss\.ckpt"):
        train(old, 4)
    for path in old.glob("epoch*.ckpt"):
        path.unlink()
    (old / "epoch0_step1_valid.loss.ckpt").touch()  # of a run that was killed before its first epoch's end
    assert train(old, 1).trainer.global_step == 1


def test_a_folder_without_checkpoints_is_a_fine_place_to_start(tmp_path):
    (tmp_path / "config.yaml").write_text("old: 1\n")
    (tmp_path / "train.log").write_text("old\n")
    assert train(tmp_path, 1).trainer.global_step == 1


def test_a_run_that_saves_nothing_minds_no_old_one(old):
    damage(old, "last.ckpt", "step2.ckpt", "step3.ckpt")
    assert train(old, 1, enable_checkpointing=False).trainer.global_step == 1


def test_the_working_folder_is_not_put_aside(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "train.yaml").touch()
    monkeypatch.chdir(tmp_path / "inside")
    for exp_dir in (".", "..", tmp_path):
        with pytest.raises(MisconfigurationException, match="is the working folder or one around it"):
            put_aside(type(tmp_path)(exp_dir))
    monkeypatch.chdir(tmp_path)
    assert put_aside(type(tmp_path)("inside")).name.startswith("inside.2")


# ---- averages ------------------------------------------------------------------------------------------------------


def weight(path):
    state = load_checkpoint(path)
    return state.get("state_dict", state)["layer.weight"].double()


def test_only_the_runs_own_best_are_averaged(old):
    """Beside them lie others' files; the folder was moved; and one list is kept by the greatest value."""
    expected = {path.name: weight(path) for path in old.glob("*.pth")}
    assert set(expected) == {"valid.loss.ave_2best.pth", "valid.acc.ave_1best.pth"}
    for path in old.glob("*.pth"):
        path.unlink()
    foreign = {"state_dict": {"layer.weight": torch.full((1, 2), 1e6), "layer.bias": torch.zeros(1)}}
    for monitor in ("valid.loss", "valid.acc", "valid.other"):
        checkpoint_io.save_checkpoint(foreign, old / f"epoch7_step99_{monitor}.ckpt")
    (old / "valid.loss.ave_9best.pth").touch()
    written = average_run(old)
    assert sorted(path.name for path in written) == sorted(expected) == sorted(p.name for p in old.glob("*.pth"))
    for path in written:
        assert torch.equal(weight(path), expected[path.name])


def test_without_a_state_all_that_bear_the_name_are_averaged(old):
    for path in [*old.glob("step*.ckpt"), old / "last.ckpt"]:
        path.unlink()
    shutil.copy(old / "epoch2_step3_valid.loss.ckpt", old / "epoch5_step6_valid.loss.ckpt")
    assert sorted(path.name for path in average_run(old)) == ["valid.acc.ave_1best.pth", "valid.loss.ave_3best.pth"]


def test_a_folder_without_best_checkpoints_has_no_average(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no best checkpoints"):
        average_run(tmp_path)


def test_files_that_were_named_must_be_there_and_of_one_model(old, tmp_path):
    one, other = old / "last.ckpt", tmp_path / "other.pth"
    with pytest.raises(CheckpointNotFoundError, match=r"gone\.ckpt: does not exist; nothing was averaged"):
        average_files([one, old / "gone.ckpt"], tmp_path / "mean.pth")
    torch.save({"layer.weight": torch.zeros(1, 2)}, other)
    with pytest.raises(CheckpointError, match=r"^.*other\.pth: its keys differ .*missing \['layer.bias'\]"):
        average_files([one, other], tmp_path / "mean.pth")
    torch.save({"layer.weight": torch.zeros(1, 3), "layer.bias": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match=r"other\.pth: 'layer.weight' has shape \(1, 3\)"):
        average_files([one, other], tmp_path / "mean.pth")
    assert not (tmp_path / "mean.pth").exists()


def test_a_folder_that_takes_no_file_is_named(old):
    with pytest.raises(CheckpointError, match="last.ckpt/inside: no average can be written there: "):
        average_files([old / "last.ckpt"], old / "last.ckpt" / "inside" / "mean.pth")


def test_lists_of_callbacks_with_other_keys_do_not_stand_in_the_way():
    kept = {"monitor": "valid/loss", "best_k_models": {"exp/a.ckpt": torch.tensor(1.0)}}
    states = {
        "ModelCheckpoint{'monitor': 'valid/loss', 'mode': 'min', 'train_time_interval': datetime.timedelta(1)}": kept,
        "Keyed": kept,
        "MetricsLogger": {"epoch": 1},
    }
    assert best_lists({"callbacks": states}) == [("valid/loss", "min", kept["best_k_models"])]
