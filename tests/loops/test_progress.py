"""Where an epoch stands, as a checkpoint stores it, at each place where one can be saved."""

import line_model
import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback
from espnet3_lite.loops.progress import EpochStage, Progress

#: Hook of the second epoch's last batch, or around it: stage, is_last_batch, batches_done, epoch.
STAGES = {
    "on_train_epoch_start": ("not begun", False, 0, 1),
    "on_train_batch_start": ("batches", False, 1, 1),
    "on_before_backward": ("batches", False, 1, 1),
    "on_train_batch_end": ("batch open", True, 2, 1),
    "on_validation_start": ("validation due", True, 2, 1),
    "on_validation_end": ("batches over", True, 2, 1),
    "on_train_epoch_end": ("schedulers due", True, 2, 1),
    "on_train_end": ("not begun", True, 0, 2),
}


class Line(line_model.Line):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


class Saves(Callback):
    """Keeps the progress of the last call of each hook."""

    def __init__(self):
        self.saved = {}


for hook in STAGES:

    def save(self, trainer, *_, hook=hook):
        if not trainer.sanity_checking:
            self.saved[hook] = trainer.fit_loop.state_dict()

    setattr(Saves, hook, save)


@pytest.fixture(scope="module")
def saved():
    callback = Saves()
    trainer = quiet_trainer(max_epochs=2, callbacks=callback)
    trainer.fit(Line(), DataLoader(torch.ones(4, 2), batch_size=2), DataLoader(torch.ones(2, 2)))
    return callback.saved


@pytest.mark.parametrize("hook", STAGES)
def test_the_stage_that_a_checkpoint_stores(saved, hook):
    state = saved[hook]
    if hook == "on_train_epoch_start":
        state = {**state, "is_last_batch": False}  # the epoch before had a last one, which no longer matters
    assert tuple(state[name] for name in ("stage", "is_last_batch", "batches_done", "epoch")) == STAGES[hook]


@pytest.mark.parametrize("hook", STAGES)
def test_what_is_stored_comes_back_as_it_was(saved, hook):
    progress = Progress()
    progress.load_state_dict(saved[hook])
    assert progress.state_dict() == saved[hook]
    assert type(progress.stage) is EpochStage and type(progress.global_step) is int


def test_the_axis_of_the_loggers_moves_on_when_a_batch_is_over():
    progress = Progress(batches_stepped=3, uncounted=1)
    progress.count_on_axis()
    assert (progress.batches_stepped, progress.uncounted) == (4, 0)
    progress.count_on_axis()
    assert progress.batches_stepped == 4
