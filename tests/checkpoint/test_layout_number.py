"""What is ours in a checkpoint: its layout's number, and a layout that is not ours."""

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite.checkpoint.lightning_format import LAYOUT, own_state
from espnet3_lite.exceptions import CheckpointError


@pytest.mark.parametrize(("layout", "said"), [(LAYOUT + 1, 3), (None, 1)])
def test_another_layout_is_refused_and_its_weights_are_read(tmp_path, layout, said):
    trainer, module = quiet_trainer(max_epochs=1), Line()
    trainer.fit(module, DataLoader(torch.ones(4, 1)))
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    ours = checkpoint["loops"]["espnet3_lite"]
    assert ours.pop("layout") == LAYOUT == 2
    checkpoint["loops"]["espnet3_lite"] = ours if layout is None else {**ours, "layout": layout}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=f"in layout {said}; this version of espnet3_lite reads layout 2"):
        quiet_trainer(max_epochs=2).fit(Line(), DataLoader(torch.ones(4, 1)), ckpt_path=tmp_path / "other.ckpt")
    loaded = Line.load_from_checkpoint(tmp_path / "other.ckpt")
    assert torch.equal(loaded.layer.weight, module.layer.weight)


def test_other_peoples_files_have_nothing_of_ours():
    assert own_state({}) == own_state({"loops": None}) == own_state({"loops": {"fit_loop": {}}}) == {}


def test_a_forged_layout_is_refused_at_once():
    layout = ()
    for _ in range(60):
        layout = (layout, layout)
    with pytest.raises(CheckpointError, match="in layout tuple; this version"):
        own_state({"loops": {"espnet3_lite": {"layout": layout}}})
