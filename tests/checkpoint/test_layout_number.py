"""What is ours in a checkpoint: its number, the layout before it, and one that is newer than we are."""

import json
from pathlib import Path

import pytest
import torch
from first_layout_run import Line, loaders, weights_of
from quiet import quiet_trainer

from espnet3_lite.checkpoint.lightning_format import LAYOUT, own_state
from espnet3_lite.exceptions import CheckpointError

FOLDER = Path(__file__).parents[1] / "golden" / "first_layout"
#: The stage that each file's flags mean.
STAGES = {
    "on_train_epoch_start": "not begun",
    "on_train_batch_start": "batches",
    "on_train_batch_end": "batch open",
    "on_validation_start": "batch open",
    "on_validation_end": "batches over",
    "on_train_epoch_end": "schedulers due",
}


def three_epochs():
    return quiet_trainer(max_epochs=3, num_sanity_val_steps=0)


@pytest.mark.parametrize("place", STAGES)
def test_a_file_of_the_first_layout_is_gone_on_with(place):
    ours = own_state(torch.load(FOLDER / f"{place}.ckpt", weights_only=True))
    assert "layout" not in ours and ours["stage"] == STAGES[place]
    torch.manual_seed(99)
    trainer, module = three_epochs(), Line()
    trainer.fit(module, *loaders(), ckpt_path=FOLDER / f"{place}.ckpt")
    assert weights_of(trainer, module) == json.loads((FOLDER / "end.json").read_text())


def test_a_layout_that_is_newer_is_refused(tmp_path):
    trainer = three_epochs()
    trainer.fit(Line(), *loaders())
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert checkpoint["loops"]["espnet3_lite"]["layout"] == LAYOUT == 2
    checkpoint["loops"]["espnet3_lite"]["layout"] = 3
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(CheckpointError, match="in layout 3; this version of espnet3_lite reads layouts 1 to 2"):
        quiet_trainer().fit(Line(), *loaders(), ckpt_path=tmp_path / "newer.ckpt")


def test_other_peoples_files_have_nothing_of_ours():
    assert own_state({}) == own_state({"loops": None}) == own_state({"loops": {"fit_loop": {}}}) == {}


def test_a_forged_layout_is_refused_at_once():
    layout = ()
    for _ in range(60):
        layout = (layout, layout)
    with pytest.raises(CheckpointError, match="in layout tuple; this version"):
        own_state({"loops": {"espnet3_lite": {"layout": layout}}})
