"""What code written for Lightning reads from a trainer and its parts."""

import line_model
import pytest
import torch
from quiet import QUIET

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer


@pytest.mark.parametrize(
    ("given", "expected"),
    [("bf16-mixed", "bf16-mixed"), ("bf16", "bf16-mixed"), (16, "16-mixed"), (64, "64-true"), (None, "32-true")],
)
def test_the_precision_is_a_string_and_the_object_has_another_name(given, expected):
    trainer = Trainer(precision=given, max_epochs=1, **QUIET)
    assert trainer.precision == expected and isinstance(trainer.precision, str)
    assert ("16" in trainer.precision) == ("16" in expected)
    assert trainer.precision_plugin.name == expected


def test_the_optimizer_behind_the_one_that_counts():
    class Manual(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer, self.automatic_optimization, self.seen = torch.nn.Linear(1, 1), False, []

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.seen.append((optimizer._optimizer, optimizer.optimizer, self.optimizers(use_pl_optimizer=False)))
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Manual()
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, [torch.ones(1, 1)])
    ((first, second, third),) = module.seen
    assert type(first) is torch.optim.SGD and first is second is third is trainer.optimizers[0]


class Line(line_model.Line):
    def training_step(self, batch, batch_idx):
        self.log("loss_seen", 1.0)
        return self.layer(batch).sum()


def test_the_epoch_loop_counts_under_lightnings_names():
    class Counting(Callback):
        """As with Lightning 2.6.6, which gave these numbers."""

        def __init__(self):
            self.seen = []

        def note(self, trainer):
            loop = trainer.fit_loop.epoch_loop
            batches = loop.batch_progress.current
            counts = (batches.ready, batches.completed, loop.global_step)
            self.seen.append((loop.batch_idx, loop.total_batch_idx, *counts))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.note(trainer)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.note(trainer)

        def on_train_epoch_end(self, trainer, pl_module):
            self.note(trainer)

    counting = Counting()
    Trainer(max_epochs=2, callbacks=[counting], **QUIET).fit(Line(), [torch.ones(1, 1)] * 2)
    assert counting.seen == [
        (0, 0, 1, 0, 0), (0, 0, 1, 0, 1), (1, 1, 2, 1, 1), (1, 1, 2, 1, 2), (1, 1, 2, 2, 2),
        (0, 2, 1, 0, 2), (0, 2, 1, 0, 3), (1, 3, 2, 1, 3), (1, 3, 2, 1, 4), (1, 3, 2, 2, 4),
    ]  # fmt: skip


def test_while_a_stop_waits_for_min_epochs_each_step_is_logged():
    class Stopping(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.should_stop = True

    class Rows:
        def __init__(self):
            self.steps = []

        def log_metrics(self, metrics, step=None):
            self.steps.append(step)

        def log_hyperparams(self, params):
            pass

    rows = Rows()
    settings = {**QUIET, "logger": rows, "log_every_n_steps": 2}
    trainer = Trainer(max_epochs=9, min_epochs=2, callbacks=[Stopping()], **settings)
    trainer.fit(Line(), [torch.ones(1, 1)] * 4)
    assert trainer.current_epoch == 2 and rows.steps == list(range(8))


def test_the_bar_counts_batches_where_max_steps_ends_the_run():
    trainer = Trainer(max_steps=3, accumulate_grad_batches=2, **{**QUIET, "enable_progress_bar": True})
    totals = []

    class Looking(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            bar = trainer.progress_bar_callback
            totals.append((bar.train_progress_bar.n, bar.train_progress_bar.total))

    trainer.callbacks = [*trainer.callbacks, Looking()]
    trainer.fit(Line(), [torch.ones(1, 1)] * 20)
    assert trainer.global_step == 3 and totals[-1] == (6, 6)


def test_limits_that_are_set_on_the_epoch_loop_count():
    trainer = Trainer(max_epochs=9, **QUIET)
    trainer.fit_loop.epoch_loop.max_steps = 3
    trainer.fit(Line(), [torch.ones(1, 1)] * 2)
    assert trainer.global_step == trainer.max_steps == trainer.fit_loop.epoch_loop.max_steps == 3
    trainer.fit_loop.epoch_loop.max_steps = 5  # to train on, as Lightning's users do
    trainer.fit(Line(), [torch.ones(1, 1)] * 2)
    assert trainer.global_step == 5


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("trainer.fit_loop.epoch_loop._batches_that_stepped = 7", "'_batches_that_stepped', which is here for reading"),
        ("trainer.fit_loop.epoch_loop.batch_progress.current.completed = 7", "'completed', which is here for reading"),
        ("trainer.fit_loop.epoch_loop.optim_progress.optimizer", "epoch_loop.optim_progress is an inner part"),
        ("trainer.fit_loop.epoch_loop = None", "epoch_loop = None: the training loop cannot be exchanged"),
        (
            "trainer.fit_loop.epoch_progress.current.completed = 7",
            "epoch_progress is an inner part .*ckpt_path",
        ),
        (
            "trainer._checkpoint_connector.restore('x')",
            "_checkpoint_connector is .*save_best_model",
        ),
        ("trainer._logger_connector.log_metrics({})", "trainer._logger_connector.log_metrics is .* `trainer.loggers"),
        ("trainer.validate_loop.run()", "trainer.validate_loop is an inner part .* `trainer.num_val_batches`"),
        ("trainer.no_such_name", "'Trainer' object has no attribute 'no_such_name'"),
        ("trainer.fit_loop.no_such_name", "'FitLoop' object has no attribute 'no_such_name'"),
    ],
)
def test_inner_parts_of_lightnings_are_told_with_what_would_do(statement, told):
    with pytest.raises(AttributeError, match=told):
        exec(statement, {"trainer": Trainer(max_epochs=1, **QUIET)})


def test_no_part_of_a_trainer_has_a_getattr_that_would_slow_all_its_attributes():
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(Line(), [torch.ones(1, 1)])
    parts = [trainer, *vars(trainer).values(), *vars(trainer.fit_loop).values()]
    ours = {type(part) for part in parts if type(part).__module__.startswith("espnet3_lite.")}
    assert {"Trainer", "FitLoop", "RunPlan", "Metrics", "TrainData"} <= {kind.__name__ for kind in ours}
    assert [kind.__name__ for kind in ours if hasattr(kind, "__getattr__")] == []


def test_a_propertys_own_error_is_not_replaced():
    class Mine(Trainer):
        @property
        def scaler(self):
            return self.of_mine

    with pytest.raises(AttributeError, match="'Mine' object has no attribute 'of_mine'"):
        Mine(max_epochs=1, **QUIET).scaler  # noqa: B018 - it is the look-up that fails


def test_what_would_be_set_in_vain_is_told():
    trainer = Trainer(max_epochs=1, **QUIET)
    with pytest.warns(UserWarning, match="val_check_batch is no setting, .*: `trainer.val_check_interval` says"):
        trainer.val_check_batch = 4
    trainer._logger_connector.configure_logger([])  # as NeMo's exp_manager does
    assert trainer.loggers == []


@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_files_are_always_read_safely(call):
    arguments = {"weights_only": False, "ckpt_path": "x.ckpt"}
    with pytest.raises(MisconfigurationException, match=rf"Trainer.{call}\(weights_only=False\): checkpoints are"):
        getattr(Trainer(max_epochs=1, **QUIET), call)(Line(), [torch.ones(1, 1)], **arguments)
