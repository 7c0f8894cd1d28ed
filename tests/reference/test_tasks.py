"""Models of espnet's tasks and of espnet3, small: two epochs, and a run that goes on in mid-epoch to the same bits."""

import json
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "golden" / "tasks_lab.py"

#: Each case, and a value that its model logs.
CASES = {
    "asr": "train/loss_ctc", "asr_transducer": "train/loss_transducer", "s2t": "train/loss_att", "st": "train/loss_asr",
    "lm": "valid/loss", "tts_tacotron2": "train/l1_loss", "tts_transformer": "train/enc_dec_attn_loss",
    "enh": "valid/snr_loss", "ssl": "train/loss", "spk": "train/loss",
    "gan_tts_vits": "train/generator_loss", "gan_codec_soundstream": "train/discriminator_loss", "f5tts": "valid/loss",
}  # fmt: skip


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_a_task_trains_and_resumes_to_the_same_bits(espnet, tmp_path, case):
    espnet.run("-W", "ignore", LAB, tmp_path / "found.jsonl", case)
    found = json.loads((tmp_path / "found.jsonl").read_text())
    assert "error" not in found, found
    assert found["steps"] == [6, 6] and found["differ"] == [] and found["finite"]
    assert found["learned"] > 0 and CASES[case] in found["metrics"]
