"""Two real processes against one: equal parameters, agreed decisions, no sample lost."""

import pytest
import rank_cases
import torch
from rank_lab import results_of
from rank_launch import Ranks, launched

EQUAL = [
    "single", "single_float32", "single_accumulating", "single_unused", "named", "named_float32", "named_accumulating",
    "named_other_order", "plain", "manual", "thawed", "thawed_by_batch", "thawed_in_windows",
    "thaws_itself", "thaws_itself_unused", "thaws_itself_named", "nan_single", "nan_accumulating", "nan_named",
]  # fmt: skip
UNEVEN = ["stream_7_and_5", "stream_7_and_5_accumulating", "stream_sized", "stream_3_and_0", "dealt_by_user"]
OTHERS = [
    "different_optimizers",
    "batch_of_none",
    "orders",
    "values",
    "statistics",
    "collectives",
    "written",
    "saved_in_background",
    "nan_weight",
    "evaluated_streams",
    "synced_at_once",
    "swa_of_seven_batches",
]
RANKS = Ranks("rank_cases", *EQUAL, *UNEVEN, *OTHERS)


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """Each rank's results of all cases."""
    return results_of(launched(request, tmp_path_factory), 2)


def flat(parameters):
    return [number for values in parameters for number in values]


@pytest.mark.parametrize("case", EQUAL)
def test_two_ranks_reach_the_parameters_of_one_process(two, case):
    alone = getattr(rank_cases, case)()
    first, second = (result[case] for result in two)
    assert first["parameters"] == second["parameters"]
    tolerance = 1e-6 if "float32" in case else 1e-12
    assert flat(first["parameters"]) == pytest.approx(flat(alone["parameters"]), abs=tolerance, rel=0)
    for key in ("global_step", "updates"):
        assert first[key] == second[key] == alone[key]
    assert alone["global_step"] > 0
    assert sorted(flat(first["trained"] + second["trained"])) == sorted(flat(alone["trained"]))


def test_every_validation_sample_counts_once(two):
    """13 samples in steps of 6: the last step has one sample, and so one rank has a batch less."""
    alone = rank_cases.single()
    first, second = (result["single"] for result in two)
    assert sorted(first["validated"] + second["validated"]) == sorted(alone["validated"])
    for name in ("valid/loss", "valid/square"):
        assert first["metrics"][name] == second["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-12)


def test_a_stand_in_leaves_no_trace(two):
    """25 samples in steps of 8: in the last step of each epoch the second rank has nothing."""
    first, second = (result["named"] for result in two)
    assert [len(batch) for batch in first["trained"]] == [4, 4, 4, 1] * 2
    assert [len(batch) for batch in second["trained"]] == [4, 4, 4] * 2
    assert (first["forwards"], second["forwards"]) == (8, 6)  # a buffer, put back


@pytest.mark.parametrize("case", ["nan_single", "nan_accumulating", "nan_named"])
def test_a_nan_on_one_rank_is_reported_with_rank_and_utterances(two, case):
    (epoch_0, epoch_1), silent = two[0][case]["warnings"], two[1][case]["warnings"]
    assert "rank 1: loss" in epoch_0 and "rank 0" not in epoch_0
    assert "is nan (utterances utt12, utt13, utt14, utt15)" in epoch_0
    assert epoch_0.startswith("epoch 0, batch 1:") and epoch_1.startswith("epoch 1, batch 1:")
    assert silent == []
    assert two[0]["nan_single"]["global_step"] == 6  # of 8 batches


def test_different_optimizers_are_one_error_on_both_ranks(two):
    first, second = (result["different_optimizers"]["error"] for result in two)
    assert first == second
    assert "MisconfigurationException: the ranks differ:\n" in first
    assert "\n  the model's losses in this batch: second, first on rank 0, second on rank 1\n" in first


def test_a_batch_that_is_none_on_one_rank_is_an_error_on_both(two):
    """The other rank waits in its forward pass for one that was left out."""
    first, second = (result["batch_of_none"]["error"] for result in two)
    assert first == second
    assert "\n  the model's losses in this batch: the optimizer on rank 0, none on rank 1\n" in first


@pytest.mark.parametrize("case", UNEVEN)
def test_ranks_that_run_out_wait_with_zero_weight(two, case):
    first, second = (result[case] for result in two)
    counts = {"stream_3_and_0": (3, 0), "stream_sized": (5, 7)}.get(case, (7, 5))
    assert (len(first["trained"]), len(second["trained"])) == (2 * counts[0], 2 * counts[1])
    everything = [f"utt{number}" for number in range(sum(counts))]
    assert sorted(flat(first["trained"] + second["trained"])) == sorted(2 * everything)
    assert first["parameters"] == second["parameters"]
    windows = 4 if "accumulating" in case else max(counts)
    assert first["global_step"] == second["global_step"] == 2 * windows
    assert (first["forwards"], second["forwards"]) == (2 * counts[0], 2 * counts[1])


def test_an_epoch_without_steps_has_none_on_a_rank_without_data_either(two):
    first, second = (result["swa_of_seven_batches"] for result in two)
    assert first["parameters"] == second["parameters"]
    assert first["global_step"] == second["global_step"] == 2 * 4


def test_a_rank_without_any_data_changes_nothing(two):
    """Three batches on one rank and none on the other: as if there were one process."""
    alone = rank_cases.uneven([3])
    assert flat(two[0]["stream_3_and_0"]["parameters"]) == pytest.approx(flat(alone["parameters"]), abs=1e-12, rel=0)


def test_loaders_of_every_kind_are_dealt_out(two):
    first, second = (result["orders"] for result in two)
    utt = [f"utt{number}" for number in range(11)]
    for name in first.keys() - {"weighted", "drop_last"}:
        assert sorted(flat(first[name] + second[name])) == sorted(utt), name
    assert first["sequential"] == [utt[0:2], utt[4:6], utt[8:10]] and second["sequential"] == [
        utt[2:4],
        utt[6:8],
        [utt[10]],
    ]
    assert len(flat(first["drop_last"] + second["drop_last"])) == 8
    assert first["shuffled"] != first["sequential"] and first["workers"] == first["shuffled"]
    assert first["user_batches"] == first["list"] == [utt[0:3], utt[4:6], [utt[10]]]
    assert first["no_batches"] == [[utt[i]] for i in (0, 2, 4, 6, 8, 10)]


def test_batches_by_size_stay_whole_or_are_split(two):
    """ESPnet's order: `per_gpu` gives whole batches away in turn, `global` splits each."""
    first, second = (result["orders"] for result in two)
    steps = [flat(pair) for pair in zip(first["per_gpu"], second["per_gpu"], strict=False)]
    assert len(steps) == 2 and len(first["per_gpu"]) == 3
    together = [batch for batch in (*first["per_gpu"], *second["per_gpu"])]
    assert sorted(map(len, together)) == [1, 1, 2, 3, 4]
    whole = [["utt10"], ["utt0", "utt1", "utt2"], ["utt3"], ["utt4", "utt5"], ["utt6", "utt7", "utt8", "utt9"]]
    assert [first["per_gpu"][0], second["per_gpu"][0], first["per_gpu"][1]] == whole[:3]
    assert first["global"] == [["utt10"], ["utt0", "utt2"], ["utt3"], ["utt4"], ["utt6", "utt8"]]
    assert second["global"] == [["utt1"], ["utt5"], ["utt7", "utt9"]]


def test_what_is_drawn_is_rank_zeros(two):
    """The ranks' random states differ, and so would their draws. This one is what one process would draw."""
    first, second = (result["orders"]["weighted"] for result in two)
    assert [len(batch) for batch in first] == [2, 2, 2] and [len(batch) for batch in second] == [2, 2, 1]
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_()  # as a DataLoader does for its workers
    drawn = [f"utt{number}" for number in torch.utils.data.WeightedRandomSampler([1.0] * 11, 11)]
    assert [drawn[0:2], drawn[4:6], drawn[8:10]] == first
    assert [drawn[2:4], drawn[6:8], [drawn[10]]] == second


def test_values_are_agreed_upon(two):
    for result in two:
        values = result["values"]
        assert values["own"] == 0.5 and values["same"] is True
        assert values["reduced"] == [1.5, 3.0, 1.0, 2.0]
        assert values["gathered"] == [0, 1] and values["any"] == [True, False]


def test_a_fit_ends_with_one_model_on_all_ranks(two):
    """Buffers too: a run that goes on from the last checkpoint and has nothing left to train has rank zero's."""
    assert two[0]["statistics"] == two[1]["statistics"] != [0.0, 0.0, 0.0]


def test_one_ranks_wish_to_stop_stops_both_after_the_next_batch(two):
    assert two[0]["values"]["batches"] == two[1]["values"]["batches"] == [0, 1, 2]
    assert two[0]["values"]["steps"] == two[1]["values"]["steps"] == 3


def test_one_small_collective_a_step_besides_the_gradients(two):
    """Four batches: four votes, of nine numbers for each rank, whatever the number of optimizers."""
    for result in two:
        counted = result["collectives"]
        votes = [["all_reduce", 9 * 2]] * 4
        assert counted["single"]["python"] == votes
        assert counted["single"]["all"] == 4 + 4  # DDP's one bucket each time
        # Once a run, after its first gradients, the ranks meet before DDP arranges its buckets, by two messages.
        assert counted["accumulating"]["python"] == votes + votes[:1]
        assert counted["accumulating"]["all"] == 5 + 2 + 1  # no gradients within the window
        # Three optimizers: the vote, then one bucket for those that step, with a flag for each of their parameters.
        assert counted["named"]["python"] == [["all_reduce", 9 * 2], ["all_reduce", 9 + 2 + 32 + 2]] * 4
        assert counted["named"]["all"] == 8


def test_rank_zero_alone_writes_prints_and_logs(two):
    first, second = (result["written"] for result in two)
    assert any("metrics.csv" in path for path in first["files"]) and any(".ckpt" in path for path in first["files"])
    assert "Epoch 1" in first["output"] and "test metric" in first["output"]
    assert second["files"] == [] and second["output"] == ""
    for key in ("log_dir", "best", "results"):  # but knows of it all
        assert second[key] == first[key] and first[key]


def test_files_that_are_written_in_the_background_are_the_same(two):
    for result in two:
        found = result["saved_in_background"]
        assert "last.ckpt" in found["False"] and any(name.endswith("best.pth") for name in found["False"])
        assert found["True"] == found["False"]


def test_a_value_logged_with_sync_dist_is_every_ranks_mean(two):
    alone = rank_cases.plain()
    for result in two:
        for name in ("train/loss_step", "train/loss_epoch"):
            assert result["plain"]["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-12)


def test_what_a_step_reduces_at_once_is_reduced_once_in_the_epochs_value(two):
    """Three batches. Rank 0 logs 0, 1, 2 with weight 1, rank 1 logs 10, 11, 12 with weight 3."""
    for result in two:
        metrics = result["synced_at_once"]["metrics"]
        assert {name: metrics[f"{name}_step"] for name in ("mean", "sum", "min")} == {"mean": 7, "sum": 14, "min": 2}
        assert {name: metrics[name] for name in ("mean", "sum", "min")} == {"mean": 8.5, "sum": 36, "min": 0}
    assert two[0]["synced_at_once"]["metrics"]["zero"] == two[0]["synced_at_once"]["metrics"]["zero_step"] == 5
    assert "zero" not in two[1]["synced_at_once"]["metrics"]


def test_a_weight_that_is_no_number_skips_the_batch(two):
    first, second = two[0]["nan_weight"]["warnings"][:2]
    assert "the ranks' weights are [4.0, nan]" in first and "the ranks' weights are [4.0, -4.0]" in second
    assert two[0]["nan_weight"]["parameters"] == two[1]["nan_weight"]["parameters"]
    assert two[0]["nan_weight"]["global_step"] == 4  # of 6


def test_streams_of_different_lengths_are_validated_sample_by_sample(two):
    first, second = (result["evaluated_streams"] for result in two)
    assert (len(first["validated"]), len(second["validated"])) == (7, 5)
    alone = rank_cases.evaluated_streams()["results"][0]
    for name, value in alone.items():
        assert first["results"][0][name] == second["results"][0][name] == pytest.approx(value, abs=1e-12)
