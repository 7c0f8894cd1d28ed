"""How the ranks find out that they have started anew; threads with a store in memory stand for them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from espnet3_lite.distributed import group, rank


def start(store, restarts, monkeypatch, patience=60):
    """All ranks start with the store, rank zero last: how often each says that they have started, and been restarted.

    Args:
        restarts: What each machine's torchrun has counted.
    """
    own = threading.local()
    monkeypatch.setattr(group, "times_restarted", lambda: restarts[own.rank])

    def run(number):
        own.rank = number
        return group._count_starts(store, number, len(restarts), timedelta(seconds=patience))

    with ThreadPoolExecutor(len(restarts)) as threads:
        return list(threads.map(run, reversed(range(len(restarts)))))


def test_ranks_count_their_starts_together_whatever_each_machine_has_counted(monkeypatch):
    store = group.dist.HashStore()
    assert start(store, [0, 0, 0], monkeypatch) == [(1, 0)] * 3
    assert start(store, [0, 1, 0], monkeypatch) == [(2, 2)] * 3  # the others have only followed
    assert start(store, [0], monkeypatch) == [(3, 2)]  # two machines are lost
    assert start(store, [0, 0], monkeypatch) == [(4, 3)] * 2  # one is back


def test_a_restart_is_known_where_the_store_is_new(monkeypatch):
    assert start(group.dist.HashStore(), [0, 2], monkeypatch) == [(1, 2)] * 2


def test_a_rank_that_nobody_joins_ends(monkeypatch):
    with pytest.raises(TimeoutError, match="Rank 0 of 2 has waited 0:00:00.050000 for the other ranks to start"):
        group._count_starts(group.dist.HashStore(), 0, 2, timedelta(seconds=0.05))


def test_one_process_was_restarted_if_torchrun_says_so(monkeypatch):
    assert not rank.times_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert rank.times_restarted() == 1


class Between(group.dist.HashStore):
    """A store in which another rank comes, goes on and fails between two looks of the rank that waits."""

    def check(self, keys):
        if self.other is not None:
            other, self.other = self.other, None
            other()
        return super().check(keys)


@pytest.mark.parametrize("comes", [True, False])
def test_a_rank_that_failed_after_a_meeting_was_there(comes):
    store = Between()
    waits, fails = (group.RankStore(store, rank, 2) for rank in range(2))

    def other():
        if comes:
            fails.meet("a barrier", parted=pytest.fail)
        fails.report_failure("rank 1 ended")

    store.other = other
    if comes:
        waits.meet("a barrier", parted=pytest.fail)
    else:
        with pytest.raises(group.OtherRankError, match="rank 1 ended\nRank 0, which waited for all ranks at a barrier"):
            waits.meet("a barrier", parted=pytest.fail)
    assert waits.failure() == "rank 1 ended"
