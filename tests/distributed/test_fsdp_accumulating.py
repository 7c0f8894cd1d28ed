"""FSDP2 that reduces gradients once a window, ``FSDPStrategy(sync_each_batch=False)``: the numbers are DDP's."""

import json

import pytest
from rank_lab import results_of, torchrun

#: A launch of half a minute; `test_fsdp.py` has a quicker case.
pytestmark = pytest.mark.slow

UNITS, BATCHES, WINDOWS = 3, 8, 4  # of two epochs


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Each rank's results of all cases."""
    folder = tmp_path_factory.mktemp("accumulating")
    run = torchrun(2, "rank_accumulating_cases.py", folder, timeout=240)
    assert run.returncode == 0, run.stdout
    return results_of(folder, 2)


def flat(parameters):
    return [number for values in parameters for number in values]


def close(parameters, abs=1e-12):
    return pytest.approx(flat(parameters), abs=abs, rel=0)


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        ("windows", WINDOWS),
        ("closing_batch_skipped", WINDOWS),
        ("middle_batch_skipped", WINDOWS),
        ("whole_window_skipped", 2),
        ("short_window_skipped", 2),
        ("validated_within", WINDOWS),
        ("unequal_ranks", 8),
        ("by_weight", WINDOWS),
        ("left_early", 2),
        ("gradient_not_finite", 3),
        ("windows_grow", 4 + 2 + 2),
        ("mixed", WINDOWS),
        ("stopped", WINDOWS),
        ("stopped_after_skipping", WINDOWS),
        ("saved", WINDOWS),
        ("saved_before_backward", WINDOWS),
    ],
)
def test_the_parameters_are_those_of_ddp(two, case, steps):
    ddp, fsdp = two[0][case]["ddp"], two[0][case]["fsdp"]
    assert flat(fsdp["parameters"]) == close(ddp["parameters"], 1e-6 if case == "mixed" else 1e-12)
    assert two[1][case]["fsdp"]["parameters"] == fsdp["parameters"]
    assert fsdp["global_step"] == ddp["global_step"] == steps
    assert fsdp["metrics"] == pytest.approx(ddp["metrics"], abs=1e-6)


@pytest.mark.parametrize(
    ("case", "reductions"),
    [
        ("windows", WINDOWS),
        ("middle_batch_skipped", WINDOWS),
        ("closing_batch_skipped", WINDOWS),  # by a pass of its own
        ("whole_window_skipped", 2),
        ("validated_within", WINDOWS + 2),  # a validation in each epoch finds a window open
    ],
)
def test_each_unit_is_reduced_once_a_window(two, case, reductions):
    for result in two:
        assert result[case]["fsdp"]["reductions"] == UNITS * reductions
        assert result["each_batch"]["reductions"] == UNITS * BATCHES  # by default


def test_how_often_units_are_gathered(two):
    """Twice a batch; once in a batch that is skipped, and the root twice for the window that it would have closed."""
    for result in two:
        assert result["each_batch"]["gathers"] == result["windows"]["fsdp"]["gathers"] == UNITS * BATCHES * 2
        assert result["closing_batch_skipped"]["fsdp"]["gathers"] == UNITS * (6 * 2 + 2) + 2 * 2
        assert result["not_freed"]["gathers"] == UNITS * BATCHES


def test_a_run_that_was_saved_within_a_window_goes_on_bit_for_bit(two):
    for result in two:
        saved = result["saved"]["fsdp"]
        assert saved["resumed"]["parameters"] == saved["parameters"]
        assert saved["resumed"]["global_step"] == saved["global_step"] == WINDOWS


def test_a_module_that_still_holds_gradients_of_a_fit_that_failed_is_refused(two):
    for first, second in (result["failed"] for result in two):
        assert first == "ValueError: boom"
        assert second.startswith("MisconfigurationException: strategy='fsdp' cannot train this module again")
        assert "sync_each_batch=False" in second and second.endswith("Make the module anew")


def test_ranks_with_different_settings_of_the_strategy_are_told(two):
    for result in two:
        assert "strategy, sync_each_batch: True on rank 0, False on rank 1" in result["different"]


def test_a_torch_that_cannot_reduce_at_any_moment_is_refused(two):
    assert two[0]["old_torch"].startswith(
        "MisconfigurationException: strategy='fsdp' with sync_each_batch=False needs a newer torch than 2."
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Starts a run of `rank_run.py` in a folder of that name; returns rank zero's result, or None."""
    place = tmp_path_factory.mktemp("runs")

    def start(name, restarts=0, **settings):
        (place / name).mkdir(exist_ok=True)
        settings = json.dumps({"sync_each_batch": False, **settings})
        run = torchrun(2, "rank_run.py", place / name, settings, restarts=restarts)
        assert run.returncode == 0, run.stdout
        return results_of(place / name, 2)[0] if (place / name / "rank0.json").exists() else None

    return start


@pytest.mark.slow
def test_signals_and_kills(runs):
    """SIGTERM within a window: its checkpoint adds the gradients up in another order. SIGKILL: the same bits."""
    whole = runs("whole")
    assert runs("stopped", signal="SIGTERM", rank=1, at=[1, 2]) is None
    resumed = runs("stopped", resume=True)
    assert resumed["resumed_from"] is not None
    assert resumed["global_step"] == whole["global_step"] == 6
    assert flat(resumed["parameters"]) == close(whole["parameters"])
    killed = runs("killed", restarts=1, signal="SIGKILL", rank=1, at=[1, 2])
    assert killed["resumed_from"] is not None
    assert killed["parameters"] == whole["parameters"]
