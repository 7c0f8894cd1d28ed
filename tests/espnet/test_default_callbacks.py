"""`get_default_callbacks`: what they are, which files they leave; a stopped and resumed run is the same run."""

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from line_model import Line
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import Callback, LiteModule, Trainer, get_default_callbacks
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from espnet3_lite.callbacks.checkpoints import checkpoint_files
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers import CSVLogger

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "espnet3" / "g1_callbacks_two_criteria.json").read_text())


def test_the_callbacks_and_the_order_in_which_they_are_called(tmp_path):
    callbacks = get_default_callbacks(
        tmp_path, best_model_criterion=[("valid/loss", 3, "min"), ("valid/acc", 2, "max")]
    )
    trainer = Trainer(max_epochs=1, logger=False, callbacks=callbacks, enable_model_summary=False)
    names = [
        f"ModelCheckpoint[{callback.monitor}]" if isinstance(callback, ModelCheckpoint) else type(callback).__name__
        for callback in trainer.callbacks
    ]
    others = ("Recorder", "ModelSummary", "AverageCheckpointsCallback")
    recorded = [name for name in GOLDEN["final"]["callback_order"] if name not in others]
    assert names == [*recorded, "AverageCheckpointsCallback"]  # ESPnet3's average comes first, and lags behind


def test_the_arguments(tmp_path):
    callbacks = get_default_callbacks(expdir=tmp_path, log_interval=7)
    last, best, average, rate, metrics, bar = callbacks
    assert {last.dirpath, best.dirpath} == {str(tmp_path)}
    assert (average.output_dir, average.best_ckpt_callbacks) == (tmp_path, [best])
    assert (best.monitor, best.save_top_k, best.mode, best.save_weights_only) == ("valid/loss", 3, "min", True)
    assert (last.save_last, last.save_weights_only, last.keep_newest) == ("link", False, 2)
    assert (metrics.log_every_n_steps, bar.refresh_rate, rate.logging_interval) == (7, 7, None)
    assert get_default_callbacks()[0].dirpath == os.path.realpath("./exp")


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("valid/loss", "'valid/loss' is not a criterion"),
        (("valid/loss", 3), r"\('valid/loss', 3\) is not a criterion; write each as"),
        (("valid/loss", 3, "minimum"), "`mode` can be min, max but got 'minimum'"),
        (("valid/loss", -3, "min"), "Invalid value for save_top_k=-3"),
        (("valid/loss", "3", "min"), "Invalid value for save_top_k='3'"),
    ],
)
def test_a_wrong_criterion(criterion, message):
    with pytest.raises(MisconfigurationException, match=message):
        get_default_callbacks(best_model_criterion=[criterion])


class Series(Line):
    """Logs the golden run's validation values, one epoch after the other, in as many batches."""

    def validation_step(self, batch, batch_idx):
        for name, value in GOLDEN["validations"][self.current_epoch]["metrics"].items():
            if name.startswith("valid/"):
                self.log(name, value)


def test_files_and_best_k_models_of_espnet3(tmp_path):
    criteria = GOLDEN["config"]["best_model_criterion"]
    callbacks = get_default_callbacks(tmp_path, best_model_criterion=criteria)
    trainer = Trainer(
        max_epochs=7, callbacks=[c for c in callbacks if not isinstance(c, TQDMProgressBar)],
        logger=CSVLogger(tmp_path / "csv"), enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2,
    )  # fmt: skip
    trainer.fit(Series(), DataLoader(torch.ones(3, 1)), DataLoader(torch.ones(1, 1)))
    theirs = {name.split(" ->")[0] for name in GOLDEN["files"] if not name.startswith("csv/")}
    stale = {"valid.acc.ave_1best.pth", "valid.loss.ave_1best.pth", "valid.loss.ave_2best.pth"}
    ours = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert ours == theirs - stale | {"step18.ckpt"}  # the newest state but one is kept, stale averages are not
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step21.ckpt")
    best = {
        callback.monitor: {os.path.basename(path): float(score) for path, score in callback.best_k_models.items()}
        for callback in trainer.checkpoint_callbacks
        if callback.monitor
    }
    assert best == GOLDEN["best_k_models"]
    state = torch.load(tmp_path / "step21.ckpt", weights_only=False)["callbacks"]
    theirs = GOLDEN["checkpoints"]["step21.ckpt"]["callbacks"]
    for key, entries in theirs.items():
        assert sorted(state[key]) == sorted(entries)


# ---- stopped by a signal, resumed ----------------------------------------------------------------------------------

GENERATOR = torch.Generator().manual_seed(5)
DATA = TensorDataset(torch.randn(11, 3, generator=GENERATOR), torch.randn(11, 1, generator=GENERATOR))


class Net(LiteModule):
    """Everything that a resume may get wrong: dropout, shuffling, momentum, a scheduler."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1)
        )

    def loss(self, batch):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Signal(Callback):
    """Sends SIGTERM to this process at the n-th call of a hook."""

    def __init__(self, hook, number):
        self.calls, self.number = 0, number
        setattr(self, hook, self.count)

    def count(self, *arguments):
        self.calls += 1
        if self.calls == self.number:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder, *more, **settings):
    """Four epochs of six batches; returns the trainer and the code with which it left, None if it did not."""
    torch.manual_seed(1)
    callbacks = get_default_callbacks(folder, 2, [("valid/loss", 2, "min")])
    callbacks = [callback for callback in callbacks if not isinstance(callback, TQDMProgressBar)]
    trainer = Trainer(
        max_epochs=4, callbacks=[*callbacks, EarlyStopping("valid/loss", patience=3), *more], log_every_n_steps=2,
        logger=CSVLogger(folder / "csv"), enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    code = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(Net(), DataLoader(DATA, 2, shuffle=True), DataLoader(DATA, 4))
        except SystemExit as exit_:
            code = exit_.code
    return trainer, code


def outcome(trainer, folder):
    """What must be equal, as text: the weights to the last bit, the counters, and each callback's state."""
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
    for callback in ("ModelCheckpoint{'monitor': None", "MetricsLogger"):
        assert any(key.startswith(callback) for key in states)
    torch.set_printoptions(precision=17)
    try:
        weights = {name: value.tolist() for name, value in trainer.lightning_module.state_dict().items()}
        text = repr((weights, trainer.global_step, trainer.current_epoch, states))
    finally:
        torch.set_printoptions(profile="default")
    return text.replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("settings", "hook", "number"),
    [
        ({}, "on_train_batch_start", 1),
        ({}, "on_train_batch_start", 9),
        ({}, "on_train_batch_start", 12),  # an epoch's last batch: its validation is the resumed run's
        ({}, "on_validation_start", 3),
        ({}, "on_train_epoch_end", 2),
        ({"accumulate_grad_batches": 4, "val_check_interval": 3}, "on_train_batch_start", 20),  # within a window
        ({"accumulate_grad_batches": 4, "val_check_interval": 3}, "on_train_batch_start", 3),  # before any step
        ({"val_check_interval": 2}, "on_train_batch_start", 10),
    ],
)
def test_a_run_stopped_by_a_signal_and_resumed_is_the_same_run(settings, hook, number, tmp_path):
    whole, _ = run(tmp_path / "whole", **settings)
    stopped, code = run(tmp_path / "cut", Signal(hook, number), **settings)
    assert code == 128 + signal.SIGTERM
    assert stopped.global_step < whole.global_step
    if stopped.validation_ran:
        assert list((tmp_path / "cut").glob("valid.loss.ave_*best.pth"))  # an end, if an early one
    resumed, code = run(tmp_path / "cut", auto_resume=True, **settings)
    assert code is None
    assert outcome(resumed, tmp_path / "cut") == outcome(whole, tmp_path / "whole")
    kept = {path.name for path in (tmp_path / "cut").glob("step*.ckpt")}
    assert len(kept) == 2
    assert f"step{whole.global_step}.ckpt" in kept
    best = [{path.name for path in (tmp_path / part).glob("epoch*.ckpt")} for part in ("whole", "cut")]
    assert best[0] == best[1]


@pytest.mark.parametrize("save_last", [None, True, "link"])
def test_after_a_signal_a_ranked_callback_saves_the_state_unranked(tmp_path, save_last):
    best = ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=1, save_last=save_last)
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(callbacks=[best, Signal("on_train_batch_start", 8)], **settings).fit(
            Net(), DataLoader(DATA, 2), DataLoader(DATA, 4)
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0-step=6.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 8
    assert list(best.best_k_models) == [str(tmp_path / "epoch=0-step=6.ckpt")]


class Crash(BaseException):
    """Nothing that anybody catches: the process is gone."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("moment", "number"),
    [*(("save_checkpoint", number) for number in (2, 5, 8)), *(("link_or_copy", number) for number in (1, 2, 4)),
     *(("remove_checkpoint", number) for number in (1, 2, 4))],
)  # fmt: skip
def test_a_run_that_dies_while_it_saves_and_is_resumed_is_the_same_run(moment, after, number, tmp_path, monkeypatch):
    """Four epochs: eight files, four links, four removals. It dies before or after one of them."""
    whole, _ = run(tmp_path / "whole")
    home = checkpoint_io if moment == "save_checkpoint" else checkpoint_files
    calls, real = [0], getattr(home, moment)

    def dying(*arguments):
        calls[0] += 1
        if calls[0] == number and not after:
            raise Crash
        real(*arguments)
        if calls[0] == number:
            raise Crash

    monkeypatch.setattr(home, moment, dying)
    with pytest.raises(Crash):
        run(tmp_path / "cut")
    monkeypatch.setattr(home, moment, real)
    resumed, _ = run(tmp_path / "cut", auto_resume=True)
    assert outcome(resumed, tmp_path / "cut") == outcome(whole, tmp_path / "whole")
    files = [{path.name for path in (tmp_path / part).glob("*.*") if path.is_file()} for part in ("whole", "cut")]
    assert files[0] == files[1]
    assert (tmp_path / "cut" / "last.ckpt").samefile(tmp_path / "cut" / f"step{whole.global_step}.ckpt")


def test_fast_dev_run_runs_with_them_and_writes_nothing(tmp_path):
    callbacks = get_default_callbacks(tmp_path / "exp")
    trainer = Trainer(fast_dev_run=2, callbacks=callbacks, default_root_dir=tmp_path, enable_model_summary=False)
    trainer.fit(Net(), DataLoader(DATA, 2), DataLoader(DATA, 4))
    assert trainer.global_step == 2 and list(tmp_path.rglob("*")) == []


def test_without_log_lines_there_is_a_bar():
    assert get_default_callbacks(log_interval=0)[-1].refresh_rate == 1


@pytest.mark.parametrize("second", [("valid/loss", 1, "max"), ("valid/loss", 5, "min"), ("valid.loss", 1, "min")])
def test_two_criteria_whose_files_would_have_one_name_are_refused(second):
    """One would remove the other's checkpoints, and its average."""
    with pytest.raises(MisconfigurationException, match=r"two criteria name their files by 'valid/loss'; keep one"):
        get_default_callbacks(best_model_criterion=[("valid/loss", 2, "min"), ("valid/acc", 2, "max"), second])


def test_no_criterion_is_the_default_one_and_none_of_them_keeps_no_best():
    given, none = get_default_callbacks(best_model_criterion=None), get_default_callbacks(best_model_criterion=[])
    assert [callback.monitor for callback in given if isinstance(callback, ModelCheckpoint)] == [None, "valid/loss"]
    assert [callback.monitor for callback in none if isinstance(callback, ModelCheckpoint)] == [None]


def test_one_folder_has_one_spelling(tmp_path):
    with pytest.raises(MisconfigurationException, match="are one argument; give one"):
        get_default_callbacks(exp_dir=tmp_path / "a", expdir=tmp_path / "b")
