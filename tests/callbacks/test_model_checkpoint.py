"""`ModelCheckpoint`: what Lightning 2.6.6 did in 77 recorded cases, and what is ours."""

import copy
import json
import os
import shutil
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import line_model
import pytest
import torch
from quiet import quiet_trainer
from saving_lab import run_case
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint
from espnet3_lite.callbacks.checkpoints.checkpoint_files import newest_checkpoint
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.exceptions import CheckpointError, MisconfigurationException
from espnet3_lite.loggers import CSVLogger

LIBRARY = SimpleNamespace(
    Trainer=Trainer, Module=LiteModule, Callback=Callback, ModelCheckpoint=ModelCheckpoint, EarlyStopping=EarlyStopping
)
RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "lightning_saving.json").read_text())
CASES = {name: entry for name, entry in RECORDED.items() if "checkpoints" in entry["case"]}


def expected_of(name):
    """What Lightning did; changed where we do otherwise on purpose."""
    expected = copy.deepcopy(CASES[name]["expected"])
    if name == "fast_dev":  # Lightning leaves a last.ckpt behind, although fast_dev_run shall write nothing
        expected[0].update(files={}, saves=[])
        expected[0]["checkpoints"][0]["last_model_path"] = ""
    return expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_does_what_lightning_does(name, tmp_path):
    assert run_case(LIBRARY, CASES[name]["case"], tmp_path) == expected_of(name)


class Line(line_model.Line):
    """One weight; logs `valid/loss` from a series, one value a validation."""

    def __init__(self, series=(3.0, 1.0, 2.0)):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.series, self.validations = series, 0

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.series[self.validations % len(self.series)])

    def on_validation_epoch_end(self):
        self.validations += 1


def fit(*callbacks, module=None, batches=2, ckpt_path=None, trainer_class=Trainer, **settings):
    """Train for three epochs of two batches; returns the trainer."""
    defaults = {
        "max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = trainer_class(callbacks=list(callbacks), **{**defaults, **settings})
    loaders = DataLoader(torch.ones(batches, 1)), DataLoader(torch.ones(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module or Line(), *loaders, ckpt_path=ckpt_path)
    return trainer


def names(folder):
    return sorted(path.name for path in Path(folder).glob("*.ckpt"))


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_top_k": "3"}, r"Invalid value for save_top_k='3'\. Must be >= -1, a whole number"),
        ({"save_top_k": -2}, r"Invalid value for save_top_k=-2\. Must be >= -1"),
        ({"every_n_train_steps": -1}, r"Invalid value for every_n_train_steps=-1\. Must be >= 0"),
        ({"every_n_epochs": -2}, r"Invalid value for every_n_epochs=-2\. Must be >= 0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 2}, "every_n_train_steps=2, every_n_epochs=1 and .* exclusive"),
        ({"every_n_epochs": 1, "train_time_interval": timedelta(1)}, "should be mutually exclusive"),
        ({"save_top_k": 2}, r"ModelCheckpoint\(save_top_k=2, monitor=None\) is not a valid configuration"),
        ({"mode": "avg"}, "`mode` can be min, max but got 'avg'"),
        ({"save_last": "yes"}, r"save_last='yes'\): use True, False, None or 'link'"),
        ({"keep_newest": 0}, r"keep_newest=0\. Must be >= 1"),
        ({"keep_newest": 2, "monitor": "valid/loss"}, "goes with monitor=None and save_top_k=1"),
        ({"dirpath": "s3://bucket/exp"}, "local folders only"),
        ({"train_time_interval": "1:30"}, "'1:30' is not a duration; give 'DD:HH:MM:SS'"),
    ],
)
def test_refuses_what_contradicts_itself(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        ModelCheckpoint(**arguments)


def test_durations_may_be_text_or_a_dict():
    expected = timedelta(minutes=90)
    for given in (expected, "00:01:30:00", {"minutes": 90}):
        assert ModelCheckpoint(train_time_interval=given).train_time_interval == expected


def test_state_key_is_lightnings():
    callback = ModelCheckpoint(monitor="valid/loss", mode="max", train_time_interval=timedelta(seconds=5))
    assert callback.state_key == (
        "ModelCheckpoint{'monitor': 'valid/loss', 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 0, "
        "'train_time_interval': datetime.timedelta(seconds=5)}"
    )


@pytest.mark.parametrize("kind", (RuntimeError, MisconfigurationException))
def test_two_that_would_share_their_state_are_refused_by_the_trainer(tmp_path, kind):
    pair = [ModelCheckpoint(tmp_path, filename="a"), ModelCheckpoint(tmp_path, filename="b")]
    message = "more than one stateful callback of type `ModelCheckpoint`"
    with pytest.raises(kind, match=message):
        Trainer(callbacks=pair, max_epochs=1)

    class Gives(Line):
        def configure_callbacks(self):
            return pair

    with pytest.raises(kind, match=message):
        fit(module=Gives())


def test_batches_are_listened_to_only_where_they_matter():
    assert ModelCheckpoint()._listener("on_train_batch_end") is None
    for interval in ({"every_n_train_steps": 2}, {"train_time_interval": timedelta(1)}):
        callback = ModelCheckpoint(**interval)
        assert callback._listener("on_train_batch_end") == callback.on_train_batch_end


# ---- names -------------------------------------------------------------------------------------------------------


def test_names_use_the_documented_class_attributes(tmp_path):
    class Mine(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = "-"
        CHECKPOINT_NAME_LAST = "{epoch}-newest"
        FILE_EXTENSION = ".state"
        STARTING_VERSION = 5

    callback = Mine(tmp_path, monitor="valid/loss", save_last=True, save_top_k=-1, filename="x")
    fit(callback)
    assert sorted(os.listdir(tmp_path)) == ["epoch-2-newest.state", "x.state", "x_v5.state", "x_v6.state"]
    assert Mine().format_checkpoint_name({"epoch": 1, "step": 2}) == "epoch-1_step-2.state"


def test_default_folder_is_in_the_loggers(tmp_path):
    callback = ModelCheckpoint()
    fit(callback, logger=CSVLogger(tmp_path, name="run"), max_epochs=1)
    assert callback.best_model_path == str(tmp_path / "run" / "version_0" / "checkpoints" / "epoch=0-step=2.ckpt")
    assert os.path.exists(callback.best_model_path)
    callback = ModelCheckpoint()
    fit(callback, default_root_dir=tmp_path / "root", max_epochs=1)
    assert callback.best_model_path == str(tmp_path / "root" / "checkpoints" / "epoch=0-step=2.ckpt")


def test_a_new_run_in_a_full_folder_is_warned_about(tmp_path):
    (tmp_path / "old.ckpt").write_text("")
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    with pytest.warns(UserWarning, match="exists and is not empty"):
        Trainer(callbacks=ModelCheckpoint(tmp_path), **settings).fit(Line(), DataLoader(torch.ones(2, 1)))


@pytest.mark.parametrize("case", ["a file", "read-only"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_training(tmp_path, monkeypatch, case):
    (tmp_path / "here").write_text("") if case == "a file" else (tmp_path / "here").mkdir()
    if case == "read-only":
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "here")  # as root it always may
    module = line_model.Line()
    callback = ModelCheckpoint(tmp_path / "here" / "checkpoints")
    message = r"here/checkpoints: no checkpoint can be written here: .*/here is (not a folder|read-only)\. Give another"
    with pytest.raises(CheckpointError, match=message):
        fit(callback, module=module, max_epochs=1)
    assert module.trainer.global_step == 0


def test_a_second_fit_of_a_trainer_is_not_warned_about_its_own_files(tmp_path):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    trainer = Trainer(callbacks=ModelCheckpoint(tmp_path), **settings)
    trainer.fit(Line(), DataLoader(torch.ones(2, 1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Line(), DataLoader(torch.ones(2, 1)))
    assert list(tmp_path.iterdir()) and not [one for one in caught if "is not empty" in str(one.message)]


# ---- what stays ----------------------------------------------------------------------------------------------------


def test_nothing_is_removed_before_the_new_file_is_there(tmp_path):
    class FullDisk(Trainer):
        def save_checkpoint(self, filepath, weights_only=False, storage_options=None):
            if self.global_step == 4:
                raise CheckpointError(f"{filepath}: no space left on device")
            super().save_checkpoint(filepath, weights_only)

    with pytest.raises(CheckpointError, match="no space left"):
        fit(ModelCheckpoint(tmp_path), trainer_class=FullDisk)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt"]
    assert checkpoint_io.damage(tmp_path / "epoch=0-step=2.ckpt") is None


def test_link_is_the_same_file_and_outlives_its_other_name(tmp_path):
    callback = ModelCheckpoint(tmp_path, save_last="link", save_top_k=-1)
    fit(callback)
    newest, last = tmp_path / "epoch=2-step=6.ckpt", tmp_path / "last.ckpt"
    assert callback.last_model_path == str(last)
    assert last.samefile(newest)
    newest.unlink()
    assert checkpoint_io.load_checkpoint(last)["global_step"] == 6


def test_decisions_use_the_number_that_the_ranks_agree_on(tmp_path):
    agreed = {3.0: 30.0, 1.0: 10.0, 2.0: 5.0}
    callback = ModelCheckpoint(tmp_path, monitor="valid/loss", filename="{valid/loss:.0f}", save_top_k=2)

    class OnTwoRanks(Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.strategy.agreed_metric = lambda value: torch.tensor(agreed[float(value)])

    fit(OnTwoRanks(), callback)
    scores = {os.path.basename(path): float(score) for path, score in callback.best_k_models.items()}
    assert scores == {"loss=10.ckpt": 10.0, "loss=5.ckpt": 5.0}  # in the folder "valid"
    assert callback.best_model_path == str(tmp_path / "valid" / "loss=5.ckpt")


def test_a_missing_metric_is_an_error_after_the_first_validation(tmp_path):
    message = r"monitor='valid/los'.*could not find the monitored key.*in the module, or did you mean 'valid/loss'\?"
    for save_on_train_epoch_end in (True, False):
        callback = ModelCheckpoint(tmp_path, monitor="valid/los", save_on_train_epoch_end=save_on_train_epoch_end)
        with pytest.raises(MisconfigurationException, match=message):
            fit(callback)


def test_manual_optimization_saves_by_steps(tmp_path):
    class Manual(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()

    fit(ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1), module=Manual(), batches=3, max_epochs=2)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "epoch=1-step=6.ckpt"]


@pytest.mark.parametrize("manual", (False, True))
def test_a_save_waits_for_no_validation_that_is_not_due(tmp_path, manual):
    """The step falls on the epoch's last batch, after which `val_check_interval` brings no validation."""

    class Logs(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            self.log("own", 1.0 - self.trainer.global_step / 10)
            loss = self.layer(batch).sum()
            if manual:
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    def saved(folder, **settings):
        callback = ModelCheckpoint(folder, monitor="own", save_top_k=-1, every_n_train_steps=5, save_last=True)
        trainer = fit(callback, module=Logs(), batches=5, max_epochs=1, val_check_interval=2, **settings)
        assert trainer.global_step == 5
        return names(folder)

    assert saved(tmp_path / "a") == ["epoch=0-step=5.ckpt", "last.ckpt"]
    assert saved(tmp_path / "b", limit_val_batches=0) == ["epoch=0-step=5.ckpt", "last.ckpt"]


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_fewer_may_stay_after_a_resume(tmp_path):
    fit(ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=3, save_last=True))
    assert len(names(tmp_path)) == 4
    callback = ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=2, save_last=True)
    fit(callback, module=Line(series=(0.5,)), ckpt_path=tmp_path / "last.ckpt", max_epochs=4)
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt", "last.ckpt"]
    assert [float(score) for score in callback.best_k_models.values()] == [1.0, 0.5]


def states(folder, **changes):
    """A callback that keeps the two newest states, as ESPnet3's default one does."""
    arguments = {
        "filename": "step{step}", "auto_insert_metric_name": False, "save_last": "link", "keep_newest": 2,
        "enable_version_counter": False,
    }  # fmt: skip
    return ModelCheckpoint(folder, **{**arguments, **changes})


def test_a_removal_that_a_dying_run_left_undone_is_done_by_the_one_that_goes_on(tmp_path):
    def best():
        return ModelCheckpoint(tmp_path, "{step}", monitor="valid/loss", save_last=True)

    dying = best()
    dying._remove_checkpoint = lambda trainer, path: None  # as where the process is killed between save and removal
    fit(dying, module=Line((3.0, 1.0)), max_epochs=2)
    assert names(tmp_path) == ["last.ckpt", "step=2.ckpt", "step=4.ckpt"]
    callback = best()
    fit(callback, module=Line((2.0,)), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert "step=2.ckpt" not in names(tmp_path)
    assert Path(callback.best_model_path).name == "step=4.ckpt"


def test_a_run_that_goes_on_from_the_last_checkpoint_knows_its_name(tmp_path):
    """Of the first one that was ever saved: its state is older than its second name."""

    def newest():
        return ModelCheckpoint(tmp_path, "{step}", save_last="link", keep_newest=2)

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(Path(callback.last_model_path).name)

    fit(newest(), max_epochs=1)
    callback, seen = newest(), []
    fit(callback, Look(), max_epochs=2, auto_resume=True)
    assert seen == ["last.ckpt"]


def test_what_was_replaced_in_another_folder_is_not_looked_for_in_this_one(tmp_path):
    def best(folder):
        return ModelCheckpoint(tmp_path / folder, "{step}", monitor="valid/loss", save_last=True)

    fit(best("one"), module=Line((3.0, 1.0)), max_epochs=2)  # step=2.ckpt is replaced there
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "step=2.ckpt").write_text("somebody else's")
    fit(best("two"), module=Line((2.0,)), max_epochs=3, ckpt_path=tmp_path / "one" / "last.ckpt")
    assert "step=2.ckpt" in names(tmp_path / "two")


def test_the_newest_two_stay_over_a_resume(tmp_path):
    (tmp_path / "epoch0_step2.ckpt").write_text("the user's own")
    fit(states(tmp_path))
    assert names(tmp_path) == ["epoch0_step2.ckpt", "last.ckpt", "step4.ckpt", "step6.ckpt"]
    fit(states(tmp_path), ckpt_path=tmp_path / "last.ckpt", max_epochs=4)
    assert names(tmp_path) == ["epoch0_step2.ckpt", "last.ckpt", "step6.ckpt", "step8.ckpt"]
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step8.ckpt")


def test_files_of_a_run_that_is_not_continued_stay(tmp_path):
    fit(states(tmp_path), batches=10, max_epochs=2)
    fit(states(tmp_path))
    assert names(tmp_path) == ["last.ckpt", "step10.ckpt", "step20.ckpt", "step4.ckpt", "step6.ckpt"]


def test_what_the_user_resumed_from_stays(tmp_path):
    fit(states(tmp_path))
    fit(states(tmp_path), ckpt_path=tmp_path / "step6.ckpt", max_epochs=5)
    assert names(tmp_path) == ["last.ckpt", "step10.ckpt", "step6.ckpt", "step8.ckpt"]


def test_falls_back_from_a_damaged_newest_and_writes_it_again(tmp_path, caplog):
    whole = fit(states(tmp_path / "whole"), max_epochs=4)
    fit(states(tmp_path / "cut"))
    newest = tmp_path / "cut" / "step6.ckpt"
    os.truncate(newest, newest.stat().st_size // 2)
    resumed = fit(states(tmp_path / "cut"), module=Line(), auto_resume=True, max_epochs=4)
    assert resumed.ckpt_path == str(tmp_path / "cut" / "step4.ckpt")
    assert "truncated" in caplog.text
    assert names(tmp_path / "cut") == ["last.ckpt", "step6.ckpt", "step8.ckpt"]
    for name in ("step6.ckpt", "step8.ckpt", "last.ckpt"):
        assert checkpoint_io.damage(tmp_path / "cut" / name) is None
    assert whole.global_step == resumed.global_step == 8


def test_candidates_for_a_resume(tmp_path):
    last, best = (
        states(tmp_path),
        ModelCheckpoint(tmp_path, monitor="valid/loss", save_weights_only=True, filename="b{step}"),
    )
    trainer = fit(last, best)
    found = [path.name for path in last.resume_candidates(trainer)]
    assert found == ["last.ckpt", "step4.ckpt"]  # step6.ckpt is last.ckpt
    assert best.resume_candidates(trainer) == []
    assert newest_checkpoint(trainer) == str(tmp_path / "last.ckpt")
    nested = ModelCheckpoint(tmp_path, monitor="valid/loss", filename="{epoch}-{valid/loss:.1f}")
    trainer = fit(nested)
    assert [path.relative_to(tmp_path).as_posix() for path in nested.resume_candidates(trainer)][-1] == (
        "epoch=1-valid/loss=1.0.ckpt"
    )


def test_each_step_is_saved_once_over_a_resume(tmp_path):
    """Saved at the epoch's end; the next epoch's validation comes at the same step: an uninterrupted run skips it."""
    settings = {"accumulate_grad_batches": 4, "val_check_interval": 2, "batches": 4, "max_epochs": 2}

    def callbacks(folder):
        best = ModelCheckpoint(folder, monitor="valid/loss", save_top_k=-1, filename="{epoch}-{step}", save_last=True)
        return best, ModelCheckpoint(folder, filename="end{step}", save_top_k=-1)

    whole, cut = callbacks(tmp_path / "whole"), callbacks(tmp_path / "cut")
    fit(*whole, **settings)
    fit(*cut, **{**settings, "max_epochs": 1})
    module = Line()
    module.validations = 2
    resumed = callbacks(tmp_path / "cut")
    fit(*resumed, module=module, ckpt_path=tmp_path / "cut" / "endstep=1.ckpt", **settings)
    assert names(tmp_path / "whole") == names(tmp_path / "cut")
    assert list(map(float, whole[0].best_k_models.values())) == list(map(float, resumed[0].best_k_models.values()))


# ---- what Lightning's users override ---------------------------------------------------------------------------------


def test_lightnings_methods_are_what_is_called(tmp_path):
    calls = []

    class Permanent(ModelCheckpoint):
        """As people write it: the files of even epochs stay."""

        def _save_checkpoint(self, trainer, filepath):
            calls.append(("save", Path(filepath).name))
            super()._save_checkpoint(trainer, filepath)

        def _remove_checkpoint(self, trainer, filepath):
            calls.append(("remove", Path(filepath).name))
            if "epoch=0" not in filepath:
                super()._remove_checkpoint(trainer, filepath)

        def _monitor_candidates(self, trainer):
            return {**super()._monitor_candidates(trainer), "twice": torch.tensor(2.0)}

        def _save_topk_checkpoint(self, trainer, monitor_candidates):
            calls.append(("topk", float(monitor_candidates["twice"])))
            super()._save_topk_checkpoint(trainer, monitor_candidates)

        def _save_last_checkpoint(self, trainer, monitor_candidates):
            calls.append(("last", int(monitor_candidates["step"])))
            super()._save_last_checkpoint(trainer, monitor_candidates)

    fit(Permanent(tmp_path, filename="{epoch}-{twice:.0f}", save_last="link"), max_epochs=2)
    assert calls == [
        ("topk", 2.0), ("save", "epoch=0-twice=2.ckpt"), ("last", 2),
        ("topk", 2.0), ("save", "epoch=1-twice=2.ckpt"), ("remove", "epoch=0-twice=2.ckpt"), ("last", 4),
    ]  # fmt: skip
    assert names(tmp_path) == ["epoch=0-twice=2.ckpt", "epoch=1-twice=2.ckpt", "last.ckpt"]


def test_the_moment_may_be_overridden(tmp_path):
    class AfterValidation(ModelCheckpoint):
        def _should_save_on_train_epoch_end(self, trainer):
            return trainer.current_epoch == 1

        def _should_skip_saving_checkpoint(self, trainer):
            return super()._should_skip_saving_checkpoint(trainer) or trainer.current_epoch == 2

    callback = AfterValidation(tmp_path, save_top_k=-1)
    assert (callback._every_n_epochs, callback._every_n_train_steps, callback._train_time_interval) == (1, 0, None)
    callback._every_n_epochs = 1
    fit(callback, max_epochs=3)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]


def test_an_override_that_nothing_would_call_is_refused():
    message = "Mine._format_checkpoint_name: Lightning's ModelCheckpoint calls it, .* override format_checkpoint_name"
    with pytest.raises(MisconfigurationException, match=message):

        class Mine(ModelCheckpoint):
            def _format_checkpoint_name(self, filename, metrics):
                return "x"


# ---- the ranking follows the files -----------------------------------------------------------------------------------


def scored(folder, **arguments):
    return ModelCheckpoint(folder, monitor="valid/loss", filename="{epoch}", save_top_k=2, save_last=True, **arguments)


def test_a_best_file_that_was_deleted_is_forgotten_by_the_resumed_run(tmp_path):
    series = (0.5, 0.1, 0.4, 0.3, 0.35)
    fit(scored(tmp_path), module=Line(series), max_epochs=3)
    assert names(tmp_path) == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    (tmp_path / "epoch=1.ckpt").unlink()
    callback, module = scored(tmp_path), Line(series)
    module.validations = 3
    trainer = fit(callback, module=module, ckpt_path=tmp_path / "last.ckpt", max_epochs=5)
    assert names(tmp_path) == ["epoch=3.ckpt", "epoch=4.ckpt", "last.ckpt"]
    best = {Path(path).name: round(float(score), 2) for path, score in callback.best_k_models.items()}
    assert best == {"epoch=3.ckpt": 0.3, "epoch=4.ckpt": 0.35}
    assert callback.best_model_path == str(tmp_path / "epoch=3.ckpt") and round(float(callback.kth_value), 2) == 0.35
    trainer.validate(module, DataLoader(torch.ones(1, 1)), ckpt_path="best", verbose=False)


def test_a_best_file_that_was_deleted_in_the_run_makes_room(tmp_path):
    class Deletes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                (tmp_path / "epoch=1.ckpt").unlink()

    callback = scored(tmp_path)
    fit(callback, Deletes(), module=Line((0.5, 0.1, 0.9)), max_epochs=3)
    assert names(tmp_path) == ["epoch=0.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert callback.best_model_path == str(tmp_path / "epoch=0.ckpt")


def test_of_several_last_files_that_with_the_most_steps_goes_first_and_is_told(tmp_path, caplog):
    fit(ModelCheckpoint(tmp_path, save_top_k=0, save_last=True), max_epochs=1)
    fit(ModelCheckpoint(tmp_path, save_top_k=0, save_last=True), max_epochs=3)
    assert names(tmp_path) == ["last-v1.ckpt", "last.ckpt"]
    os.utime(tmp_path / "last.ckpt")  # as a copy may leave them
    callback = ModelCheckpoint(tmp_path, save_top_k=0, save_last=True)
    with caplog.at_level("INFO", logger="espnet3_lite"):
        trainer = fit(callback, module=Line(), auto_resume=True, max_epochs=4)
    assert trainer.ckpt_path == str(tmp_path / "last-v1.ckpt") and trainer.global_step == 8
    assert "Several last checkpoints: " in caplog.text and "last-v1.ckpt (step 6)" in caplog.text


# ---- clocks and copies ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock_set_back(monkeypatch):
    """Call it: from then on what is written bears times of an hour ago, and each file an older one than that before."""
    real, times = os.replace, iter(range(int(time.time()) - 3600, 0, -1))

    def replace(source, destination):
        real(source, destination)
        if os.path.isfile(destination):
            os.utime(destination, times=(now := next(times), now))

    return lambda: monkeypatch.setattr(os, "replace", replace)


def test_a_run_goes_on_from_its_newest_state_though_the_clock_was_set_back(tmp_path, clock_set_back):
    """Within a run, and between two: a state that was saved later is the newer one."""

    def callbacks():
        best = ModelCheckpoint(tmp_path / "best", "{step}", monitor="valid/loss")
        return states(tmp_path / "full", save_last=None), best

    fit(*callbacks(), module=Line((1.0, 2.0)), max_epochs=2)  # the best one is the first
    clock_set_back()
    went_on_from = []
    for epochs in (3, 5, 6):
        trainer = fit(*callbacks(), module=Line((3.0,)), auto_resume=True, max_epochs=epochs)
        went_on_from.append(Path(trainer.ckpt_path).name)
    assert went_on_from == ["step4.ckpt", "step6.ckpt", "step10.ckpt"]
    assert names(tmp_path / "full") == ["step10.ckpt", "step12.ckpt"] and names(tmp_path / "best") == ["step=2.ckpt"]


def test_a_copied_folder_goes_on_from_its_last_state_whatever_the_files_times(tmp_path):
    fit(states(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "step4.ckpt", times=(2e9, 2e9))  # as ``cp -r`` may leave them
    trainer = fit(states(tmp_path / "copy"), module=Line(), auto_resume=True, max_epochs=4)
    assert Path(trainer.ckpt_path).name in ("last.ckpt", "step6.ckpt")  # one state, copied twice
    assert names(tmp_path / "copy") == ["last.ckpt", "step6.ckpt", "step8.ckpt"]


def test_a_copied_folder_gives_no_versions_to_what_is_written_again_whatever_the_files_times(tmp_path):
    """What the run wrote after its last state is known by its steps."""

    def callbacks(folder):
        best = ModelCheckpoint(folder, "{epoch}", monitor="valid/loss", save_top_k=-1, save_weights_only=True)
        return states(folder / "full"), best

    fit(*callbacks(tmp_path / "run"), max_epochs=3)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for name in ("full/step6.ckpt", "full/last.ckpt"):
        (tmp_path / "copy" / name).unlink()  # it was killed before its third state; epoch=2.ckpt is of that moment
    os.utime(tmp_path / "copy" / "epoch=2.ckpt", times=(1e9, 1e9))
    trainer = fit(*callbacks(tmp_path / "copy"), module=Line(), auto_resume=True, max_epochs=4)
    assert Path(trainer.ckpt_path).name == "step4.ckpt"
    assert names(tmp_path / "copy") == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", "epoch=3.ckpt"]


def test_another_runs_file_in_a_copied_folder_is_not_written_over(tmp_path):
    """Its time says that it is newer than the state; its step, that the run which goes on did not write it."""

    def callbacks(folder):
        best = ModelCheckpoint(folder, "{epoch}", monitor="valid/loss", save_top_k=-1, save_weights_only=True)
        return states(folder / "full"), best

    fit(*callbacks(tmp_path / "other"), batches=1, max_epochs=4)
    fit(*callbacks(tmp_path / "run"), batches=10, max_epochs=3)
    shutil.copy(tmp_path / "other" / "epoch=3.ckpt", tmp_path / "run")
    before = (tmp_path / "run" / "epoch=3.ckpt").read_bytes()
    fit(*callbacks(tmp_path / "run"), module=Line(), auto_resume=True, batches=10, max_epochs=4)
    assert (tmp_path / "run" / "epoch=3.ckpt").read_bytes() == before
    assert names(tmp_path / "run")[-2:] == ["epoch=3-v1.ckpt", "epoch=3.ckpt"]


# ---- one state, several names ----------------------------------------------------------------------------------------


def test_best_files_of_one_moment_with_one_content_are_written_once(tmp_path, monkeypatch):
    written = []
    save = torch.save

    def note(value, file, **named):
        written.extend([value["epoch"]] * hasattr(file, "fileno"))  # else it is compared, and nothing is written
        save(value, file, **named)

    monkeypatch.setattr(torch, "save", note)

    class Two(Line):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("valid/acc", 1.0 - self.validations)

    settings = {"save_weights_only": True, "auto_insert_metric_name": False, "save_top_k": -1}
    fit(
        ModelCheckpoint(tmp_path, monitor="valid/loss", filename="epoch{epoch}_loss", **settings),
        ModelCheckpoint(tmp_path, monitor="valid/acc", filename="epoch{epoch}_acc", mode="max", **settings),
        module=Two(), max_epochs=2,
    )  # fmt: skip
    assert written == [0, 1]
    for epoch in (0, 1):
        one, other = tmp_path / f"epoch{epoch}_loss.ckpt", tmp_path / f"epoch{epoch}_acc.ckpt"
        assert one.samefile(other) and one.stat().st_nlink == 2
        assert checkpoint_io.load_checkpoint(one)["global_step"] == 2 * (epoch + 1)
    assert not (tmp_path / "epoch0_loss.ckpt").samefile(tmp_path / "epoch1_loss.ckpt")


def test_another_content_at_the_same_moment_is_another_file(tmp_path):
    class Later(ModelCheckpoint):
        def on_validation_end(self, trainer, pl_module):
            pl_module.layer.weight.data.add_(1)
            super().on_validation_end(trainer, pl_module)

    settings = {"save_weights_only": True, "save_on_train_epoch_end": False, "monitor": "valid/loss"}
    fit(
        ModelCheckpoint(tmp_path, filename="a", **settings), Later(tmp_path, filename="b", **settings, mode="max"),
        max_epochs=1,
    )  # fmt: skip
    weights = [
        checkpoint_io.load_checkpoint(tmp_path / name)["state_dict"]["layer.weight"] for name in ("a.ckpt", "b.ckpt")
    ]
    assert float(weights[1] - weights[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "doubt"),
    [
        ({"filename": "{epoch}-{val_loss:.1f}"}, "nothing is logged as 'val_loss', 0 stands for it; did you mean "
         "'val/loss'?"),
        ({"filename": "model", "save_top_k": -1}, "save_top_k=-1 keeps all, but each file has the name of the one "
         "before, and replaces it: put {epoch} or {step} into it"),
        ({"filename": "{epoch}-{val/loss:.1f}", "save_top_k": -1, "save_last": True}, None),
        ({"filename": "model", "save_last": True}, None),
        ({"filename": "{step}-{val/loss}", "every_n_train_steps": 1, "save_top_k": -1}, None),
    ],
)  # fmt: skip
def test_a_name_that_loses_files_or_shows_nothing_is_told_once(arguments, doubt, tmp_path):
    class Logs(line_model.Line):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", 1.0)

    trainer = quiet_trainer(max_epochs=3, callbacks=[ModelCheckpoint(tmp_path, **arguments)], enable_checkpointing=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(Logs(), [torch.ones(1, 1)], [torch.ones(1, 1)])
    doubts = [f"ModelCheckpoint(filename={arguments['filename']!r}): {doubt}"] if doubt else []
    assert [str(one.message) for one in told if "filename=" in str(one.message)] == doubts
