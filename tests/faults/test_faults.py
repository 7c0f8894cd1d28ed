"""Runs that are killed, stopped and starved of disk, as real processes; the same command then ends in the same bits."""

import os
import random
import signal

import pytest
from toy_lab import assert_same_end, checkpoint, hidden_files, make_recipe, run, seen, start, status, wait_for

COMMANDS = {
    "one": ("train", "train.yaml"),
    "two": ("train", "train.yaml", "two_optimizers.yaml"),
    "workers": (
        "train", "train.yaml", "+dataloader.train.num_workers=2", "+dataset.train.0.data_src_args.noise=0.5",
    ),
    "staying": (
        "train", "train.yaml", "+dataloader.train.num_workers=1", "+dataloader.train.persistent_workers=true",
        "+dataset.train.0.data_src_args.noise=0.5",
    ),
    "background": ("train", "train.yaml", "+trainer.async_save=true"),
}  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder of a run of a command that nothing disturbed, made once."""
    folders = {}

    def get(kind):
        kind = "one" if kind == "background" else kind  # which thread writes a file is no difference
        if kind not in folders:
            folders[kind] = make_recipe(tmp_path_factory.mktemp(kind) / "recipe")
            code, output = run(folders[kind], *COMMANDS[kind])
            assert code == 0, output
        return folders[kind]

    return get


def finish(folder, kind, undisturbed):
    """Give the same command again; the run then ends as one that nothing disturbed, and nothing is left lying about."""
    code, output = run(folder, *COMMANDS[kind])
    assert code == 0, output
    assert_same_end(folder, undisturbed(kind))
    assert hidden_files(folder) == []
    return output


# ---- killed --------------------------------------------------------------------------------------------------------


def kill_at_random_moments(folder, command, times, seed):
    """SIGKILL the command again and again, wherever in its code it is then."""
    moments, killed = random.Random(seed), 0
    for _ in range(times):
        after = f"{moments.uniform(0.05, 0.5):.3f}"
        code, output = run(folder, *command, TOY_KILL_AFTER=after, TOY_BATCH_SECONDS="0.02")
        assert code in (-signal.SIGKILL, 0), output
        killed += code != 0
    return killed


@pytest.mark.parametrize("kind", ["one", "two", "workers"])
@pytest.mark.slow
def test_killed_at_random_moments(kind, tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    assert kill_at_random_moments(folder, COMMANDS[kind], times=3, seed=kind) >= 1
    finish(folder, kind, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_at_many_random_moments(kind, seed, tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    assert kill_at_random_moments(folder, COMMANDS[kind], times=8, seed=f"{kind}{seed}") >= 2
    finish(folder, kind, undisturbed)


@pytest.mark.parametrize(
    "kind, save",
    [
        ("one", 4),
        pytest.param("one", 1, marks=pytest.mark.slow),
        pytest.param("one", 6, marks=pytest.mark.slow),
        pytest.param("background", 4, marks=pytest.mark.slow),
    ],
)
def test_killed_while_a_checkpoint_is_written(kind, save, tmp_path, undisturbed):
    """The first there is, one within an epoch, and one at an epoch's end: the files before it are untouched."""
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS[kind], TOY_KILL_IN_SAVE=str(save))
    assert code == -signal.SIGKILL, output
    assert len(hidden_files(folder)) == 1, "what was being written lies beside the name that it was to have"
    for path in (folder / "exp").rglob("*.ckpt"):
        assert "state_dict" in checkpoint(folder, path.relative_to(folder / "exp"))
    finish(folder, kind, undisturbed)


def test_what_is_killed_left_a_status_that_says_where_it_was(tmp_path):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], TOY_SIGNALS="KILL@12")
    assert code == -signal.SIGKILL, output
    found = status(folder)
    assert list(seen(folder))[-1][0] == 1
    assert (found["status"], found["epoch"], found["epochs_done"], found["error"]) == ("running", 1, 1, None)
    assert found["global_step"] > 0


def test_a_truncated_newest_checkpoint_is_told_and_the_one_before_it_is_used(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    assert run(folder, *COMMANDS["one"], TOY_SIGNALS="TERM@20")[0] == 128 + signal.SIGTERM
    newest = folder / "exp" / "last.ckpt"
    os.truncate(newest, newest.stat().st_size // 2)
    output = finish(folder, "one", undisturbed)
    assert "Checkpoint passed over" in output and "truncated" in output
    assert "Restored all states from the checkpoint at" in output


# ---- no room -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", pytest.param("background", marks=pytest.mark.slow)])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(kind, tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS[kind], TOY_FULL_AT="16")
    assert code == 1
    assert "the checkpoint could not be written: [Errno 27] File too large" in output.splitlines()[-1]
    assert status(folder)["status"] == "failed"
    assert status(folder)["error"].startswith("CheckpointError: ")
    assert hidden_files(folder) == []
    # The last one before the disk was full; in the background the one of step 6 may still be on its way by then.
    assert checkpoint(folder)["global_step"] in ([6] if kind == "one" else [3, 6])
    finish(folder, kind, undisturbed)


def averages(folder):
    return [path.name for path in (folder / "exp").glob("*.pth")]


@pytest.mark.slow
def test_a_disk_without_room_for_the_average_is_a_clear_error_and_the_same_command_makes_it(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], TOY_FULL_AT="end")
    error = "exp/valid.loss.ave_2best.pth: the checkpoint could not be written: [Errno 28] No space left on device"
    assert code == 1 and output.splitlines()[-1].endswith(error)
    assert (status(folder)["status"], status(folder)["error"]) == ("failed", f"CheckpointError: {error}")
    assert averages(folder) == [] and not list((folder / "exp").glob(".averaging.*"))
    finish(folder, "one", undisturbed)
    assert averages(folder) == ["valid.loss.ave_2best.pth"]


@pytest.mark.slow
def test_a_signal_ends_a_run_by_that_signal_also_without_room_for_the_average(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], TOY_FULL_AT="end", TOY_SIGNALS="TERM@12")
    assert code == 128 + signal.SIGTERM
    assert "ave_1best.pth: the checkpoint could not be written: [Errno 28] No space left on device" in output
    assert (status(folder)["status"], status(folder)["signal"]) == ("interrupted", "SIGTERM")
    finish(folder, "one", undisturbed)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param({"TOY_READ_ONLY_AT": "16"}, marks=pytest.mark.slow),
        {"TOY_READ_ONLY_AT": "12", "TOY_SIGNALS": "TERM@12"},
    ],
    ids=["run", "signal"],
)
def test_a_disk_that_becomes_read_only_is_a_clear_error(place, tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], **place)
    assert code == 1
    assert "the checkpoint could not be written: [Errno 30] Read-only file system" in output.splitlines()[-1]
    assert f"{folder / 'exp' / '.lock'}: could not be removed: " in output
    assert "It locks nothing any more" in output
    finish(folder, "one", undisturbed)


# ---- stopped -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, name, code",
    [
        ("one", "INT", 130),
        pytest.param("two", "TERM", 143, marks=pytest.mark.slow),
        pytest.param("workers", "USR1", 138, marks=pytest.mark.slow),
        pytest.param("staying", "TERM", 143, marks=pytest.mark.slow),
        pytest.param("two", "INT", 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_in_order(kind, name, code, tmp_path, undisturbed):
    """At the 12th batch, the 5th of the second epoch: in the midst of an accumulation window."""
    folder = make_recipe(tmp_path / "recipe")
    ended_with, output = run(folder, *COMMANDS[kind], TOY_SIGNALS=f"{name}@12")
    assert ended_with == code, output
    assert status(folder)["status"] == "interrupted"
    assert (status(folder)["signal"], status(folder)["error"]) == (f"SIG{name}", None)
    assert list(seen(folder))[-1] == (1, 4)
    assert checkpoint(folder)["loops"]["espnet3_lite"]["batches_done"] == 5
    assert [path.name for path in (folder / "exp").glob("*.pth")] == ["valid.loss.ave_1best.pth"]
    finish(folder, kind, undisturbed)
    assert [path.name for path in (folder / "exp" / "lightning_logs").iterdir()] == ["version_0"], "one log for both"


def test_a_signal_from_outside_at_any_moment(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    process = start(folder, *COMMANDS["one"], TOY_BATCH_SECONDS="0.1")
    wait_for(lambda: (folder / "seen.txt").exists() and len(seen(folder)) >= 4, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=120)
    assert process.exitcode == 128 + signal.SIGTERM
    finish(folder, "one", undisturbed)


@pytest.mark.slow
def test_two_quick_interrupts_end_the_run_at_once(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], TOY_SIGNALS="INT,INT@9")
    assert code == 130
    assert list(seen(folder))[-1] == (1, 0), "the batch in work was left alone"
    assert status(folder)["status"] == "interrupted"
    finish(folder, "one", undisturbed)


# ---- failed --------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_model_is_shown_whole(tmp_path, undisturbed):
    folder = make_recipe(tmp_path / "recipe")
    code, output = run(folder, *COMMANDS["one"], "+model.fail_at=12")
    assert code == 1
    assert "Traceback (most recent call last)" in output and 'toy.py", line' in output
    assert "ZeroDivisionError: the toy was told to fail here" in output.splitlines()
    assert status(folder)["status"] == "failed"
    assert status(folder)["error"] == "ZeroDivisionError: the toy was told to fail here"
    finish(folder, "one", undisturbed)
