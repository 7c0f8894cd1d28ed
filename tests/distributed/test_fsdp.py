"""FSDP2 on two real processes: equal to one process, and its sharded checkpoints read by anybody."""

import pytest
import rank_cases
import torch
from rank_lab import SINGLE, Model, Module, Note, loader_of, report, results_of, torchrun, trainer_of
from rank_launch import Ranks, launched

from espnet3_lite import average_checkpoints
from espnet3_lite.checkpoint import files as checkpoint_io

CASES = ["fsdp", "fsdp_accumulating", "fsdp_nan", "fsdp_stream", "fsdp_refuses", "fsdp_units"]
SCHEDULE_FREE = ["fsdp_modes", "fsdp_modes_gathered"]
MIXED = ["ddp_mixed", "fsdp_mixed", "named_mixed"]
LATE = ["fsdp_saves_late", "fsdp_damaged"]
SAVING = ["fsdp_saving", "fsdp_saving_in_background"]


def run_alone(folder):
    """One process's whole run with accumulation; it leaves ``plain.ckpt`` from within its second epoch."""

    def save(trainer, module, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(folder / "plain.ckpt")

    trainer = trainer_of(accumulate_grad_batches=3, max_epochs=3, callbacks=[Note(save)])
    module = Module(Model(), SINGLE)
    trainer.fit(module, loader_of(27, 8))
    return report(trainer, module)


RANKS = Ranks(
    "rank_cases", *CASES, *MIXED, *SAVING, "fsdp_from_a_file", "fsdp_from_ddp", *LATE, *SCHEDULE_FREE,
    "fsdp_modes_resumed", prepare=run_alone,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Where the ranks ran."""
    return launched(request, tmp_path_factory)


@pytest.fixture(scope="module")
def two(folder):
    """Each rank's results of all cases."""
    return results_of(folder, 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The report of the one process."""
    return run_alone(tmp_path_factory.mktemp("alone"))


def flat(parameters):
    return [number for values in parameters for number in values]


def close(parameters):
    return pytest.approx(flat(parameters), abs=1e-12, rel=0)


@pytest.mark.parametrize("case", ["fsdp", "fsdp_accumulating", "fsdp_nan", "fsdp_units", *SCHEDULE_FREE])
def test_two_ranks_reach_the_parameters_of_one_process(two, case, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_cases, "FOLDER", tmp_path)
    expected = getattr(rank_cases, case)()
    first, second = (result[case] for result in two)
    assert first["parameters"] == second["parameters"]
    assert flat(first["parameters"]) == close(expected["parameters"])
    assert first["global_step"] == second["global_step"] == expected["global_step"] > 0
    for name, value in expected["metrics"].items():
        if name.startswith("valid/"):
            assert first["metrics"][name] == second["metrics"][name] == pytest.approx(value, abs=1e-12)


def test_ranks_agree_on_what_the_gradient_scaler_skips(two):
    """The first two scales overflow float16: no rank steps alone, and FSDP finds what DDP finds."""
    for case in MIXED:
        first, second = (result[case] for result in two)
        assert first["parameters"] == second["parameters"]
        assert (first["global_step"], first["scale"]) == (second["global_step"], second["scale"]) == (6, 2.0**14)
    ddp, fsdp = (two[0][case]["parameters"] for case in MIXED[:2])
    assert flat(ddp) == pytest.approx(flat(fsdp), abs=1e-6, rel=0)


def test_ranks_of_different_lengths_run_equally_often(two):
    first, second = (result["fsdp_stream"] for result in two)
    assert (len(first["trained"]), len(second["trained"])) == (14, 10)
    assert first["parameters"] == second["parameters"] and first["global_step"] == 14


def test_what_cannot_be_sharded_is_refused_on_all_ranks(two):
    assert two[0]["fsdp_refuses"] == two[1]["fsdp_refuses"]
    errors = two[0]["fsdp_refuses"]
    for name, message in {
        "several": "trains one optimizer, this run has 3 (second, first, unused)",
        "manual": "does not train with automatic_optimization=False",
        "lbfgs": "does not train with LBFGS",
        "pruning": "ModelPruning needs whole parameters",
    }.items():
        assert errors[name].startswith("MisconfigurationException: ") and message in errors[name]
        assert "strategy='fsdp'" in errors[name]
    assert errors["scalar"].endswith("Change scale to a 1D tensor with numel equal to 1.")


def test_layers_are_sharded_one_by_one_except_where_they_are_tied(two):
    assert two[0]["fsdp_units"]["units"] == ["", "model.layers.1"]


@pytest.mark.parametrize("case", SAVING)
def test_a_sharded_checkpoint_goes_on_bit_for_bit(two, case):
    for result in two:
        assert result[case]["resumed"]["parameters"] == result[case]["whole"]["parameters"]
        assert result[case]["resumed"]["global_step"] == result[case]["whole"]["global_step"]
        assert result[case]["on_disk"] == [True]
    together = [result[case]["resumed"]["trained"] for result in two]
    assert len(flat(together[0] + together[1])) == 27 - 16 + 27


def test_both_sets_of_a_schedule_free_optimizers_weights_are_saved(two, folder, monkeypatch):
    """Those to use, which are validated; and those in training, with which two ranks go on, and one process."""
    for result in two:
        assert result["fsdp_modes_resumed"]["parameters"] == result["fsdp_modes"]["parameters"]
        assert result["fsdp_modes_resumed"]["metrics"] == result["fsdp_modes"]["metrics"]
    monkeypatch.setattr(rank_cases, "FOLDER", folder)
    alone = rank_cases.fsdp_modes_resumed()
    assert flat(alone["parameters"]) == close(two[0]["fsdp_modes"]["parameters"])
    assert alone["saved"] == pytest.approx(two[0]["fsdp_modes_resumed"]["saved"], abs=1e-12)
    checkpoint_io.consolidate(folder / "modes.ckpt", folder / "modes.consolidated.ckpt")
    saved = checkpoint_io.load_checkpoint(folder / "modes.consolidated.ckpt")
    assert {type(value) for value in saved["weights_in_training"].values()} == {torch.Tensor}


def test_what_a_callback_keeps_of_sharded_weights_is_saved_whole(two, folder):
    """Deep in a state, where it is not sharded."""
    kept = checkpoint_io.load_checkpoint(folder / "modes.ckpt")["callbacks"]["Keeps"]["kept"]["first.weight"]
    assert two[0]["fsdp_modes"]["kept"] == two[1]["fsdp_modes"]["kept"] == kept.tolist()
    assert kept.shape == (8, 3)


def test_one_process_goes_on_from_a_sharded_checkpoint(two, folder, alone, monkeypatch):
    monkeypatch.setattr(rank_cases, "FOLDER", folder)
    result = rank_cases.fsdp_resumed()
    assert flat(result["parameters"]) == close(two[0]["fsdp_saving"]["whole"]["parameters"])
    assert flat(result["parameters"]) == close(alone["parameters"])


def test_sharded_ranks_go_on_from_a_plain_file(two, alone):
    assert two[0]["fsdp_from_a_file"]["parameters"] == two[1]["fsdp_from_a_file"]["parameters"]
    assert flat(two[0]["fsdp_from_a_file"]["parameters"]) == close(alone["parameters"])


def test_sharded_ranks_go_on_from_what_ddp_ranks_left_in_an_open_window(two):
    first, second = (result["fsdp_from_ddp"] for result in two)
    assert first["resumed"]["parameters"] == second["resumed"]["parameters"]
    assert flat(first["resumed"]["parameters"]) == close(first["whole"]["parameters"])


def test_a_sharded_checkpoint_becomes_a_plain_one(two, folder):
    checkpoint_io.consolidate(folder / "background-True.ckpt", folder / "consolidated.ckpt")
    consolidated = checkpoint_io.load_checkpoint(folder / "consolidated.ckpt")
    plain = checkpoint_io.load_checkpoint(folder / "plain.ckpt")
    assert consolidated.keys() == plain.keys() and consolidated["state_dict"].keys() == plain["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        assert torch.allclose(consolidated["state_dict"][name], value, rtol=0, atol=1e-12)
    assert consolidated["optimizer_states"][0]["state"].keys() == plain["optimizer_states"][0]["state"].keys()
    assert consolidated["optimizer_states"][0]["param_groups"] == plain["optimizer_states"][0]["param_groups"]


def test_sharded_checkpoints_are_averaged(two, folder):
    averaged = average_checkpoints([folder / "background-True.ckpt", folder / "background-False.ckpt"])
    one = checkpoint_io.load_checkpoint(folder / "background-False.ckpt")["state_dict"]
    assert averaged.keys() == one.keys()
    assert torch.allclose(averaged["first.weight"], one["first.weight"], rtol=0, atol=1e-15)


def test_after_a_fit_a_checkpoint_is_saved_and_waited_for(two, folder):
    """By the time that `save_checkpoint` returned it was whole; it holds what the fit ended with."""
    assert [result["fsdp_saves_late"]["intact"] for result in two] == [True, True]
    assert two[0]["fsdp_saves_late"]["global_step"] == 1


def test_a_save_after_an_exception_is_refused_not_waited_for_forever(two):
    for result in two:
        assert (
            "RuntimeError: no sharded checkpoint can be saved after an exception"
            in (result["fsdp_saves_late"]["error"])
        )


def test_a_flipped_bit_is_found_by_one_rank_and_refused_by_both(two):
    first, second = (result["fsdp_damaged"] for result in two)
    assert first == second
    assert first.startswith("CheckpointError: ") and "late.ckpt: the data file __1_0.distcp, at byte" in first


@pytest.mark.slow
def test_three_ranks_go_on_from_a_sharded_checkpoint_of_two(two, folder):
    run = torchrun(3, "rank_cases.py", folder, "fsdp_resumed")
    assert run.returncode == 0, run.stdout
    results = [result["fsdp_resumed"] for result in results_of(folder, 3)]
    assert results[0]["parameters"] == results[1]["parameters"] == results[2]["parameters"]
    ids = [uid for result in results for batch in result["trained"] for uid in batch]
    assert len(ids) == 27 - 16 + 27 and len(set(ids)) == 27
