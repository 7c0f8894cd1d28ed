"""What a run says by itself: the package's own lines where no logging is set up, and results that are epochs' means."""

import csv
import logging
import re
import warnings
from pathlib import Path

import pytest
import torch

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import EarlyStopping, LearningRateMonitor, MetricsLogger, ModelCheckpoint
from espnet3_lite.callbacks.showing.screen import end_report, log_lines_shown, report_left_to_the_caller, results
from espnet3_lite.loggers import CSVLogger


class Counting(LiteModule):
    """Logs 0, 1, 2, ... as a step's value, and twice that as one of steps and epochs."""

    def __init__(self, prefix="train_"):
        super().__init__()
        self.layer, self.prefix, self.count = torch.nn.Linear(1, 1), prefix, 0

    def training_step(self, batch, batch_idx):
        self.log(f"{self.prefix}count", float(self.count), prog_bar=True)
        self.log(f"{self.prefix}twice", 2.0 * self.count, on_step=True, on_epoch=True)
        self.count += 1
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 0.25)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


BATCHES = [torch.ones(2, 1)] * 4


def fit(tmp_path, module=None, **settings):
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        **settings,
    }
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", **settings)
    trainer.fit(module or Counting(), BATCHES, BATCHES[:1])
    return trainer


def set_up_no_logging(monkeypatch):
    """As in a script that sets up none: within the test, before which pytest adds its own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_a_script_without_logging_sees_why_and_how_its_run_ended(tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    best = ModelCheckpoint(monitor="valid/loss")
    fit(tmp_path, enable_checkpointing=True, callbacks=[best])
    said = capsys.readouterr().err
    assert said.count("`Trainer.fit` stopped: `max_epochs=2` reached.\n") == 1
    assert "trained 2 epochs, 8 steps in 0:00:0" in said
    assert "  train_count 5.5\n  train_twice 11\n  valid/loss 0.25\n" in said  # of batches 4 to 7, not the last one's 7
    assert f"  best valid/loss 0.25 in {best.best_model_path}\n" in said
    assert logging.getLogger("espnet3_lite").handlers == [] and logging.getLogger("espnet3_lite").level == 0


def test_the_time_is_this_call_s_where_others_trained_before(tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    trainer = fit(tmp_path, enable_checkpointing=True)
    assert re.search(r"^trained 2 epochs, 8 steps in 0:00:\d\d$", capsys.readouterr().err, re.MULTILINE)
    resumed = Trainer(max_epochs=3, default_root_dir=tmp_path, accelerator="cpu", logger=False)
    resumed.fit(Counting(), BATCHES, ckpt_path=trainer.checkpoint_callback.best_model_path)
    trainer.max_epochs = 3
    trainer.fit(trainer.model, BATCHES)
    lines = re.findall(r"^trained .*$", capsys.readouterr().err, re.MULTILINE)
    assert [re.sub(r"\d:\d\d:\d\d", "TIME", line) for line in lines] == [
        "trained 3 epochs, 12 steps in all; this call took TIME"
    ] * 2


@pytest.mark.parametrize("call", ["validate", "test"])
def test_an_evaluation_says_which_weights_it_takes_and_what_they_come_to(call, tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    monkeypatch.setattr(Counting, "test_step", Counting.validation_step, raising=False)
    trainer = fit(tmp_path, enable_checkpointing=True, callbacks=[ModelCheckpoint(monitor="valid/loss")])
    capsys.readouterr()
    getattr(trainer, call)(dataloaders=BATCHES, ckpt_path="best")
    said = capsys.readouterr()
    assert f"Loaded model weights from the checkpoint at {trainer.checkpoint_callback.best_model_path}\n" in said.err
    assert said.out.split()[-2:] == ["valid/loss", "0.25"]


def test_a_stop_is_told_though_the_callback_is_not_verbose(tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    fit(tmp_path, max_epochs=5, callbacks=[EarlyStopping("valid/loss", patience=2)])
    said = capsys.readouterr().err
    assert "valid/loss did not improve in the last 2 records. Best score: 0.250. Signaling Trainer to stop." in said
    assert "New best score" not in said and "trained 3 epochs, 12 steps" in said


def test_no_bar_no_report(tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    fit(tmp_path, enable_progress_bar=False)
    assert capsys.readouterr().err.splitlines() == ["`Trainer.fit` stopped: `max_epochs=2` reached."]


def test_who_sets_up_logging_decides(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    fit(tmp_path)
    assert "trained" not in capsys.readouterr().err
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("espnet3_lite"), "level", logging.ERROR)
    fit(tmp_path)
    assert "trained" not in capsys.readouterr().err


def test_logging_that_is_set_up_within_a_run_shows_each_line_once(capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    logger = logging.getLogger("espnet3_lite.trainer")
    with log_lines_shown():
        logger.info("one")
        logging.getLogger().handlers.append(logging.NullHandler())
        logger.info("two")
    assert capsys.readouterr().err == "one\n"


def test_a_caller_may_report_itself(tmp_path, capsys, monkeypatch):
    set_up_no_logging(monkeypatch)
    with report_left_to_the_caller():
        trainer = fit(tmp_path)
    assert "trained" not in capsys.readouterr().err
    assert end_report(trainer)[:2] == ["trained 2 epochs, 8 steps", "  train_count 5.5"]


def test_files_of_a_relative_folder_are_named_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best = ModelCheckpoint("exp/run", filename="best", monitor="valid/loss")
    trainer = fit(tmp_path, enable_checkpointing=True, callbacks=[best])
    assert Path(best.best_model_path).is_absolute()
    assert end_report(trainer, within=Path("exp/run"))[-1] == "  best valid/loss 0.25 in best.ckpt"
    assert end_report(trainer, within=Path("other"))[-1] == f"  best valid/loss 0.25 in {best.best_model_path}"


def test_callback_metrics_are_the_last_batch_as_ever(tmp_path):
    trainer = fit(tmp_path)
    assert float(trainer.callback_metrics["train_count"]) == 7.0
    assert results(trainer) == {"train_count": 5.5, "train_twice": 11.0, "valid/loss": 0.25}


def test_the_log_has_the_training_epochs_means_times_and_rates(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="log")
    callbacks = [MetricsLogger(log_every_n_steps=3), LearningRateMonitor()]
    trainer = fit(
        tmp_path, Counting("train/"), logger=logger, callbacks=callbacks, log_every_n_steps=1, enable_progress_bar=False
    )
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    epochs = [row for row in rows if row["train/count_epoch"]]
    assert [(row["epoch"], row["step"], float(row["train/count_epoch"])) for row in epochs] == [
        ("0", "3", 1.5), ("1", "7", 5.5),
    ]  # fmt: skip
    for row in epochs:
        assert float(row["optim0_lr0"]) == pytest.approx(0.1)
        assert all(float(row[name]) > 0 for name in ("train_time", "iter_time", "forward_time", "backward_time"))
        assert float(row["valid_time"]) > 0
    assert [float(row["train/twice_epoch"]) for row in rows if row["train/twice_epoch"]] == [3.0, 11.0]  # once each
    assert results(trainer) == {
        "lr-SGD": pytest.approx(0.1),
        "train/count": 5.5,
        "train/twice": 11.0,
        "valid/loss": 0.25,
    }


def test_a_second_fit_that_has_nothing_to_do_is_told(tmp_path):
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    trainer.fit(Counting(), BATCHES)
    with pytest.warns(UserWarning, match="Nothing was trained: this trainer had reached max_epochs=1 before. Raise"):
        trainer.fit(Counting(), BATCHES)
    trainer.max_epochs = 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Counting(), BATCHES)
    assert trainer.global_step == 8 and not [one for one in caught if "Nothing was trained" in str(one.message)]


def test_a_misspelt_validation_metric_is_told_behind_the_sanity_check_and_not_an_epoch_later(tmp_path):
    class Watched(Counting):
        def on_train_batch_start(self, batch, batch_idx):
            raise InterruptedError  # all that is told here comes before the first step

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "valid/lost"}}

    watched = [ModelCheckpoint(tmp_path, monitor="valid/los"), EarlyStopping("train_count")]
    settings = {"callbacks": [*watched, EarlyStopping("valid/loss")], "enable_checkpointing": True}
    with warnings.catch_warnings(record=True) as told, pytest.raises(InterruptedError):
        warnings.simplefilter("always")
        fit(tmp_path, Watched(), **settings)
    messages = [str(one.message) for one in told if " follows " in str(one.message)]
    assert [message.partition(", which")[0] for message in messages] == [
        "ModelCheckpoint follows 'valid/los'",
        "ReduceLROnPlateau follows 'valid/lost'",
    ]
    assert "did not log: there are 'valid/loss'; did you mean 'valid/loss'?" in messages[0]
