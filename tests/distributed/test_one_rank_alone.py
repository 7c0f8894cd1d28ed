"""What one of two real processes alone does or has: both take part, or both refuse. One launch for all of it."""

import pytest
import rank_alone_cases
from rank_lab import results_of, torchrun

#: `test_two_ranks.py` has the quicker cases.
pytestmark = pytest.mark.slow

CASES = [
    "clipped_by_hand", "stop_errors", "refused_loaders", "metric_objects", "means_of_hooks", "monitored_by_one",
    "monitored_in_validation", "agreed", "grown_buffer",
]  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Each rank's results of all cases."""
    folder = tmp_path_factory.mktemp("alone")
    run = torchrun(2, "rank_alone_cases.py", folder, *CASES)
    assert run.returncode == 0, run.stdout
    return results_of(folder, 2)


@pytest.fixture(scope="module")
def same(two):
    """What both ranks came to."""
    first, second = two
    assert first == second
    return first


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_clipped_by_hand_are_those_of_all_ranks(same, algorithm):
    alone, found = rank_alone_cases.clipped_by_hand()[algorithm], same["clipped_by_hand"][algorithm]
    assert found["parameters"] == pytest.approx(alone["parameters"], abs=1e-12, rel=0)
    if algorithm == "norm":
        assert found["norms"] == pytest.approx(alone["norms"], abs=1e-12, rel=0)
        assert min(found["norms"]) > 0.1  # each of them was clipped


@pytest.mark.parametrize("hook", rank_alone_cases.STOPPING_HOOKS)
def test_a_stop_error_of_one_rank_ends_both_after_the_next_vote(same, hook):
    """Four batches an epoch, then a validation. Within a batch it waits for the next one's vote."""
    after_its_vote = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
    steps = 1
    if hook in ("on_train_batch_start", "on_train_batch_end"):
        steps = 2
    elif hook in after_its_vote:
        steps = 3
    elif hook.startswith("on_validation") or hook == "on_train_epoch_end":
        steps = 4
    elif hook in ("on_train_end", "on_fit_end"):
        steps = 8
    heard = [] if hook in ("on_train_end", "on_fit_end") else ["stop"]
    assert same["stop_errors"][hook] == [steps, 2 if steps == 8 else 1, heard, "finished"]


def test_loaders_that_differ_are_refused_on_both_ranks(same):
    refused = same["refused_loaders"]
    for kind in ("training", "validation"):
        assert "MisconfigurationException: the ranks differ:\n  the loader" in refused[kind]
        assert "the loader: 7 samples, 1 a step on rank 0, 5 samples, 1 a step on rank 1\n" in refused[kind]
        assert "use_distributed_sampler=False" in refused[kind]


def test_a_sampler_without_an_end_is_refused_unless_each_rank_draws_its_own(same):
    error = same["refused_loaders"]["endless"]
    assert "MisconfigurationException: a loader's Endless has no `__len__`" in error
    assert "use_distributed_sampler=False" in error
    assert same["refused_loaders"]["endless of each rank's own"] == 3


def test_a_metric_object_is_computed_on_all_ranks_in_one_order(same):
    """Samples 0, 1 and 2, of which the second rank has one; then sample 0, of which it has nothing."""
    assert same["metric_objects"]["values"] == [{"mean": 1.0, "other": 11.0}, {"mean": 0.0, "other": 10.0}]
    assert rank_alone_cases.metric_objects()["values"] == same["metric_objects"]["values"]


def test_a_metric_object_that_the_others_do_not_find_is_one_error(same):
    assert (
        "MisconfigurationException: `self.log('loose', ...)` was given a metric object"
        in (same["metric_objects"]["loose"])
    )


def test_values_of_an_epochs_end_weigh_the_same_on_all_ranks(same):
    assert same["means_of_hooks"] == {"batch": 1.0, "validation": 0.5, "training": 0.5}


def test_what_one_rank_alone_logs_decides_for_all(same):
    """It falls with each of the four batches an epoch: the best of early stopping is the first epoch's, -3."""
    assert same["monitored_by_one"] == {
        "epochs": 3, "waited": 2, "best": [-3.0, -11.0, "step=12.ckpt"], "rate": 0.1 / 4,
    }  # fmt: skip


def test_what_one_rank_alone_logs_in_a_validation_decides_for_all(same):
    assert same["monitored_in_validation"] == [2, 1, 1.0, 1]


def test_the_agreed_number_is_the_mean_of_those_that_have_one(same):
    """A float64 stays one on the rank that had none."""
    assert same["agreed"] == [1 / 3, "torch.float64", 0.5, None]


def test_a_buffer_that_grew_on_one_rank_is_named(same):
    error = same["grown_buffer"]
    assert "MisconfigurationException: the ranks differ" in error
    assert "the model's positions: (1,) torch.float64 on rank 0, (5,) torch.float64 on rank 1" in error
