"""Loaders on two ranks: random numbers of samples, streams that end, loaders that are used up."""

import loader_rank_cases as cases
import pytest
from rank_lab import results_of
from rank_launch import Ranks, launched

RANKS = Ranks(
    "loader_rank_cases", "augmented", "augmented_corpora", "noisy_stream", "orders_of_their_own",
    "used_up_on_one_rank", "shorter_than_it_says",
)  # fmt: skip


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    return results_of(launched(request, tmp_path_factory), 2)


def test_two_ranks_see_the_samples_that_one_process_sees_noise_included(two, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "FOLDER", str(tmp_path))
    alone = cases.augmented()
    assert sorted(two[0]["augmented"]["seen"] + two[1]["augmented"]["seen"]) == sorted(alone["seen"])
    assert len({noise for _, _, noise in alone["seen"]}) == 24
    both = two[0]["augmented"]["validated"] + two[1]["augmented"]["validated"]
    assert sorted(both) == sorted(alone["validated"])
    assert two[0]["augmented"]["metrics"] == two[1]["augmented"]["metrics"] == {"value/one": 5.5, "value/two": 5.5}


def test_a_resumed_run_sees_the_same_rest(two):
    for rank in two:
        whole, rest = rank["augmented_corpora"]["whole"], rank["augmented_corpora"]["rest"]
        assert rest["seen"] == whole["seen"][-len(rest["seen"]) :] and len(rest["seen"]) == 24 // 2 - 2
        streamed, rest = rank["noisy_stream"]
        assert rest == streamed[len(streamed) // 2 + 1 :]
    first, second = ({row[1] for row in rank["noisy_stream"][0]} for rank in two)
    assert not first & second  # each rank draws numbers of its own


def test_a_resumed_rank_goes_on_in_the_order_that_it_keeps_for_itself(two):
    for rank in two:
        whole, rest = rank["orders_of_their_own"]
        assert sorted(whole[12:]) == list(range(12)) and rest == whole[16:]
    assert two[0]["orders_of_their_own"] != two[1]["orders_of_their_own"]


def test_a_loader_that_one_rank_has_used_up_is_an_error_on_both(two):
    for rank in two:
        assert rank["used_up_on_one_rank"].startswith(
            "MisconfigurationException: rank 1: the loader (Own) gave no batch"
        )


def test_streams_that_end_before_their_length_end_the_epoch_on_both(two):
    for rank in two:
        assert rank["shorter_than_it_says"]["steps"] == 4 and rank["shorter_than_it_says"]["ends"] == [2, 2]
    (said,) = two[0]["shorter_than_it_says"]["said"]
    assert "gave 3 batches, though its length says 9" in said
