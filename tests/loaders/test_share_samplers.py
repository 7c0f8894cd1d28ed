"""Who gets which sample: each once, in an order that the number of ranks does not change, whatever the numbers are."""

import itertools

import pytest

from espnet3_lite.loaders.samplers import EpochSampler, ShareSampler, global_seed, share_of


def shares(count, step_size, world_size, split="samples", position=0, **settings):
    """What each rank gets, step by step; None for a stand-in."""
    source = count if isinstance(count, list) else range(count)
    result = []
    for rank in range(world_size):
        sampler = ShareSampler(source, step_size, world_size, rank, split, **settings)
        sampler.position = position
        result.append([None if sampler.marks.popleft()[0] else batch for batch in sampler])
    return result


@pytest.mark.parametrize("count, batch_size, world_size", list(itertools.product([1, 7, 8, 25], [1, 3], [1, 2, 3, 5])))
def test_each_sample_is_trained_on_once(count, batch_size, world_size):
    by_rank = shares(count, batch_size * world_size, world_size)
    steps = list(zip(*by_rank, strict=True))  # equally many on all ranks
    assert len(steps) == -(-count // (batch_size * world_size))
    in_order = [item for step in steps for batch in step if batch is not None for item in batch]
    assert in_order == list(range(count))  # and so in the order of one process
    assert all(len(batch) == batch_size for step in steps[:-1] for batch in step)
    sizes = [0 if batch is None else len(batch) for batch in steps[-1]]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("first, second", [(2, 3), (2, 1), (2, 4), (3, 2), (1, 3)])
def test_another_number_of_ranks_goes_on_where_these_stopped(first, second):
    seen = [item for rank in shares(23, 2 * first, first) for batch in rank[:2] for item in batch]
    rest = shares(23, 2 * second, second, position=2 * 2 * first)
    seen += [item for rank in rest for batch in rank if batch is not None for item in batch]
    assert sorted(seen) == list(range(23))


def test_whole_batches_are_given_away_in_turn():
    batches = [["a", "b"], ["c"], ["d", "e", "f"]]
    assert shares(batches, 2, 2, "batches") == [[["a", "b"], ["d", "e", "f"]], [["c"], None]]


def test_global_batches_are_split():
    batches = [["a", "b", "c"], ["d"], ["e", "f"]]
    assert shares(batches, 1, 2, "batch") == [[["a", "c"], ["d"], ["e"]], [["b"], None, ["f"]]]


def test_a_stand_in_is_the_first_ranks_batch():
    sampler = ShareSampler(range(5), 4, 2, 1, "samples")
    assert list(sampler) == [[2, 3], [4]] and list(sampler.marks) == [(False, False), (True, True)]


def test_without_stand_ins_a_rank_has_a_batch_less():
    assert list(ShareSampler(range(5), 4, 2, 1, "samples", stand_ins=False)) == [[2, 3]]


def test_drop_last_drops_what_is_no_full_step_over_all_ranks():
    assert shares(11, 4, 2, drop_last=True) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_share_of_fewer_items_than_ranks():
    assert [share_of([1, 2], 3, rank) for rank in range(3)] == [[1], [2], []]


def test_the_order_depends_on_seed_and_epoch_alone(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert global_seed() == 3
    sampler, given = EpochSampler(50), EpochSampler(range(50), seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        given.set_epoch(epoch)
        orders.append(list(sampler))
        assert orders[-1] == list(given) != list(EpochSampler(50, seed=4))
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == 50


def test_the_length_is_asked_for_at_each_epoch():
    data = [1, 2]
    sampler = EpochSampler(data)
    data.append(3)
    assert sorted(sampler) == [0, 1, 2]
