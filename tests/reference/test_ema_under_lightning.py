"""ESPnet3's `EMACallback` under Lightning goes on from a checkpoint of ours."""

import json
from types import SimpleNamespace

import ema_lab
import pytest
import torch

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import EMACallback

OURS = SimpleNamespace(Trainer=Trainer, Module=LiteModule, Callback=Callback, EMACallback=EMACallback)


@pytest.mark.reference
def test_espnet3_goes_on_from_our_checkpoint(lightning, tmp_path):
    whole = ema_lab.run(OURS, tmp_path)
    ema_lab.run(OURS, tmp_path, epochs=10)
    lightning.run("tests/golden/make_ema.py", "--resume", tmp_path / "epoch10.ckpt", tmp_path / "seen.json")
    found = json.loads((tmp_path / "seen.json").read_text())
    for name, values in whole["averages"]["20"].items():
        theirs = torch.tensor(found["averages"]["20"][name], dtype=torch.float64)
        torch.testing.assert_close(theirs, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found["validated"] == pytest.approx(whole["validated"][4:], abs=1e-12)
