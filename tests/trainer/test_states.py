"""What a trainer is doing: Lightning's names and values."""

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus


def test_members_are_their_strings():
    assert [f"{member}" for member in TrainerFn] == ["fit", "validate", "test", "predict"]
    assert [f"{member}" for member in RunningStage] == ["train", "sanity_check", "validate", "test", "predict"]
    assert [f"{member}" for member in TrainerStatus] == ["initializing", "running", "finished", "interrupted"]
    assert TrainerFn.FITTING == "fit" and TrainerFn("test") is TrainerFn.TESTING
    assert {TrainerFn.FITTING: 1}["fit"] == 1


@pytest.mark.parametrize(
    "stage, evaluating, prefix",
    [
        (RunningStage.TRAINING, False, "train"),
        (RunningStage.SANITY_CHECKING, True, "val"),
        (RunningStage.VALIDATING, True, "val"),
        (RunningStage.TESTING, True, "test"),
        (RunningStage.PREDICTING, False, "predict"),
    ],
)
def test_stages(stage, evaluating, prefix):
    assert (stage.evaluating, stage.dataloader_prefix) == (evaluating, prefix)


def test_a_state_says_whether_a_call_is_over():
    stopped = {status: TrainerState(status).stopped for status in TrainerStatus}
    assert [status for status in stopped if stopped[status]] == ["finished", "interrupted"]
    assert TrainerState(TrainerStatus.FINISHED).finished and not TrainerState(TrainerStatus.INTERRUPTED).finished


class Recorder(Callback):
    """Notes the state, and what the trainer says of itself, in a few hooks."""

    def __init__(self):
        self.seen = []

    def note(self, trainer):
        flags = ("training", "sanity_checking", "validating", "testing", "predicting")
        self.seen.append((str(trainer.state.fn), str(trainer.state.stage), [f for f in flags if getattr(trainer, f)]))

    def on_train_batch_start(self, trainer, *args):
        self.note(trainer)

    def on_validation_start(self, trainer, *args):
        self.note(trainer)

    on_test_start = on_predict_start = on_validation_start


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_state_in_every_call(tmp_path):
    recorder, data = Recorder(), [torch.ones(1, 2)]
    trainer = quiet_trainer(max_epochs=1, callbacks=[recorder])
    assert (trainer.state.status, trainer.state.fn, trainer.state.stage) == ("initializing", None, None)
    trainer.fit(Module(), data, data)
    assert trainer.state == TrainerState(TrainerStatus.FINISHED, TrainerFn.FITTING, None)
    trainer.validate(Module(), data, verbose=False)
    trainer.test(Module(), data, verbose=False)
    trainer.predict(Module(), data)
    assert recorder.seen == [
        ("fit", "sanity_check", ["sanity_checking"]),
        ("fit", "train", ["training"]),
        ("fit", "validate", ["validating"]),
        ("validate", "validate", ["validating"]),
        ("test", "test", ["testing"]),
        ("predict", "predict", ["predicting"]),
    ]


def test_an_exception_leaves_the_state_interrupted():
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            raise ValueError("here")

    trainer = quiet_trainer(max_epochs=1)
    with pytest.raises(ValueError, match="here"):
        trainer.fit(Fails(), [torch.ones(1, 2)])
    assert trainer.state.status == "interrupted" and trainer.state.stopped and not trainer.state.finished


def test_optimizers_that_a_callback_sets_make_the_steps():
    class Replaces(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.25)]

    module = Line()
    before = module.layer.weight.item()
    trainer = quiet_trainer(max_steps=1, callbacks=[Replaces()])
    trainer.fit(module, [torch.ones(1, 1)])
    assert before - module.layer.weight.item() == pytest.approx(0.25) and trainer.optimizers[0].defaults["lr"] == 0.25
    with pytest.raises(MisconfigurationException, match=r"= 2 of them\. What .* there is 1 \(SGD\)\. To train"):
        trainer.optimizers = [*trainer.optimizers] * 2
    with pytest.raises(MisconfigurationException, match=r"(?s)= SGD .*: it must be a list of optimizers"):
        trainer.optimizers = trainer.optimizers[0]
