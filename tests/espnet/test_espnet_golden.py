"""ESPnet3's recorded runs: the same parameters, values, rates, counts and files, save where we differ on purpose.

`golden/espnet3/scenarios.py` has the models, data and configurations; each JSON file what ESPnet3 under Lightning did.
"""

import pytest
import torch
from golden_lab import (
    assert_same_metrics,
    assert_same_parameters,
    best_files,
    golden,
    loaders,
    make_trainer,
    run,
    scenarios,
)

SINGLE = [
    "a1_single_steplr_step", "a2_single_accum_clip", "b1_single_plateau_epoch", "e1_nan_single",
    "f1_resume_single_steplr", "g1_callbacks_two_criteria",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "e1_nan_single"])
def test_single_optimizer_parameters(name, tmp_path):
    expected = golden(name)
    trainer, recorder = run(name, tmp_path)
    assert_same_parameters(trainer.model, expected["final"]["params"])
    assert len(recorder.batches) == len(expected["batches"])
    for found, wanted in zip(recorder.batches, expected["batches"], strict=True):
        assert (found["epoch"], found["batch_idx"]) == (wanted["epoch"], wanted["batch_idx"])
        assert found["param_sum_l2"] == pytest.approx(wanted["param_sum_l2"], abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "e1_nan_single"])
def test_single_optimizer_counts_rates_and_values(name, tmp_path):
    expected = golden(name)
    trainer, recorder = run(name, tmp_path)
    for found, wanted in zip(recorder.batches, expected["batches"], strict=True):
        assert found["global_step"] == wanted["global_step"]
        assert found["lr_start"] == [pytest.approx(rates) for rates in wanted["lr_start"].values()]
        assert_same_metrics(found["metrics"], wanted["metrics"])
    for found, wanted in zip(recorder.validations, expected["validations"], strict=True):
        assert found["sanity"] == wanted["sanity"]
        assert_same_metrics(found["metrics"], wanted["metrics"])
    for found, wanted in zip(recorder.epochs, expected["epochs"], strict=True):
        assert found["global_step"] == wanted["global_step"]
        assert_same_metrics(found["metrics"], wanted["metrics"])
    assert (trainer.trainer.global_step, trainer.trainer.current_epoch) == (
        expected["final"]["global_step"], expected["final"]["current_epoch"],
    )  # fmt: skip


def test_skipped_batches_change_nothing(tmp_path):
    """ESPnet3's step counter and scheduler advance over skipped batches; ours do not (SEMANTICS, Skipping).

    So this scenario equals not ESPnet3's record but a plain loop, written out here.
    """
    name = "e1_nan_single"
    with pytest.warns(UserWarning, match="loss is nan"):
        trainer, recorder = run(name, tmp_path)

    model = scenarios.build_model(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    steps, counts, rates = 0, [], []
    for _ in range(3):
        model.train()
        for _, batch in loaders(name)[0]:
            rates.append([[optimizer.param_groups[0]["lr"]]])
            loss, _, _ = model(**batch)
            if torch.isfinite(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                steps += 1
            counts.append(steps)
    assert_same_parameters(
        trainer.model, {k: {"values": v.double().flatten().tolist()} for k, v in model.state_dict().items()}, 0.0
    )
    assert [batch["global_step"] for batch in recorder.batches] == counts
    assert [batch["lr_start"] for batch in recorder.batches] == rates
    assert trainer.trainer.global_step == 9
    assert scheduler.last_epoch == trainer.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 9

    expected = golden(name)  # where ESPnet3 differs: it counts and schedules all 15 batches
    assert expected["final"]["global_step"] == 15
    assert expected["final"]["schedulers"][0]["last_epoch"] == 15
    # a skipped batch logs nothing: the values are those of the batch before it
    assert recorder.batches[1]["metrics"] == recorder.batches[0]["metrics"]


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("e1_nan_single", "f1_resume_single_steplr")])
def test_files_best_k_and_average(name, tmp_path):
    """The files ESPnet3 leaves, the full state before the newest, and the right averages instead of stale ones."""
    expected = golden(name)
    trainer, _ = run(name, tmp_path)
    found = best_files(trainer)
    assert {monitor: set(files) for monitor, files in found.items()} == {
        monitor: set(files) for monitor, files in expected["best_k_models"].items()
    }
    for monitor, files in expected["best_k_models"].items():
        for file, score in files.items():
            assert found[monitor][file] == pytest.approx(score, rel=1e-6)
    ckpt = {file.split(" ")[0] for file in expected["files"] if file.split(" ")[0].endswith(".ckpt")}
    full = sorted((path for path in tmp_path.glob("step*.ckpt")), key=lambda path: path.stat().st_mtime_ns)
    assert len(full) == min(2, expected["final"]["current_epoch"])
    assert {path.name for path in tmp_path.glob("*.ckpt")} == ckpt | {full[0].name}
    assert (tmp_path / "last.ckpt").samefile(full[-1])
    averages = {path.name: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pth")}
    assert set(averages) == set(expected["average_of_final_topk"])
    for file, wanted in expected["average_of_final_topk"].items():
        for key, value in wanted.items():
            if "per_checkpoint" in value:
                assert int(averages[file][key]) == sum(value["per_checkpoint"])
            else:
                mean = torch.tensor(value["values"], dtype=torch.float64)
                torch.testing.assert_close(averages[file][key].flatten(), mean, rtol=0, atol=1e-12)


def test_checkpoint_has_lightnings_keys(tmp_path):
    expected = golden("g1_callbacks_two_criteria")["checkpoints"]["step21.ckpt"]
    run("g1_callbacks_two_criteria", tmp_path)
    found = torch.load(tmp_path / "step21.ckpt", weights_only=True)
    assert set(found) == set(expected)
    assert (found["epoch"], found["global_step"], found["pytorch-lightning_version"]) == (6, 21, "2.6.6")
    assert set(found["loops"]) == {*expected["loops"], "espnet3_lite"}
    for loop, entries in expected["loops"].items():
        assert set(found["loops"][loop]) == set(entries)
    assert set(expected["callbacks"]) <= set(found["callbacks"])
    for key, state in expected["callbacks"].items():
        assert set(state) <= set(found["callbacks"][key])
    assert set(found["state_dict"]) == set(expected["state_dict"])
    scheduler = found["lr_schedulers"][0]
    assert set(scheduler) == set(expected["lr_schedulers"][0])


def test_resume_gives_the_same_run(tmp_path):
    """Cut after two epochs, continued with fit(ckpt_path): the golden run's parameters, as without the cut."""
    name = "f1_resume_single_steplr"
    expected = golden(name)
    cut = scenarios.RESUME[name]
    first, _ = run(name, tmp_path, max_epochs=cut)
    assert first.trainer.current_epoch == cut
    trainer, recorder = make_trainer(name, tmp_path)
    trainer.fit(*loaders(name), ckpt_path=tmp_path / "last.ckpt")
    assert [batch["epoch"] for batch in recorder.batches] == [2, 2, 2, 3, 3, 3]
    assert_same_parameters(trainer.model, expected["final"]["params"])
    assert trainer.trainer.global_step == expected["final"]["global_step"]
