"""Checkpoints both ways: ESPnet3's files under Lightning resume here, and ours have what Lightning reads.

`golden/espnet3_checkpoints` holds, for each case of `helpers/checkpoint_lab.py`, a file that ESPnet3 (or Lightning with
a plain module) saved, and how the uninterrupted run and the run resumed from it went on there.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import checkpoint_lab as lab
import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import (
    Callback,
    ESPnetModule,
    ESPnetTrainer,
    LiteModule,
    MisconfigurationException,
    OptimizationStep,
)
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.checkpoint.files import load_checkpoint
from espnet3_lite.espnet.optimizer_counters import RUNTIME_STATE, batches_that_stepped

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = GOLDEN / "espnet3_checkpoints"


def make(case, exp_dir):
    if case["base"] == "module":
        saves = ModelCheckpoint(
            exp_dir, "at{step}", save_top_k=-1, auto_insert_metric_name=False,
            every_n_train_steps=case.get("every_n_train_steps"),
        )  # fmt: skip
        trainer = quiet_trainer(
            max_epochs=case.get("trainer", {}).get("max_epochs", 4), callbacks=[saves], enable_checkpointing=True
        )
        module = lab.plain_module(LiteModule, case.get("manual", False))
        return trainer, lambda **kwargs: trainer.fit(module, **kwargs)
    config = lab.config_of(case, exp_dir)
    module = ESPnetModule(lab.scenarios.build_model(case["base"], OptimizationStep), config)
    settings = {
        **config["trainer"], "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "precision": case.get("precision"),
    }  # fmt: skip
    trainer = ESPnetTrainer(module, exp_dir, settings, config["best_model_criterion"])
    return trainer.trainer, trainer.fit


OURS = SimpleNamespace(make=make, recorder=lambda: lab.make_recorder(Callback), ours=True)


def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def resume(name, exp_dir, **changes):
    return lab.run_case(OURS, name, exp_dir, resume=RECORDED / f"{name}.ckpt", **changes)


def assert_same_batches(found, expected, counts=True):
    assert [(b["epoch"], b["batch_idx"]) for b in found] == [(b["epoch"], b["batch_idx"]) for b in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=1e-12, abs=1e-12)
        assert ours["rates"] == pytest.approx(theirs["rates"], rel=1e-12)
        if counts:
            assert ours["global_step"] == theirs["global_step"]


def assert_same_validations(found, expected):
    assert [validation["epoch"] for validation in found] == [validation["epoch"] for validation in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6, abs=1e-6)


def assert_same_end(found, expected):
    assert found["parameters"] == pytest.approx(expected["parameters"], rel=1e-12, abs=1e-12)
    assert (found["epoch"], found["global_step"]) == (expected["epoch"], expected["global_step"])
    assert found["stopping"] == [pytest.approx(values, rel=1e-6) for values in expected["stopping"]]


# ---- Lightning's files here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "warmup", "accumulate", "plateau", "criteria", "early_stopping", "scaler", "batch_end", "validation_end",
        "last_validation_end", "fit_end", "module", "module_mid_epoch", "module_manual",
    ],
)  # fmt: skip
def test_a_run_goes_on_as_it_did_in_lightning(name, tmp_path):
    """Parameters and rates after each batch, counts, validations, epochs, early stopping: as the resumed run there."""
    expected = recorded(name)["resumed"]
    found = resume(name, tmp_path)
    assert_same_batches(found["batches"], expected["batches"])
    assert_same_validations(found["validations"], expected["validations"])
    assert found["epochs"] == expected["epochs"]
    assert_same_end(found, expected)


def test_saved_with_the_last_batch(tmp_path):
    """Lightning leaves out this epoch's validation and end; here they follow, as in the run that was not cut."""
    whole, resumed = recorded("last_batch_end")["whole"], recorded("last_batch_end")["resumed"]
    found = resume("last_batch_end", tmp_path)
    assert_same_batches(found["batches"], whole["batches"][6:])
    assert_same_validations(found["validations"], whole["validations"][1:])
    assert found["epochs"] == whole["epochs"][1:] == [1, 2, 3]
    assert resumed["epochs"] == [2, 3]
    assert_same_end(found, whole)


def test_the_loader_without_a_state_goes_on_with_the_next_batch_too(tmp_path, monkeypatch):
    """Lightning would begin the data anew, and warns; here the position is a count of batches."""
    monkeypatch.delattr(lab.ResumableLoader, "load_state_dict")
    monkeypatch.delattr(lab.ResumableLoader, "state_dict")
    whole = recorded("validation_end")["whole"]
    found = resume("validation_end", tmp_path)
    assert_same_batches(found["batches"], whole["batches"][7:])
    assert_same_end(found, whole)


@pytest.mark.parametrize("name", ["gan", "gan_mid_epoch"])
def test_named_optimizers_go_on(name, tmp_path):
    """As in ESPnet3, but `global_step` counts batches that stepped, where ESPnet3 counts each optimizer's updates."""
    expected = recorded(name)["resumed"]
    found = resume(name, tmp_path)
    assert_same_batches(found["batches"], expected["batches"], counts=False)
    assert_same_validations(found["validations"], expected["validations"])
    assert found["parameters"] == pytest.approx(expected["parameters"], rel=1e-12, abs=1e-12)
    assert found["epoch"] == expected["epoch"]
    for ours, theirs in zip(found["batches"], expected["batches"], strict=True):
        assert 2 * ours["global_step"] == theirs["global_step"]


def test_schedulers_in_another_order_than_the_optimizers(tmp_path):
    """A file has their states in the order of `schedulers`: each comes to its own optimizer again.

    The parameters differ from the first batch on: ESPnet3 steps the schedulers by the optimizers' order, so that the
    discriminator's second `step` already uses its next rate (SEMANTICS, Stepping several optimizers).
    """
    expected = recorded("gan_order")["resumed"]
    found = resume("gan_order", tmp_path)
    for ours, theirs in zip(found["batches"], expected["batches"], strict=True):
        assert ours["rates"] == pytest.approx(theirs["rates"], rel=1e-12)
    assert expected["batches"][0]["rates"] == pytest.approx([0.02 * (1 - 0.8 * 7 / 30), 0.03 * (1 - 0.5 * 7 / 30)])


def test_named_optimizers_counters(tmp_path):
    case = lab.CASES["gan"]
    trainer, fit = make(case, tmp_path)
    train, valid = lab.loaders_of(case)
    fit(train_dataloaders=train, val_dataloaders=valid, ckpt_path=RECORDED / "gan.ckpt")
    assert {name: slot.update_step for name, slot in trainer.plan.slots.items()} == {
        "generator": 12,
        "discriminator": 12,
    }
    written = load_checkpoint(tmp_path / "last.ckpt")
    assert written[RUNTIME_STATE]["generator"] == {"accum_counter": 0, "update_step": 12}
    manual = written["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
    assert manual["total"]["completed"] == 24 == recorded("gan")["whole"]["global_step"]


@pytest.mark.parametrize(
    ("name", "first", "end"),
    [("warmup", 6, 12), ("batch_end", 5, 12), ("validation_end", 7, 20), ("gan", 6, 12), ("gan_mid_epoch", 7, 20),
     ("module_manual", 6, 12)],
)  # fmt: skip
def test_the_loggers_axis_goes_on(name, first, end, tmp_path):
    """It counts batches that stepped; Lightning's files have the batch that saved them not counted yet."""
    trainer, fit = make(lab.CASES[name], tmp_path)
    axis = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            axis.append(trainer.logging_step)

    trainer.callback_handler.add_callback(Watch())
    train, valid = lab.loaders_of(lab.CASES[name])
    fit(train_dataloaders=train, val_dataloaders=valid, ckpt_path=RECORDED / f"{name}.ckpt")
    assert axis == list(range(first, end))


def test_an_open_window_keeps_its_count_and_says_what_it_lacks(tmp_path):
    """ESPnet3 saves no gradients. Its next update lacks them, and so does ours: two epochs equal to the last bit.

    The third ends with an open window, which ESPnet3's validation clears and ours does not: there they part.
    """
    expected = recorded("gan_open_window")["resumed"]
    message = "optimizers.generator: the checkpoint was saved after 1 of the 2 backward passes"
    with pytest.warns(UserWarning, match=message):
        found = resume("gan_open_window", tmp_path, max_epochs=3)
    assert_same_batches(found["batches"], expected["batches"][:10], counts=False)
    steps = [batch["global_step"] for batch in found["batches"]]
    assert steps[:5] == [5, 5, 6, 7, 8]  # 4 before: at most, since models may take turns (here: 3 D, 1 G in 4 batches)


def test_a_half_trained_folder_of_espnet3_is_found(tmp_path):
    """As `espnet3-lite train` does: nothing is said of a checkpoint, and `last.ckpt` is ESPnet3's symbolic link."""
    shutil.copyfile(RECORDED / "warmup.ckpt", tmp_path / "step6.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step6.ckpt")
    trainer, fit = make(lab.CASES["warmup"], tmp_path)
    trainer.auto_resume = True
    train, valid = lab.loaders_of(lab.CASES["warmup"])
    fit(train_dataloaders=train, val_dataloaders=valid)
    expected = recorded("warmup")["resumed"]
    assert lab.flat_parameters(trainer.lightning_module).tolist() == pytest.approx(expected["parameters"], abs=1e-12)
    assert (trainer.current_epoch, trainer.global_step) == (4, 12)
    assert sorted(path.name for path in tmp_path.glob("step*.ckpt")) == ["step12.ckpt", "step9.ckpt"]
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step12.ckpt")


def test_another_configuration_is_refused(tmp_path):
    checkpoint = load_checkpoint(RECORDED / "gan.ckpt")
    checkpoint[RUNTIME_STATE] = {"generator": {}, "vocoder": {}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    trainer, fit = make(lab.CASES["gan"], tmp_path)
    train, valid = lab.loaders_of(lab.CASES["gan"])
    with pytest.raises(
        MisconfigurationException, match=r"\['generator', 'vocoder'\].*\['discriminator', 'generator'\]"
    ):
        fit(train_dataloaders=train, val_dataloaders=valid, ckpt_path=tmp_path / "other.ckpt")


def test_batches_that_stepped_from_counts_of_updates():
    assert batches_that_stepped(10, [(1, 10, 0), (5, 2, 0)]) == 10
    assert batches_that_stepped(11, [(2, 5, 1), (3, 3, 2)]) == 7  # 2 3 4 6 8 9 10
    assert batches_that_stepped(10, [(1, 9, 0), (1, 4, 0)]) == 10  # unknown: the most possible
    assert batches_that_stepped(0, [(1, 0, 0), (1, 0, 0)]) == 0


# ---- best-K lists --------------------------------------------------------------------------------------------------


def test_best_files_of_a_folder_that_moved(tmp_path):
    """ESPnet3's half-trained folder, copied to another place: its best files go on counting, and leave when beaten."""
    name, first = "criteria", tmp_path / "first"
    lab.run_case(OURS, name, first, max_epochs=4)  # the files that ESPnet3's own folder would hold
    moved = tmp_path / "moved"
    shutil.copytree(first, moved, symlinks=True)
    shutil.copyfile(RECORDED / f"{name}.ckpt", moved / "last.ckpt")
    found = lab.run_case(OURS, name, moved, resume=moved / "last.ckpt")
    expected = recorded(name)["whole"]["best"]
    assert found["best"] == {monitor: pytest.approx(files, rel=1e-6) for monitor, files in expected.items()}
    kept = {file for files in expected.values() for file in files}
    assert {path.name for path in moved.glob("epoch*.ckpt")} == kept


def test_of_the_best_files_some_did_not_move(tmp_path):
    """Those that are not there are left out, and what is known of best and worst is of the others."""
    state = load_checkpoint(RECORDED / "criteria.ckpt")["callbacks"]
    key = next(key for key in state if "valid/loss" in key)
    assert len(state[key]["best_k_models"]) == 3
    (best, best_score), (other, score), _ = sorted(state[key]["best_k_models"].items(), key=lambda item: item[1])
    (tmp_path / Path(other).name).touch()
    callback = ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=3, auto_insert_metric_name=False)
    callback.load_state_dict(state[key])
    assert callback.best_k_models == {str(tmp_path / Path(other).name): score}
    assert (callback.best_model_path, callback.best_model_score) == (str(tmp_path / Path(other).name), score)
    assert (callback.kth_best_model_path, float(callback.kth_value)) == ("", float("inf"))
    (tmp_path / Path(best).name).touch()
    callback = ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=2, auto_insert_metric_name=False)
    callback.load_state_dict(state[key])
    assert callback.best_model_score == best_score
    assert (callback.kth_best_model_path, callback.kth_value) == (str(tmp_path / Path(other).name), score)


def test_a_folder_without_those_files_is_another_one(tmp_path):
    state = load_checkpoint(RECORDED / "criteria.ckpt")["callbacks"]
    key = next(key for key in state if "valid/loss" in key)
    callback = ModelCheckpoint(tmp_path, monitor="valid/loss", save_top_k=3)
    with pytest.warns(UserWarning, match="The dirpath has changed from '/experiments/criteria'"):
        callback.load_state_dict(state[key])
    assert callback.best_k_models == {} and callback.best_model_path.startswith("/experiments/criteria/epoch")


# ---- our files in Lightning ----------------------------------------------------------------------------------------
# That Lightning and ESPnet3 go on from them is shown by `golden/check_lightning_reads_ours.py`, run by hand.


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Gives what we save where Lightning saved the recorded file of that name; each case runs once."""
    folder = tmp_path_factory.mktemp("ours")

    def checkpoint(name):
        file = folder / "kept" / name / lab.file_of(name, OURS)
        if not file.exists():
            lab.run_case(OURS, name, folder / name, keep=file.parent)
        return load_checkpoint(file)

    return checkpoint


#: What Lightning's resume does not look at: how often schedulers stepped; whether an earlier epoch was validated.
NOT_READ = ("epoch_loop.scheduler_progress", "epoch_loop.val_loop.batch_progress")


@pytest.mark.parametrize("name", lab.CASES)
def test_our_files_count_as_lightnings_do(name, kept):
    found, expected = kept(name), load_checkpoint(RECORDED / f"{name}.ckpt")
    assert set(found) == set(expected)
    assert found["epoch"] == expected["epoch"]
    loops = {key: value for key, value in found["loops"].items() if key != "espnet3_lite"}
    assert set(loops) == set(expected["loops"])
    fit, expected_fit = loops["fit_loop"], expected["loops"]["fit_loop"]
    assert set(fit) == set(expected_fit)
    for key in expected_fit:
        if key not in NOT_READ and (name, key) != ("gan_open_window", "epoch_loop.state_dict"):  # our count of steps
            assert fit[key] == expected_fit[key], key
    for key in ("validate_loop", "test_loop", "predict_loop"):
        assert loops[key] == expected["loops"][key]
    validation = fit["epoch_loop.val_loop.batch_progress"]["total"]
    assert validation["ready"] == validation["processed"] == validation["completed"]  # never in the middle of one
    assert fit["epoch_loop.val_loop.batch_progress"]["is_last_batch"] == (validation["ready"] > 0)


@pytest.mark.parametrize("name", lab.CASES)
def test_our_files_hold_what_lightnings_do(name, kept):
    found, expected = kept(name), load_checkpoint(RECORDED / f"{name}.ckpt")
    assert found["pytorch-lightning_version"] == expected["pytorch-lightning_version"]
    for key, state in expected["callbacks"].items():
        assert set(found["callbacks"][key]) == set(state)
    assert [set(state) for state in found["lr_schedulers"]] == [set(state) for state in expected["lr_schedulers"]]
    for ours, theirs in zip(found["optimizer_states"], expected["optimizer_states"], strict=True):
        assert set(ours) == set(theirs)
        assert [set(group) for group in ours["param_groups"]] == [set(group) for group in theirs["param_groups"]]
        assert set(ours["state"]) == set(theirs["state"])
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for key in (RUNTIME_STATE, "MixedPrecision", "hparams_name", "hyper_parameters"):
        assert found.get(key) == expected.get(key)
    if not name.startswith("gan"):
        assert found["global_step"] == expected["global_step"]


def test_the_average_loads_into_the_model_with_plain_torch(tmp_path):
    lab.run_case(OURS, "criteria", tmp_path)
    for name in ("valid.loss.ave_3best.pth", "valid.acc.ave_2best.pth"):
        model = lab.scenarios.build_model("g1_callbacks_two_criteria")
        model.load_state_dict(torch.load(tmp_path / name, weights_only=True), strict=True)
