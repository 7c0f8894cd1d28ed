"""Settings that are set on a trainer: ``trainer.limit_val_batches = 3`` in a hook, or between two calls."""

import warnings

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.loggers import CSVLogger
from espnet3_lite.trainer.settings import AT_ANY_TIME, BETWEEN_CALLS, SETTINGS


class Model(LiteModule):
    """Notes each validation batch, as (epoch, index), and each window that was stepped, as its last batch's index."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.validated, self.stepped = [], []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.current_epoch, batch_idx))

    predict_step = test_step = validation_step

    def on_before_optimizer_step(self, optimizer):
        self.stepped.append((self.current_epoch, self.trainer.fit_loop.work.index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ByHand(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Sets(Callback):
    """Sets a setting in one hook of the first epoch."""

    def __init__(self, hook, batch_idx=None, **settings):
        def act(trainer, module, *arguments):
            if trainer.current_epoch == 0 and (batch_idx is None or trainer.fit_loop.work.index == batch_idx):
                for name, value in settings.items():
                    setattr(trainer, name, value)

        setattr(self, hook, act)


BATCHES = [torch.ones(3, 2)] * 6


def fit(callback, module=None, **settings):
    module = Model() if module is None else module
    trainer = quiet_trainer(callbacks=[callback], **{"max_epochs": 2, "num_sanity_val_steps": 0, **settings})
    trainer.fit(module, BATCHES, BATCHES[:4])
    return trainer, module


@pytest.mark.parametrize(
    ("callback", "settings", "validated"),
    [
        (Sets("on_train_epoch_start", limit_val_batches=1), {}, [(0, 0), (1, 0)]),
        (Sets("on_validation_start", limit_val_batches=1), {}, [(0, 0), (1, 0)]),
        (Sets("on_validation_epoch_end", limit_val_batches=0.5), {"limit_val_batches": 1}, [(0, 0), (1, 0), (1, 1)]),
        (Sets("on_train_batch_end", limit_val_batches=0), {}, []),
        (Sets("on_train_batch_end", limit_val_batches=1), {"limit_val_batches": 0}, [(1, 0)]),
        (Sets("on_train_batch_end", check_val_every_n_epoch=2), {"limit_val_batches": 1}, [(1, 0)]),
        (Sets("on_train_batch_end", val_check_interval=3), {"limit_val_batches": 1}, [(0, 0), (1, 0), (1, 0)]),
    ],
)
def test_what_a_hook_sets_of_validation_counts(callback, settings, validated):
    assert fit(callback, **settings)[1].validated == validated


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_between_two_calls_a_limit_counts_for_the_next(call):
    trainer, model = quiet_trainer(), Model()
    trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 2
    getattr(trainer, call)(model, BATCHES)
    assert model.validated == [(0, 0), (0, 1)]


def test_a_window_that_a_hook_sets_holds_from_the_next_step_on():
    stepped = fit(Sets("on_train_batch_end", 0, accumulate_grad_batches=3), max_epochs=1)[1].stepped
    assert stepped == [(0, 0), (0, 2), (0, 5)]
    stepped = fit(Sets("on_train_epoch_end", accumulate_grad_batches=3))[1].stepped
    assert stepped == [(0, index) for index in range(6)] + [(1, 2), (1, 5)]


def test_gradients_that_wait_are_not_lost_to_another_window():
    """The next batch of the larger window would have cleared them."""
    with pytest.raises(MisconfigurationException) as raised:
        fit(Sets("on_train_batch_end", 1, accumulate_grad_batches=2), accumulate_grad_batches=3)
    assert str(raised.value) == (
        "trainer.accumulate_grad_batches = 2 within a window: the gradients of 2 of 3 batches wait for their step. "
        "Set it between two steps, or in on_train_epoch_start"
    )
    fit(Sets("on_train_batch_end", accumulate_grad_batches=3), accumulate_grad_batches=3)  # the same changes nothing


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}])
def test_a_module_that_steps_by_hand_is_told_what_nothing_reads(settings):
    with pytest.raises(MisconfigurationException, match="is not supported for manual optimization"):
        fit(Sets("on_train_start", **settings), ByHand())


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("accumulate_grad_batches", 0, "0 is not a whole number of at least 1"),
        ("accumulate_grad_batches", "3", "'3' is not a whole number of at least 1; it is text: leave the quotes out, "
                                         "or in YAML write ${oc.decode:...} around what makes it"),
        ("limit_val_batches", 3.0, f"3.0 is not {SETTINGS['limit_val_batches'].kind.words}; for batches write 3"),
        ("compile", 3, f"3 is not {SETTINGS['compile'].kind.words}"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_tables_own_rule_and_changes_nothing(name, value, problem):
    trainer = quiet_trainer(max_epochs=3)
    before = getattr(trainer, name)
    with pytest.raises(MisconfigurationException) as raised:
        setattr(trainer, name, value)
    assert str(raised.value) == f"Trainer: {name}={problem}"
    assert getattr(trainer, name) == before


def test_what_settings_say_against_each_other_is_refused():
    trainer = quiet_trainer(val_check_interval=0.5)
    with pytest.raises(MisconfigurationException, match="`val_check_interval` should be an integer"):
        trainer.check_val_every_n_epoch = None
    trainer.val_check_interval = 10
    trainer.check_val_every_n_epoch = None
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (10, None)


def test_none_is_the_default():
    trainer = quiet_trainer(limit_val_batches=3, gradient_clip_val=1.0)
    trainer.limit_val_batches = trainer.gradient_clip_val = None
    assert (trainer.limit_val_batches, trainer.gradient_clip_val) == (1.0, None)
    trainer.max_epochs = None
    assert trainer.max_epochs == 1000
    trainer.max_steps, trainer.max_epochs = 5, None
    assert trainer.max_epochs == -1


def test_each_setting_that_nothing_would_read_says_what_would_do():
    assert AT_ANY_TIME | BETWEEN_CALLS < set(SETTINGS)
    assert AT_ANY_TIME & BETWEEN_CALLS == set()
    trainer = quiet_trainer()
    for name in set(SETTINGS) - AT_ANY_TIME - BETWEEN_CALLS:
        with pytest.raises(MisconfigurationException) as raised:
            setattr(trainer, name, SETTINGS[name].default)
        assert str(raised.value) == (
            f"trainer.{name} = {SETTINGS[name].default!r}: it is read when the trainer is made. Set it there, on a new "
            f"one: Trainer({name}=...)"
        )


def test_what_a_call_reads_as_it_begins_is_set_before_it():
    trainer = quiet_trainer(max_epochs=1, callbacks=[Sets("on_train_start", check_grad_finite=True)])
    with pytest.raises(MisconfigurationException) as raised:
        trainer.fit(Model(), BATCHES)
    assert str(raised.value) == (
        "trainer.check_grad_finite = True: it is read when a call begins, and one is running. Set it before the call"
    )
    trainer.callbacks = []
    trainer.check_grad_finite = True
    trainer.fit(Model(), BATCHES)
    assert trainer.plan.slots[None].checks_gradients


def test_the_nearest_setting_is_told():
    trainer = quiet_trainer()
    with pytest.warns(UserWarning, match="trainer.max_epoch is no setting, .* did you mean 'max_epochs'"):
        trainer.max_epoch = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.teacher = torch.nn.Linear(1, 1)  # a user's own
        trainer.max_epoch = 6  # said once


def test_limits_may_be_set_on_the_loop_as_in_lightning():
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit_loop.max_epochs, trainer.fit_loop.max_steps = 3, 7
    trainer.fit_loop.min_epochs, trainer.fit_loop.min_steps = 1, 2
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs, trainer.min_steps) == (3, 7, 1, 2)
    assert (trainer.fit_loop.max_epochs, trainer.fit_loop.max_steps) == (3, 7)
    with pytest.raises(MisconfigurationException, match="max_steps=2.5 is not a whole number"):
        trainer.fit_loop.max_steps = 2.5


def test_loggers_are_set_as_the_constructor_takes_them(tmp_path):
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.logger = "csv"
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger]
    trainer.loggers = None
    assert (trainer.loggers, trainer.logger) == ([], None)
    with pytest.raises(MisconfigurationException, match="logger must be a logger"):
        trainer.logger = 3


def test_a_trainer_with_a_property_of_its_own_has_it_set():
    class Mine(Trainer):
        @property
        def teacher(self):
            return self._teacher

        @teacher.setter
        def teacher(self, teacher):
            self._teacher = 2 * teacher

    trainer = Mine(logger=False, enable_checkpointing=False)
    trainer.teacher = 3
    assert trainer.teacher == 6
