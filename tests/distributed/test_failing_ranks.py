"""What happens to two real processes when one of them gets a signal, is killed, or fails; and how the run goes on."""

import json
import shutil

import pytest
from rank_lab import results_of, torchrun

STEPS_AN_EPOCH = 5  # 40 samples in batches of 4 on two ranks


def start(processes, folder, restarts=0, code=0, **settings):
    """A run of `rank_run.py`; returns the ended process."""
    folder.mkdir(exist_ok=True)
    run = torchrun(processes, "rank_run.py", folder, json.dumps(settings), restarts=restarts)
    assert run.returncode == code, run.stdout
    return run


def seen(folder, epoch, of="*", attempt="*"):
    """The samples that were trained on in an epoch, by all processes of all runs in a folder."""
    lines = [line.split() for path in folder.glob(f"seen-?of{of}-{attempt}.txt") for line in path.open()]
    return [uid for number, *uids in lines if int(number) == epoch for uid in uids]


def status(folder):
    return json.loads((folder / "run_status.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(place):
    """The result of a run to which nothing happens."""
    start(2, place / "whole")
    assert status(place / "whole")["status"] == "finished"
    first, second = results_of(place / "whole", 2)
    assert first["parameters"] == second["parameters"]
    return first


@pytest.fixture(scope="module")
def stopped(place):
    """The folder of a run that a SIGTERM to rank 1 alone stopped within its second epoch, in an accumulation window."""
    start(2, place / "stopped", signal="SIGTERM", rank=1, at=[1, 2])
    return place / "stopped"


def compare(result, whole):
    """Bit for bit."""
    assert result["parameters"] == whole["parameters"]
    assert result["metrics"] == whole["metrics"]
    assert (result["global_step"], result["updates"]) == (whole["global_step"], whole["updates"])


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_after_the_next_batch(stopped):
    """torchrun saw exit codes 0: it would have started them anew otherwise."""
    assert status(stopped)["status"] == "interrupted" and status(stopped)["signal"] == "on another rank"
    assert (stopped / "checkpoints" / "last.ckpt").exists()
    assert not (stopped / "rank0.json").exists()
    assert [len(seen(stopped, epoch)) for epoch in (0, 1, 2)] == [40, 4 * 2 * 4, 0]


@pytest.mark.slow
def test_the_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stopped, whole, place):
    folder = shutil.copytree(stopped, place / "resumed")
    start(2, folder, resume=True)
    first, second = results_of(folder, 2)
    assert first["resumed_from"] is not None and first["parameters"] == second["parameters"]
    compare(first, whole)
    assert sorted(seen(folder, 1)) == sorted(f"utt{number}" for number in range(40))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(stopped, place):
    folder = shutil.copytree(stopped, place / "three")
    start(3, folder, resume=True)
    assert results_of(folder, 3)[0]["parameters"] == results_of(folder, 3)[2]["parameters"]
    assert len(seen(folder, 1, of=3)) == 40 - 32
    for epoch in (1, 2):
        assert sorted(seen(folder, epoch)) == sorted(f"utt{number}" for number in range(40))


@pytest.mark.slow
def test_a_killed_rank_is_started_anew_from_the_newest_checkpoint(whole, place):
    """SIGKILL: no handler runs, and the other rank loses its connection."""
    run = start(2, place / "killed", restarts=1, signal="SIGKILL", rank=1, at=[1, 2])
    first, second = results_of(place / "killed", 2)
    assert first["parameters"] == second["parameters"]
    compare(first, whole)
    assert len(seen(place / "killed", 0, attempt=1)) == 0  # the first epoch was not trained again
    assert "SIGKILL" in run.stdout or "exitcode: -9" in run.stdout


def test_an_exception_on_one_rank_ends_both_with_its_traceback(place):
    run = start(2, place / "failed", code=1, error="now", rank=1, at=[1, 2])
    others = [line for line in run.stdout.splitlines() if line.startswith("[rank0]")]
    text = "\n".join(others)
    assert "OtherRankError: rank 1 ended by an exception" in text
    assert "ValueError: the data of this rank are broken" in text and "in happen" in text
    assert all(
        f"rank {rank} asked: [2.0, 2.0]" in run.stdout for rank in (0, 1)
    )  # in `on_exception`, without an answer
    # torchrun's own report shows the first failure, with its traceback.
    root_cause = run.stdout.partition("Root Cause")[2]
    assert "rank      : 1" in root_cause and "ValueError: the data of this rank are broken" in root_cause
    assert status(place / "failed")["status"] == "failed"
    assert "the data of this rank are broken" in status(place / "failed")["error"]


@pytest.mark.slow
def test_nobody_has_finished_before_all_have(place):
    """Rank 1 fails in `teardown`, when rank zero is through with its own."""
    run = start(2, place / "torn", code=1, error="in teardown", rank=1)
    assert "OtherRankError: rank 1 ended by an exception" in run.stdout
    assert status(place / "torn")["status"] == "failed"
    assert "the disk of this rank is full" in status(place / "torn")["error"]


@pytest.mark.slow
def test_a_stop_error_in_the_middle_of_a_batch_ends_both_ranks(place):
    run = start(2, place / "left", code=1, error="stop within a batch", rank=1, at=[1, 2])
    assert "RuntimeError: StopTrainingError on rank 1 outside a hook" in run.stdout
    assert "OtherRankError: rank 1 ended by an exception" in run.stdout
    assert "StopTrainingError on rank 1 outside a hook" in status(place / "left")["error"]


@pytest.mark.slow
def test_a_signal_to_one_rank_in_a_test_ends_both(place):
    """That rank at once; the other as soon as it waits for it."""
    run = start(2, place / "tested", code=1, call="test", signal="SIGTERM", rank=1, at=[0, 2])
    assert "rank 1 tested 2 batches, interrupted" in run.stdout
    assert "exitcode  : 143" in run.stdout


@pytest.mark.slow
def test_a_signal_to_torchrun_itself_reaches_the_ranks(place, whole):
    """As when a scheduler cancels a job: torchrun hands SIGTERM on, and waits 30 s for the ranks to save."""
    start(2, place / "cancelled", code=1, signal="SIGTERM", to="torchrun", rank=1, at=[1, 2])
    assert status(place / "cancelled")["status"] == "interrupted"
    assert status(place / "cancelled")["signal"] == "SIGTERM"
    start(2, place / "cancelled", resume=True)
    compare(results_of(place / "cancelled", 2)[0], whole)


@pytest.mark.slow
def test_a_rank_that_is_busy_elsewhere_is_ended_by_torchrun(place):
    """Rank 0 sleeps for ten minutes and waits for nobody: torchrun ends it after its 30 seconds."""
    run = start(2, place / "busy", code=1, error="while others work", rank=1, at=[1, 2])
    assert "ValueError: the data of this rank are broken" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_goes_on_with_one_rank_or_four(stopped, place, processes):
    folder = shutil.copytree(stopped, place / f"on-{processes}")
    start(processes, folder, resume=True)
    for epoch in (1, 2):
        assert sorted(seen(folder, epoch)) == sorted(f"utt{number}" for number in range(40))


@pytest.mark.slow
def test_named_optimizers_with_open_windows_go_on_bit_for_bit(place):
    """A preemption (SIGUSR1), and then a kill in the resumed run."""
    named = [["second", "first"], ["second"]]
    start(2, place / "named-whole", named=named)
    start(2, place / "named", named=named, signal="SIGUSR1", rank=0, at=[0, 3])
    assert status(place / "named")["signal"] == "SIGUSR1"
    start(2, place / "named", restarts=1, named=named, resume=True, signal="SIGKILL", rank=0, at=[2, 1])
    compare(results_of(place / "named", 2)[1], results_of(place / "named-whole", 2)[1])


@pytest.mark.slow
def test_a_process_that_ends_at_once_after_a_collective_ends_in_order():
    """Without a wait at the end gloo's thread aborts the process: exit code -6."""
    run = torchrun(2, "rank_leaves.py")
    assert run.returncode == 0, run.stdout
