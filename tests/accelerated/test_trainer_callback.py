"""pytorch-accelerated's events: which are called, in which order, with what; in its callbacks and in ours."""

import warnings

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import TrainerCallback
from espnet3_lite.callbacks.calling.event_aliases import NAMES
from espnet3_lite.callbacks.calling.handler import CallbackHandler

EPOCH = [
    "on_train_epoch_start", "on_train_step_start", "on_train_step_end", "on_train_step_start", "on_train_step_end",
    "on_eval_epoch_start", "on_eval_step_start", "on_eval_step_end", "on_eval_epoch_end", "on_train_epoch_end",
    "on_training_run_epoch_end",
]  # fmt: skip
EVALUATION = [
    "on_evaluation_run_start", "on_eval_epoch_start", "on_eval_step_start", "on_eval_step_end", "on_eval_epoch_end",
    "on_evaluation_run_end",
]  # fmt: skip


class Module(LiteModule):
    def __init__(self, validation_output=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        self.validation_output = validation_output

    def training_step(self, batch, batch_idx):
        return {"loss": self.layer(batch).sum(), "model_outputs": batch * 2}

    def validation_step(self, batch, batch_idx):
        return self.validation_output

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(count):
    return DataLoader(torch.ones(count, 1))


def recorder(base, names):
    """A callback that notes each of these events and its arguments."""
    namespace = {}
    for name in names:

        def method(self, trainer, *args, name=name, **kwargs):
            assert isinstance(trainer, Trainer)
            self.calls.append(name)
            self.arguments.append((name, args, kwargs))

        namespace[name] = method
    return type(
        "Recorder", (base,), {"__init__": lambda self: vars(self).update(calls=[], arguments=[]), **namespace}
    )()


def test_every_event_in_order():
    events = NAMES | {"on_train_epoch_start", "on_train_epoch_end"}
    callback = recorder(TrainerCallback, events)
    trainer = Trainer(max_epochs=2, callbacks=callback, **QUIET)
    trainer.fit(Module(), loader(2), loader(1))
    assert callback.calls == ["on_init_end", "on_training_run_start", *EPOCH, *EPOCH, "on_training_run_end"]
    for run in (trainer.validate, trainer.test):
        callback.calls.clear()
        run(Module(), loader(1), verbose=False)
        assert callback.calls == EVALUATION
    # Exactly pytorch-accelerated's arguments, so that methods without **kwargs work too.
    assert {name: (args, tuple(kwargs)) for name, args, kwargs in callback.arguments} == {
        name: ((), ("batch", "batch_output") if name.endswith("step_end") else ()) for name in events
    }


def test_the_names_work_in_any_callback_beside_ours():
    class Both(Callback):
        def __init__(self):
            self.calls = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.calls.append(("ours", batch_idx, set(outputs)))

        def on_train_step_end(self, trainer, batch, batch_output):
            self.calls.append(("alias", batch.tolist(), set(batch_output)))

        def on_train_epoch_end(self, trainer, pl_module):
            self.calls.append(("epoch", pl_module is trainer.lightning_module))

    both = Both()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no name is unknown
        CallbackHandler([both])
    Trainer(max_epochs=1, callbacks=both, **QUIET).fit(Module(), loader(1))
    keys = {"loss", "model_outputs"}
    assert both.calls == [("ours", 0, keys), ("alias", [[1.0]], keys), ("epoch", True)]


def test_our_hooks_work_in_a_trainer_callback():
    class Ours(TrainerCallback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen = (pl_module is trainer.lightning_module, batch_idx)

    callback = Ours()
    Trainer(max_epochs=1, callbacks=callback, **QUIET).fit(Module(), loader(1))
    assert callback.seen == (True, 0)


class Outputs(TrainerCallback):
    def __init__(self):
        self.training, self.evaluation = [], []

    def on_train_step_end(self, trainer, batch, batch_output, **kwargs):
        self.training.append(batch_output)

    def on_eval_step_end(self, trainer, batch, batch_output, **kwargs):
        self.evaluation.append(batch_output)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, {}),
        (torch.tensor(2.0), {"loss": torch.tensor(2.0)}),
        ({"model_outputs": 3}, {"model_outputs": 3}),
        ([1, 2], {"model_outputs": [1, 2]}),
    ],
)
def test_a_step_s_output_as_a_dict(output, expected):
    callback = Outputs()
    Trainer(max_epochs=1, callbacks=callback, **QUIET).fit(Module(output), loader(1), loader(1))
    assert callback.evaluation == [expected]  # and not the sanity check's
    (training,) = callback.training
    assert {name: value.tolist() for name, value in training.items()} == {"loss": 1.0, "model_outputs": [[2.0]]}


@pytest.mark.filterwarnings("ignore:epoch 0, batch 0")
def test_a_skipped_batch_has_a_loss_that_is_not_finite():
    callback = Outputs()
    trainer = Trainer(max_epochs=1, callbacks=callback, **QUIET)
    trainer.fit(Module(), DataLoader(torch.tensor([[float("inf")], [1.0]])))
    assert [output["loss"].isnan().item() for output in callback.training] == [True, False]


def test_a_base_method_costs_nothing():
    assert not any(CallbackHandler([TrainerCallback()]).listeners.values())
