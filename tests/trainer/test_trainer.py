"""The trainer does what Lightning 2.6.6 did: the same notes in every case of `trainer_cases_*`, value by value."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import trainer_cases  # noqa: F401 - enters the cases
from trainer_lab import CASES, run_case

from espnet3_lite import Callback, LiteDataModule, LiteModule, Trainer
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint
from espnet3_lite.loggers import Logger

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lightning_trainer.json").read_text())
LIBRARY = SimpleNamespace(
    LightningModule=LiteModule, LightningDataModule=LiteDataModule, Trainer=Trainer, Callback=Callback, Logger=Logger,
    ModelCheckpoint=ModelCheckpoint, EarlyStopping=EarlyStopping,
)  # fmt: skip
TOLERANCE = 1e-12  # float64; another processor may sum in another order


def differences(found, expected, where=""):
    """The places where two notes differ, as readable lines."""
    if isinstance(found, dict) and isinstance(expected, dict):
        lines = []
        for key in {**expected, **found}:
            if key not in found or key not in expected:
                side, value = ("missing", expected[key]) if key not in found else ("too many", found[key])
                lines.append(f"{where}[{key}]: {side}: {value}")
            else:
                lines += differences(found[key], expected[key], f"{where}[{key}]")
        return lines
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = zip(found, expected, strict=True)
        return [line for index, (a, b) in enumerate(pairs) for line in differences(a, b, f"{where}[{index}]")]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (found, expected))
    same = found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE) if numbers else found == expected
    return [] if same else [f"{where}: {found!r}, Lightning has {expected!r}"]


def compare(found, expected):
    """As `differences`, but after a note that one side has alone the rest is aligned by their names."""
    if [note[0] for note in found] == [note[0] for note in expected]:
        pairs = zip(found, expected, strict=True)
        return [line for a, b in pairs for line in differences(a[1:], b[1:], a[0])]
    first = next(
        index
        for index in range(max(len(found), len(expected)))
        if found[index : index + 1] != expected[index : index + 1]
    )
    return [f"note {first}: {found[first : first + 4]}\n  Lightning has  {expected[first : first + 4]}"]


@pytest.mark.parametrize("name", CASES)
def test_equals_lightning(name, tmp_path):
    notes = json.loads(json.dumps(run_case(name, LIBRARY, tmp_path)))
    assert not compare(notes, [_unknown_is_infinity(note) for note in GOLDEN[name]])


def _unknown_is_infinity(note):
    """Steps that cannot be estimated: infinity here, -1 in Lightning."""
    return [note[0], "inf"] if note in (["steps", -1], ["estimate", -1]) else note


def test_no_record_is_left_over():
    assert set(GOLDEN) == set(CASES)
