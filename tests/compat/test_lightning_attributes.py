"""What code written for Lightning reads from a trainer and its parts."""

import pytest

from espnet3_lite import Trainer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("bf16-mixed", "bf16-mixed"), ("bf16", "bf16-mixed"), (16, "16-mixed"), (64, "64-true"), (None, "32-true")],
)
def test_the_precision_is_a_string_and_the_object_has_another_name(given, expected):
    trainer = Trainer(precision=given, **QUIET)
    assert trainer.precision == expected and isinstance(trainer.precision, str)
    assert ("16" in trainer.precision) == ("16" in expected)
    assert trainer.precision_plugin.name == expected
