"""What ends a wait for another rank: that it comes, however late; a timeout; SIGTERM, though no handler can run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_lab import results_of, torchrun

from espnet3_lite.distributed import group


@pytest.mark.slow
def test_long_work_of_rank_zero_does_not_run_into_the_timeout(tmp_path):
    """It prepares data, saves and averages for 4.5 s each; a collective waits for 3 s."""
    run = torchrun(2, "rank_waits.py", tmp_path, "long_work")
    assert run.returncode == 0, run.stdout
    assert results_of(tmp_path, 2) == [{"step": 4, "averages": ["x.ave_1best.pth"]}] * 2


@pytest.mark.slow
def test_a_rank_that_does_not_come_in_time_ends_the_run_with_the_settings_name(tmp_path):
    run = torchrun(2, "rank_waits.py", tmp_path, "late")
    assert run.returncode == 1
    assert "OtherRankError: rank 0 votes on a training batch, and has waited for the other ranks" in run.stdout
    assert "Trainer(dist_timeout=...) allows (0:00:03)" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("place", ["work", "backward"])
def test_the_rank_that_hangs_is_named_and_says_where(tmp_path, place):
    """Rank 1 of three hangs in its own code, which SIGTERM does not end."""
    run = torchrun(3, "rank_waits.py", tmp_path, f"hangs_in_{place}")
    assert run.returncode == 1
    for rank in (0, 2):
        assert f"OtherRankError: rank {rank} " in run.stdout
    assert run.stdout.count("rank 1 has not come") == 2
    assert run.stdout.count("rank 0 has not come") == run.stdout.count("rank 2 has not come") == 0
    told = run.stdout.partition("SIGTERM, since another rank has failed. Rank 1 still works:")[2]
    assert "in hang_here" in told


@pytest.mark.slow
def test_sigterm_ends_ranks_that_wait_in_a_collective_and_no_file_is_cut(tmp_path):
    """torchrun, which hands the signal on, would wait for 30 s and then kill; `signal_grace` is 1 s here."""
    script = Path(__file__).parents[1] / "helpers" / "rank_waits.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.Popen(
        [*command, str(tmp_path), "stuck"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    places = [tmp_path / f"waits-{rank}" for rank in (0, 1)]
    until = time.monotonic() + 60
    while not all(place.exists() and place.read_text() for place in places):
        assert time.monotonic() < until and run.poll() is None, run.communicate()[0]
        time.sleep(0.1)
    time.sleep(1)  # now both wait
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output, _ = run.communicate(timeout=60)
    assert time.monotonic() - began < 20, output
    assert "ended by SIGTERM, 1 s after it, since it still waited for the other ranks" in output
    assert (tmp_path / "written").read_text() == "whole"
    for place in places:
        with pytest.raises(ProcessLookupError):
            os.kill(int(place.read_text()), 0)


class Calls:
    """Stands for `torch.distributed`, and notes how the group is left."""

    def __init__(self, backend):
        self.backend, self.made = backend, []
        self.distributed_c10d = self

    def is_initialized(self):
        return True

    def get_backend_config(self):
        return self.backend

    def destroy_process_group(self):
        self.made.append("destroy")

    def _abort_process_group(self):
        self.made.append("abort")


@pytest.mark.parametrize(
    ("backend", "failed", "left_by"),
    [
        ("cpu:gloo,cuda:nccl", True, "abort"),
        ("cpu:gloo,cuda:nccl", False, "destroy"),
        ("cpu:gloo,cuda:gloo", True, "destroy"),
    ],
)
def test_a_failed_rank_does_not_wait_for_outstanding_work_of_nccl(monkeypatch, backend, failed, left_by):
    calls, store = Calls(backend), group.RankStore(group.dist.HashStore(), 0, 1)
    store.failed = failed
    monkeypatch.setattr(group, "dist", calls)
    monkeypatch.setattr(group, "_joined", store)
    group.leave_process_group()
    assert calls.made == [left_by]


def test_a_failure_of_an_earlier_call_is_not_taken_for_one_of_this_call():
    store = group.RankStore(group.dist.HashStore(), 0, 1)
    store.begin_call()
    assert store.report_failure("rank 0 ended: first") == store.report_failure("rank 0 ended: second")
    assert store.failed and store.failure() == "rank 0 ended: first"
    store.begin_call()
    assert not store.failed and store.failure() == ""
