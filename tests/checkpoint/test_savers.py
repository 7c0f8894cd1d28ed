"""Saving in the background: what training waits for, what waits for the file, and what an error becomes."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.checkpoint import files as checkpoint_io
from espnet3_lite.checkpoint.files import CheckpointError, load_checkpoint
from espnet3_lite.checkpoint.savers import FileSaver


@pytest.fixture
def gate(monkeypatch):
    """Files are written only once the gate is set; those that were are in ``gate.written``."""
    gate, save = threading.Event(), checkpoint_io.save_checkpoint
    gate.written = []

    def slow(checkpoint, path):
        assert gate.wait(20)
        save(checkpoint, path)
        gate.written.append(str(path))

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", slow)
    yield gate
    gate.set()


def background():
    saver = FileSaver()
    saver.in_background = True
    return saver


def state(step, value):
    return {"epoch": 0, "global_step": step, "state_dict": {"w": value}}


def test_what_is_saved_is_the_state_of_that_moment(tmp_path, gate):
    saver, weight, done = background(), torch.ones(3), []
    tied = {"epoch": 0, "global_step": 1, "state_dict": {"a": weight, "b": weight.view(3)}}
    saver.save(tied, tmp_path / "a.ckpt")
    weight.zero_()
    saver.when_saved(lambda: done.append((tmp_path / "a.ckpt").exists()))
    saver.poll()
    assert done == [] and saver.coming == {str(tmp_path / "a.ckpt")}
    gate.set()
    saver.finish()
    assert done == [True] and saver.coming == set()
    saved = load_checkpoint(tmp_path / "a.ckpt")["state_dict"]
    assert torch.equal(saved["a"], torch.ones(3)) and saved["a"].data_ptr() == saved["b"].data_ptr()


def test_another_state_waits_for_the_first_but_the_same_one_under_another_name_does_not(tmp_path, gate):
    saver = background()
    saver.save(state(1, torch.ones(2)), tmp_path / "a.ckpt")
    saver.save(state(1, torch.ones(2)), tmp_path / "b.ckpt")
    assert gate.written == []
    threading.Timer(0.2, gate.set).start()
    saver.save(state(2, torch.zeros(2)), tmp_path / "c.ckpt")
    assert gate.written[:2] == [str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")]
    saver.finish()
    assert (tmp_path / "a.ckpt").stat().st_ino == (tmp_path / "b.ckpt").stat().st_ino, "one file under two names"
    assert load_checkpoint(tmp_path / "c.ckpt")["global_step"] == 2


def test_a_state_is_copied_to_where_the_one_before_was(tmp_path, monkeypatch):
    places = []

    def write(checkpoint, path):
        weights = checkpoint["state_dict"]["w"]
        places.append((weights.data_ptr(), weights.tolist()))

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", write)
    saver, weights = background(), torch.zeros(2)
    for step in range(3):
        saver.save(state(step, weights.fill_(step)), tmp_path / "a.ckpt")
    saver.save(state(3, torch.ones(3)), tmp_path / "a.ckpt")  # of another shape
    saver.finish()
    (place, *_), *_ = places
    assert places[:3] == [(place, [0.0, 0.0]), (place, [1.0, 1.0]), (place, [2.0, 2.0])]
    assert places[3][1] == [1.0, 1.0, 1.0]
    saver.in_background = False
    saver.finish()  # the end of the run gives the memory back
    assert saver._copies == {}


def test_what_touches_files_alone_is_done_by_the_thread_that_writes(tmp_path, gate):
    saver, order, here = background(), [], threading.get_ident()

    def remember(name):
        order.append((name, [path.name for path in tmp_path.iterdir()], threading.get_ident() == here))

    saver.behind(lambda: remember("at once"))
    saver.save(state(1, torch.ones(2)), tmp_path / "a.ckpt")
    saver.when_saved(lambda: remember("told"))
    saver.behind(lambda: remember("removed"))
    assert len(order) == 1
    gate.set()
    saver.finish()
    assert order == [("at once", [], True), ("removed", ["a.ckpt"], False), ("told", ["a.ckpt"], True)]


def test_an_error_is_told_at_the_next_save_and_what_waited_is_not_done(tmp_path, monkeypatch):
    def full(checkpoint, path):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", full)
    saver, done = background(), []
    saver.save(state(1, torch.ones(2)), tmp_path / "a.ckpt")
    saver.when_saved(lambda: done.append("told"))
    saver.behind(lambda: done.append("removed"))
    with pytest.raises(CheckpointError, match="the disk is full"):
        saver.save(state(2, torch.ones(2)), tmp_path / "b.ckpt")
    saver.finish()
    assert done == []


# ---- in a run ------------------------------------------------------------------------------------------------------


class Line(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def fit(folder, *callbacks, **settings):
    trainer = Trainer(
        max_epochs=3, callbacks=[ModelCheckpoint(folder, every_n_train_steps=1, save_last="link"), *callbacks],
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(2, 1)))
    return trainer


def test_a_run_goes_on_while_its_files_are_written_and_its_end_waits_for_them(tmp_path, gate):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:  # the first file is not there, and training goes on
                seen.append(list(tmp_path.iterdir()))
                gate.set()

    fit(tmp_path, Look(), async_save=True)
    assert seen == [[]]
    assert sorted(path.name for path in tmp_path.glob("*")) == ["epoch=2-step=6.ckpt", "last.ckpt"]
    saved = load_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == 6 and saved["optimizer_states"][0]["state"]


def test_an_error_ends_the_run(tmp_path, monkeypatch):
    def full(checkpoint, path):
        raise CheckpointError(f"{path}: the disk is full")

    monkeypatch.setattr(checkpoint_io, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"step=1\.ckpt: the disk is full"):
        fit(tmp_path, async_save=True)
