"""The ranking of checkpoints by score, on its own. That it is Lightning's is shown in `test_model_checkpoint.py`."""

import pytest
import torch
import yaml
from line_model import Line
from quiet import QUIET
from torch.utils.data import DataLoader

from espnet3_lite import Trainer
from espnet3_lite.callbacks import ModelCheckpoint


def ranked(folder, scores, **arguments):
    """A callback that has saved files `a`, `b`, ... with these scores."""
    callback = ModelCheckpoint(folder, monitor="valid/loss", **arguments)
    for name, score in zip("abcdef", scores, strict=False):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.ckpt").touch()
        callback._rank(str(folder / f"{name}.ckpt"), torch.tensor(score))
    return callback


@pytest.mark.parametrize(
    ("mode", "save_top_k", "scores", "current", "expected"),
    [
        ("min", 2, [3.0], 9.0, True),
        ("min", 2, [3.0, 1.0], 2.0, True),
        ("min", 2, [3.0, 1.0], 3.0, False),
        ("min", 2, [3.0, 1.0], float("nan"), False),
        ("max", 2, [3.0, 1.0], 2.0, True),
        ("max", 2, [3.0, 1.0], 1.0, False),
        ("min", -1, [3.0, 1.0], 9.0, True),
        ("min", 0, [], 1.0, False),
        ("min", 1, [], None, False),
    ],
)
def test_who_is_among_the_best(mode, save_top_k, scores, current, expected, tmp_path):
    callback = ranked(tmp_path, scores, mode=mode, save_top_k=save_top_k)
    assert callback.check_monitor_top_k(None, None if current is None else torch.tensor(current)) is expected


def test_best_and_worst(tmp_path):
    callback = ranked(tmp_path, [3.0, 1.0, 3.0], save_top_k=3)
    assert (callback.best_model_path, float(callback.best_model_score)) == (str(tmp_path / "b.ckpt"), 1.0)
    assert (callback.kth_best_model_path, float(callback.kth_value)) == (str(tmp_path / "a.ckpt"), 3.0)  # the first
    assert float(callback.current_score) == 3.0


def test_best_k_models_as_yaml(tmp_path):
    callback = ranked(tmp_path, [0.5, 0.25], save_top_k=2)
    callback.to_yaml()
    callback.to_yaml(tmp_path / "elsewhere.yaml")
    for name in ("best_k_models.yaml", "elsewhere.yaml"):
        read = yaml.safe_load((tmp_path / name).read_text())
        assert read == {str(tmp_path / "a.ckpt"): 0.5, str(tmp_path / "b.ckpt"): 0.25}


def test_state_goes_there_and_back(tmp_path):
    first, second = ranked(tmp_path, [3.0, 1.0], save_top_k=2), ModelCheckpoint(tmp_path, monitor="valid/loss")
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.state_dict() == state
    first._rank("later.ckpt", torch.tensor(0.0))
    assert "later.ckpt" not in state["best_k_models"]


def test_another_folder_keeps_only_the_best_path(tmp_path):
    first = ranked(tmp_path / "one", [3.0, 1.0], save_top_k=2)
    second = ModelCheckpoint(tmp_path / "two", monitor="valid/loss", save_top_k=2)
    with pytest.warns(UserWarning, match="The dirpath has changed from .*one' to .*two', therefore"):
        second.load_state_dict(first.state_dict())
    assert second.best_model_path == first.best_model_path
    assert (second.best_k_models, second.best_model_score, second.kth_best_model_path) == ({}, None, "")


def test_files_that_are_gone_are_left_out_and_named(tmp_path):
    first, second = ranked(tmp_path, [3.0, 1.0], save_top_k=2), ModelCheckpoint(tmp_path, monitor="valid/loss")
    (tmp_path / "b.ckpt").unlink()
    with pytest.warns(UserWarning, match=rf"left out of the best files: {tmp_path}/b\.ckpt"):
        second.load_state_dict(first.state_dict())
    assert (second.best_model_path, float(second.best_model_score)) == (str(tmp_path / "a.ckpt"), 3.0)
    assert list(second.best_k_models) == [str(tmp_path / "a.ckpt")]
    (tmp_path / "a.ckpt").unlink()
    with pytest.warns(UserWarning, match="left out of the best files"):
        second.load_state_dict(first.state_dict())
    assert (second.best_k_models, second.best_model_path, second.best_model_score) == ({}, "", None)
    assert (second.kth_best_model_path, float(second.kth_value)) == ("", float("inf"))


class LogsNaN(Line):
    def validation_step(self, batch, batch_idx):
        self.log("score", float("nan") if self.current_epoch == 0 else 1.0)


def test_a_name_tells_that_a_metric_was_nan(tmp_path):
    """It is ranked as the worst, an infinite value, which nobody logged."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}-{score}", monitor="score", save_top_k=2)
    trainer = Trainer(callbacks=callback, max_epochs=2, **{**QUIET, "enable_checkpointing": True})
    trainer.fit(LogsNaN(), DataLoader(torch.ones(1, 1)), DataLoader(torch.ones(1, 1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0-score=nan.ckpt", "epoch=1-score=1.0.ckpt"]
    assert float(callback.kth_value) == float("inf")
