"""The Trainer's arguments, each checked by itself, with a message that says what would do."""

from datetime import timedelta

import pytest

from espnet3_lite import MisconfigurationException, Trainer
from espnet3_lite.trainer.settings import parse_duration

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
         "accelerator": "cpu"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("accelerator", "tpu", "accelerator='tpu' must be one of 'auto', 'cpu', 'gpu'"),
        ("strategy", "deepspeed_stage_2", "use strategy='fsdp'"),
        ("strategy", "ddp_find_unused_parameters_false", "use 'ddp', which looks for no unused parameters"),
        ("strategy", "ddpp", "did you mean 'ddp'"),
        ("devices", 0, "devices=0 must be a number of devices"),
        ("max_epochs", 1.5, "max_epochs=1.5 must be a whole number, at least -1 (-1: no limit)"),
        ("max_steps", -5, "max_steps=-5 must be a whole number, at least -1"),
        ("min_epochs", -1, "min_epochs=-1 must be a whole number, at least 0"),
        ("limit_val_batches", 2.0, "a float is a fraction from 0.0 to 1.0; for batches give an int (2)"),
        ("limit_train_batches", True, "limit_train_batches=True must be a number of batches"),
        ("val_check_interval", 0, "must be positive; to leave validation out set limit_val_batches=0"),
        ("num_sanity_val_steps", -2, "(-1: all batches)"),
        ("log_every_n_steps", -1, "(0: never)"),
        ("gradient_clip_val", -1.0, "gradient_clip_val=-1.0 must be a number, at least 0"),
        ("gradient_clip_algorithm", "nrom", "did you mean 'norm'"),
        ("deterministic", "maybe", "deterministic='maybe' must be one of"),
        ("inference_mode", 1, "inference_mode=1 must be True or False"),
        ("profiler", "simple", "profiler='simple' is not supported; leave it out (None)"),
        ("plugins", ["x"], "plugins=['x'] is not supported"),
        ("fast_dev_run", -2, "fast_dev_run=-2"),
    ],
)  # fmt: skip
def test_a_wrong_value(name, value, words):
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(**{**QUIET, name: value})
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("00:00:00:07", 7), ("01:02:03:04", 93784), ({"minutes": 2, "seconds": 1}, 121),
        (timedelta(hours=1), 3600),
    ],
)  # fmt: skip
def test_durations(given, seconds):
    assert parse_duration(given).total_seconds() == seconds
    assert Trainer(**QUIET, max_time=given).max_time.total_seconds() == seconds


@pytest.mark.parametrize("given", ["1h", "00:00:07", "00:00:00:xx", 90])
def test_what_is_no_duration(given):
    with pytest.raises(MisconfigurationException, match="is not a duration; give 'DD:HH:MM:SS'"):
        parse_duration(given)


@pytest.mark.parametrize("given", [{"hour": 1}, {"hours": "1"}])
def test_what_is_no_duration_in_parts(given):
    with pytest.raises(
        MisconfigurationException, match=r"is not a duration \(.*; give numbers of days, hours, minutes"
    ):
        Trainer(**QUIET, max_time=given)


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (1000, 0)), ({"max_steps": 5}, (-1, 0)), ({"max_time": "00:00:01:00"}, (-1, 0)),
        ({"max_epochs": 3, "max_steps": 5}, (3, 0)), ({"min_steps": 2, "max_epochs": 9}, (9, 1)),
        ({"min_epochs": 4, "max_epochs": 9}, (9, 4)), ({"max_epochs": -1}, (-1, 0)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
def test_limits_that_were_not_given(settings, limits):
    trainer = Trainer(**QUIET, **settings)
    assert (trainer.max_epochs, trainer.min_epochs) == limits


def test_null_equals_absent():
    given = dict.fromkeys(("max_steps", "limit_val_batches", "val_check_interval", "log_every_n_steps", "precision"))
    trainer, plain = Trainer(**QUIET, max_epochs=1, **given), Trainer(**QUIET, max_epochs=1)
    names = ("max_steps", "limit_val_batches", "val_check_interval", "log_every_n_steps")
    assert [getattr(trainer, name) for name in names] == [getattr(plain, name) for name in names]
    assert trainer.precision.name == "32-true"
