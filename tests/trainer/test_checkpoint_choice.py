"""Which checkpoint a run goes on from that torchrun has started anew."""

import warnings

import line_model
import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite.callbacks import ModelCheckpoint

DATA = torch.utils.data.DataLoader(torch.ones(4, 1))


def steps_of(folder, ckpt_path=None, max_epochs=2):
    """A fit that saves there: the steps that it makes itself, and its warnings."""
    trainer = quiet_trainer(enable_checkpointing=True, max_epochs=max_epochs,
                            callbacks=[ModelCheckpoint(folder, save_last=True)])  # fmt: skip
    made = []
    module = line_model.Line()
    module.on_train_batch_end = lambda *_: made.append(trainer.global_step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DATA, ckpt_path=ckpt_path)
    return made, "\n".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("ckpt_path", [None, "last"])
def test_a_run_that_is_started_anew_before_its_first_checkpoint_begins_from_scratch_and_says_so(
    ckpt_path, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    made, said = steps_of(tmp_path, ckpt_path)
    assert made == [1, 2, 3, 4, 5, 6, 7, 8]
    assert f"Looked in: {tmp_path}. Name the file" in said
    assert ("torchrun has started this run anew, and it begins from scratch" in said) == (ckpt_path is None)


def test_it_goes_on_from_the_newest_checkpoint_whatever_it_was_told_to_begin_from(tmp_path, monkeypatch):
    given, folder = tmp_path / "given", tmp_path / "folder"
    steps_of(given, max_epochs=1)
    assert steps_of(folder, given / "last.ckpt", max_epochs=2)[0] == [5, 6, 7, 8]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert steps_of(folder, given / "last.ckpt", max_epochs=3)[0] == [9, 10, 11, 12]
    assert steps_of(tmp_path / "new", given / "last.ckpt", max_epochs=2)[0] == [5, 6, 7, 8]


def test_a_path_that_a_program_sets_on_the_trainer_is_gone_on_from(tmp_path):
    """NeMo's `exp_manager` does so; under Lightning the path counts until a call names another."""
    steps_of(tmp_path, max_epochs=1)
    seen = []

    class Line(line_model.Line):
        def on_train_start(self):
            seen.append(self.trainer.global_step)

    trainer = quiet_trainer(max_epochs=2)
    trainer.ckpt_path = str(tmp_path / "last.ckpt")
    trainer.fit(Line(), DATA)
    trainer.ckpt_path = str(tmp_path / "last.ckpt")
    trainer.fit(Line(), DATA)
    assert seen == [4, 4]
    with pytest.warns(UserWarning, match=r"last.ckpt' was set, and then .fit\(ckpt_path='.*first.ckpt'\) was called"):
        (tmp_path / "last.ckpt").rename(tmp_path / "first.ckpt")
        trainer.fit(Line(), DATA, ckpt_path=str(tmp_path / "first.ckpt"))
    trainer.max_epochs = 3
    trainer.fit(Line(), DATA)  # the set path no longer counts
    assert seen == [4, 4, 4, 8]
