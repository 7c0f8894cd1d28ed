"""Two real processes that were given different things, or of which one alone does something: one message on both."""

import pytest
import rank_differ_cases
from rank_lab import results_of
from rank_launch import Ranks, launched

RANKS = Ranks("rank_differ_cases", "settings", "callbacks", "modules", "calls", "saving_alone", "logging_alone")


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """What both ranks raised, case by case; the launch ends, which it did not before."""
    first, second = results_of(launched(request, tmp_path_factory), 2)
    assert first == second
    return first


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_epochs", "2 on rank 0, 3 on rank 1"),
        ("accumulate_grad_batches", "1 on rank 0, 2 on rank 1"),
        ("limit_train_batches", "3 on rank 0, 2 on rank 1"),
        ("limit_val_batches", "1.0 on rank 0, 0 on rank 1"),
        ("val_check_interval", "2 on rank 0, 1 on rank 1"),
        ("gradient_clip_val", "None on rank 0, 0.1 on rank 1"),
        ("check_grad_finite", "False on rank 0, True on rank 1"),
        ("max_steps", "-1 on rank 0, 3 on rank 1"),
        ("max_time", "None on rank 0, 0:10:00 on rank 1"),
        ("precision", "64-true on rank 0, bf16-mixed on rank 1"),
    ],
)
def test_a_setting(two, name, values):
    assert f"MisconfigurationException: the ranks differ:\n  {name}: {values}\n" in two["settings"][name]


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("one more", "callbacks: none on rank 0, EarlyStopping on rank 1"),
        ("one less", "callbacks: ModelCheckpoint on rank 0, none on rank 1"),
        ("another argument", "EarlyStopping.patience: 2 on rank 0, 3 on rank 1"),
        ("another moment", "ModelCheckpoint.every_n_train_steps: 2 on rank 0, 1 on rank 1"),
    ],
)
def test_a_callback(two, case, difference):
    """The folder that each rank names is its own: rank zero's counts."""
    assert f"\n  {difference}\n" in two["callbacks"][case]
    assert "dirpath" not in two["callbacks"]["another moment"]


def test_what_only_shows_may_differ(two):
    assert two["callbacks"]["a bar on rank 0 alone"] is None


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("lr", "optimizer 0 (SGD), group 0, lr: 0.05 on rank 0, 0.5 on rank 1"),
        ("kind", "optimizer 0 (SGD), group 0, lr: 0.05 on rank 0, nothing on rank 1"),
        ("gamma", "scheduler 0 (StepLR), gamma: 0.9 on rank 0, 0.5 on rank 1"),
        ("count", "optimizer 1 (SGD), group 0, lr: nothing on rank 0, 0.1 on rank 1"),
        ("width", "the model's more.weight: nothing on rank 0, (2, 2) torch.float64 trained on rank 1"),
        ("frozen", "the model's layer.bias: (1,) torch.float64 trained on rank 0, (1,) torch.float64 on rank 1"),
    ],
)
def test_the_model_its_optimizer_and_schedule(two, case, difference):
    assert f"\n  {difference}\n" in two["modules"][case]


def test_the_call_and_its_loaders(two):
    assert "\n  val loaders: given on rank 0, none on rank 1\n" in two["calls"]["loaders"]
    assert "\n  the call: Trainer.fit() on rank 0, Trainer.validate() on rank 1\n" in two["calls"]["call"]


@pytest.mark.parametrize("hook", rank_differ_cases.SAVING_HOOKS)
def test_a_save_on_one_rank_alone_is_told(two, hook):
    error = two["saving_alone"][hook]
    assert (
        "MisconfigurationException: the ranks do different things: rank 0 saves a checkpoint (trainer.save_ch" in error
    )
    assert "; rank 1 " in error and "Call it on all ranks" in error


def test_a_value_that_one_rank_alone_logs_with_sync_dist_is_told(two):
    assert "rank 0 votes on a training batch; rank 1 reduces a value over the ranks" in two["logging_alone"]
