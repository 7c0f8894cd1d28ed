"""Speech packages beside Lightning: GAN codecs, vocoders, a logger, NeMo's `exp_manager`; then killed and resumed."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.reference
PROGRAMS = Path(__file__).parents[1] / "golden" / "speech_programs.py"


def _result(reference, side, case, folder):
    done = reference.run(PROGRAMS, side, case, folder)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def _check(reference, case, tmp_path, saved_at=7):
    theirs, ours = (_result(reference, side, case, tmp_path / side) for side in ("lightning", "ours"))
    assert len(theirs["losses"]) == 12 and theirs["metrics"]
    for part in ("steps", "losses", "weights"):
        assert ours[part] == theirs[part], part
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6)  # of means the last digit may differ
    cut = reference.run(PROGRAMS, "cut", case, tmp_path / "run", check=False)
    assert cut.returncode == -9, cut.stderr
    resumed = _result(reference, "resumed", case, tmp_path / "run")
    assert resumed["losses"] == ours["losses"][saved_at:] and resumed["weights"] == ours["weights"]
    return theirs["files"], ours["files"]


@pytest.mark.parametrize("case", ["dac", "encodec", "vocos", "hifigan"])
def test_adversarial_models_train_as_under_lightning_and_resume_to_the_same_bits(speech, case, tmp_path):
    _check(speech, case, tmp_path)


def test_dvclives_logger_writes_the_same_files(speech, tmp_path):
    theirs, ours = _check(speech, "dvclive", tmp_path)
    assert ours == theirs and any("train/loss.tsv" in name for name in ours)


def test_nemos_exp_manager_saves_the_same_files_and_goes_on_by_itself(nemo, tmp_path):
    theirs, ours = _check(nemo, "nemo", tmp_path, saved_at=6)  # at the epoch's end
    saved = [[name for name in names if name.endswith(".ckpt")] for names in (theirs, ours)]
    assert saved[0] == saved[1] and len(saved[0]) == 3
