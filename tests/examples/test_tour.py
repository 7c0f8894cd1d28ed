"""The tour's scripts: short, quick, and with the numbers that they print asserted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "examples" / "tour"
SCRIPTS = sorted(TOUR.glob("*.py"))

#: What each script prints on standard output, whole or as lines that must be among it.
BY_HAND = [
    "epoch 0: val_loss 2.378589, lr 0.05",
    "epoch 1: val_loss 1.412061, lr 0.025",
    "epoch 2: val_loss 1.030081, lr 0.0125",
    "global_step 24",
]
PRINTED = {
    "01_by_hand": BY_HAND,
    "02_with_trainer": BY_HAND,
    "03_hooks_in_order": [
        "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward",
        "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start",
        "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end",
        "on_validation_end", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown",
    ],
    "04_callback_with_state": ["after two epochs: 40", "after three, in another run: 60"],
    "05_top_k_and_average": [
        "epoch=1.ckpt distance 0.4",
        "epoch=2.ckpt distance 0.6",
        "average of the weights: 2.5",
    ],
    "06_accumulation_and_clipping": [
        "one batch of four:        [3.0, 4.0]",
        "two batches of two:       [3.0, 4.0]",
        "clipped to a norm of 1:   [0.6, 0.8]",
        "both:                     [0.6, 0.8]",
        "each value at most 3.5:   [3.0, 3.5]",
    ],
    "07_two_optimizers": [
        "batches in which an optimizer stepped: 8",
        "updates of the generator: 8",
        "updates of the discriminator: 4",
    ],
    "08_nan_on_one_rank": [
        "rank 0, by hand: weights [[nan, nan]]",
        "rank 0, with the vote: all finite True",
        "rank 0, with the vote: steps 3 of 4",
        "rank 1, by hand: weights [[nan, nan]]",
        "rank 1, with the vote: all finite True",
        "rank 1, with the vote: steps 3 of 4",
    ],
    "09_kill_and_resume": [
        "the first process ended with -9 and left epoch=0-step=3.ckpt epoch=0-step=6.ckpt epoch=0-step=9.ckpt "
        "epoch=1-step=12.ckpt",
        "the same bits: True",
    ],
}  # fmt: skip


def test_every_script_is_known_and_short():
    assert [path.stem for path in SCRIPTS] == sorted(PRINTED)
    assert {path.stem: n for path in SCRIPTS if (n := len(path.read_text().splitlines())) > 90} == {}
    by_hand = TOUR / "01_by_hand.py"
    assert len(by_hand.read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_prints_its_numbers(script, tmp_path):
    finished = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    lines = re.findall(r"rank \d, .*?(?=rank \d, |$)", finished.stdout, re.M) if "rank" in script.stem else []
    lines = sorted(line.strip() for line in lines) or finished.stdout.splitlines()
    known = {"07_two_optimizers": lines[-3:]}.get(script.stem, lines)
    assert known == PRINTED[script.stem]
