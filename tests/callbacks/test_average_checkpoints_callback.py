"""`AverageCheckpointsCallback`: what is averaged, when, and under which name."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import AverageCheckpointsCallback, EarlyStopping, ModelCheckpoint
from espnet3_lite.callbacks.average_checkpoints import average_best
from espnet3_lite.checkpoint import files as checkpoint_io


class Steps(LiteModule):
    """A weight that is 1 after the first step, 2 after the second, ...; `valid/loss` comes from a series."""

    def __init__(self, series=(4.0, 1.0, 3.0, 2.0)):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("odd", torch.tensor(False))
        self.series, self.validations = series, 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        self.odd.fill_(bool(self.count % 2))
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.series[self.validations % len(self.series)])

    def on_validation_epoch_end(self):
        self.validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def best_of(folder, **changes):
    arguments = {"monitor": "valid/loss", "save_top_k": 2, "filename": "step{step}", "auto_insert_metric_name": False}
    return ModelCheckpoint(folder, save_weights_only=True, **{**arguments, **changes})


def fit(folder, *callbacks, best=None, module=None, ckpt_path=None, **settings):
    """One step an epoch, four epochs; the average's callback stands first, as a careless user might put it."""
    best = best if best is not None else best_of(folder)
    defaults = {
        "max_epochs": 4, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = Trainer(
        callbacks=[AverageCheckpointsCallback(folder, [best]), *callbacks, best], **{**defaults, **settings}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module or Steps(), DataLoader(torch.ones(1, 1)), DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path)
    return trainer


def averages(folder):
    return sorted(path.name for path in Path(folder).glob("*.pth"))


def test_the_mean_of_the_best_that_are_there_in_the_end(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(tmp_path)  # the losses are 4, 1, 3, 2: best are steps 2 and 4
    assert averages(tmp_path) == ["valid.loss.ave_2best.pth"]
    averaged = torch.load(tmp_path / "valid.loss.ave_2best.pth", weights_only=True)
    assert averaged["weight"].tolist() == [3.0, 3.0]
    assert averaged["count"].dtype == torch.int64
    assert averaged["count"].item() == 6  # integers are summed
    assert averaged["odd"].item() is False  # booleans are the best one's: step 2
    Steps().load_state_dict(averaged)
    assert "The following parameters were only accumulated, not averaged: count" in caplog.text


def test_a_run_without_validation_says_that_it_has_no_average(tmp_path, caplog):
    fit(tmp_path, limit_val_batches=0)
    assert "Nothing was validated: no best checkpoint by 'valid/loss', and no average" in caplog.messages
    caplog.clear()
    fit(tmp_path)
    fit(tmp_path / "quick", limit_val_batches=0, fast_dev_run=True)
    assert "Nothing was validated" not in caplog.text


def test_the_best_comes_first(tmp_path):
    fit(tmp_path, best=best_of(tmp_path, mode="max", save_top_k=2))  # steps 1 (loss 4) and 3 (loss 3)
    averaged = torch.load(tmp_path / "valid.loss.ave_2best.pth", weights_only=True)
    assert averaged["weight"].tolist() == [2.0, 2.0]
    assert averaged["odd"].item() is True


def test_older_averages_of_the_same_metric_go(tmp_path):
    for name in ("valid.loss.ave_3best.pth", "valid.loss.ave_10best.pth", "loss.ave_3best.pth", "valid.loss.ave.pth",
                 "validXloss.ave_3best.pth", "valid.acc.ave_3best.pth"):  # fmt: skip
        (tmp_path / name).write_text("old")
    fit(tmp_path)
    assert averages(tmp_path) == [
        "loss.ave_3best.pth", "valid.acc.ave_3best.pth", "valid.loss.ave.pth", "valid.loss.ave_2best.pth",
        "validXloss.ave_3best.pth",
    ]  # fmt: skip


def test_a_file_that_was_deleted_meanwhile_is_left_out(tmp_path, caplog):
    class Delete(Callback):
        def on_train_end(self, trainer, pl_module):
            os.unlink(tmp_path / "step2.ckpt")

    fit(tmp_path, Delete())
    assert averages(tmp_path) == ["valid.loss.ave_1best.pth"]
    assert torch.load(tmp_path / "valid.loss.ave_1best.pth", weights_only=True)["weight"].tolist() == [4.0, 4.0]
    assert "step2.ckpt was deleted meanwhile and is left out" in caplog.text


def test_none_is_left(tmp_path, caplog):
    assert average_best("valid/loss", "min", {str(tmp_path / "gone.ckpt"): 1.0}, tmp_path) is None
    assert "No average by 'valid/loss': no checkpoint to average is left" in caplog.text
    assert averages(tmp_path) == []


def test_what_is_damaged_or_foreign_is_left_out_and_the_rest_averaged(tmp_path, caplog):
    for name, value in (("a", 1.0), ("b", 3.0), ("cut", 9.0)):
        checkpoint_io.save_checkpoint({"state_dict": {"weight": torch.full((2,), value)}}, tmp_path / f"{name}.ckpt")
    checkpoint_io.save_checkpoint({"state_dict": {"bias": torch.ones(2)}}, tmp_path / "foreign.ckpt")
    os.truncate(tmp_path / "cut.ckpt", 300)
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": [1]}, tmp_path / "list.ckpt")
    names = ("foreign", "text", "cut", "a", "folder", "b", "list", "gone")  # the foreign one is the best
    scores = {str(tmp_path / f"{name}.ckpt"): float(place) for place, name in enumerate(names)}
    output = average_best("valid/loss", "min", scores, tmp_path)
    assert output == tmp_path / "valid.loss.ave_2best.pth"
    assert torch.load(output, weights_only=True) == {"weight": pytest.approx(torch.full((2,), 2.0))}
    left_out = [message for message in caplog.messages if "eft out of the average" in message]
    assert len(left_out) == 6
    for name in ("foreign", "text", "cut", "folder", "list", "gone"):
        assert any(f"{name}.ckpt" in message for message in left_out), name


def test_a_run_with_a_damaged_best_file_ends_as_finished_with_a_fresh_average(tmp_path):
    class Damages(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                os.truncate(trainer.checkpoint_callback.best_model_path, 100)

    trainer = fit(tmp_path, Damages(), best=best_of(tmp_path, save_top_k=3), max_epochs=3)
    assert trainer.state.finished and trainer.global_step == 3
    assert averages(tmp_path) == ["valid.loss.ave_2best.pth"]


def test_a_run_that_ends_early_is_averaged(tmp_path):
    fit(tmp_path / "stopped", EarlyStopping("valid/loss", patience=1), module=Steps((4.0, 1.0, 3.0, 2.0)))
    averaged = torch.load(tmp_path / "stopped" / "valid.loss.ave_2best.pth", weights_only=True)
    assert averaged["weight"].tolist() == [2.5, 2.5]  # steps 2 and 3
    fit(tmp_path / "time", max_time="00:00:00:00", max_epochs=-1, min_epochs=1)
    assert averages(tmp_path / "time") == ["valid.loss.ave_1best.pth"]


class RaiseAtStep3(Callback):
    def __init__(self, exception):
        self.exception = exception

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            raise self.exception


def test_ctrl_c_is_an_end_and_a_crash_is_not(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path / "ctrl_c", RaiseAtStep3(KeyboardInterrupt()))
    assert averages(tmp_path / "ctrl_c") == ["valid.loss.ave_2best.pth"]
    with pytest.raises(ValueError, match="boom"):
        fit(tmp_path / "crash", RaiseAtStep3(ValueError("boom")))
    assert averages(tmp_path / "crash") == []


def test_a_run_killed_before_its_average_gets_it_when_it_is_resumed(tmp_path):
    def state():
        return ModelCheckpoint(tmp_path, filename="state", save_last=True)

    def best():  # after each validation, so that the state that is saved at the epoch's end knows of it
        return best_of(tmp_path, save_on_train_epoch_end=False)

    fit(tmp_path, state(), best=best())
    (tmp_path / "valid.loss.ave_2best.pth").unlink()
    trainer = fit(tmp_path, state(), best=best(), ckpt_path=tmp_path / "last.ckpt")  # nothing is left to train
    assert trainer.global_step == 4
    assert torch.load(tmp_path / "valid.loss.ave_2best.pth", weights_only=True)["weight"].tolist() == [3.0, 3.0]


def test_only_rank_zero_writes(tmp_path):
    fit(tmp_path / "one")
    callback = AverageCheckpointsCallback(tmp_path / "two", [best_of(tmp_path / "one")])
    callback.best_ckpt_callbacks[0].best_k_models = {str(tmp_path / "one" / "step2.ckpt"): torch.tensor(1.0)}

    class OtherRank(Trainer):
        is_global_zero = False

    callback.on_fit_end(OtherRank(max_epochs=1, logger=False, enable_progress_bar=False), None)
    assert not (tmp_path / "two").exists()
    callback.on_fit_end(Trainer(max_epochs=1, logger=False, enable_progress_bar=False), None)
    assert averages(tmp_path / "two") == ["valid.loss.ave_1best.pth"]
