"""What a call takes from a checkpoint: callbacks' states in evaluations too, and which settings it does not take."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, OptimizationStep, Trainer
from espnet3_lite.callbacks import EarlyStopping, WeightAveraging
from espnet3_lite.checkpoint import run_state
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.optim.lr_stepping import LRSchedulerConfig
from espnet3_lite.optim.slots import OptimizerSlot


class Line(LiteModule):
    def __init__(self, lr=0.1, schedule=False, momentum=0.5):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.lr, self.schedule, self.momentum = lr, schedule, momentum

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def test_step(self, batch, batch_idx):
        self.log("weight", float(self.layer.weight))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)
        if not self.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Kept(Callback):
    """Keeps weights of its own in the checkpoint, and tests with them."""

    def __init__(self, value=None):
        self.value, self.seen = value, None

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self.seen = checkpoint["global_step"]

    def on_test_start(self, trainer, pl_module):
        if self.value is not None:
            pl_module.layer.weight.data.fill_(self.value)


def trainer_of(*callbacks, max_epochs=1):
    return quiet_trainer(max_epochs=max_epochs, callbacks=list(callbacks))


DATA = DataLoader(torch.ones(2, 1))


def test_an_evaluation_gives_callbacks_their_state(tmp_path):
    trainer = trainer_of(Kept(7.0))
    trainer.fit(Line(), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = Kept()
    (result,) = trainer_of(kept).test(Line(), DATA, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert (kept.value, kept.seen, result["weight"]) == (7.0, 2, 7.0)


def test_an_evaluation_tests_the_average_and_begins_no_fit_with_it(tmp_path):
    trainer = trainer_of(WeightAveraging())
    trainer.fit(Line(), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    average = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["layer.weight"]
    callback = WeightAveraging()
    (result,) = trainer_of(callback).test(Line(), DATA, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert result["weight"] == pytest.approx(float(average))
    assert callback._resumed is None


def test_an_evaluation_of_a_stopped_run_stops_no_later_fit(tmp_path):
    class Stops(Line):
        def training_step(self, batch, batch_idx):
            self.log("m", 1.0)
            return super().training_step(batch, batch_idx)

    trainer = trainer_of(EarlyStopping("m", patience=1, check_on_train_epoch_end=True), max_epochs=9)
    trainer.fit(Stops(), DATA)
    assert trainer.current_epoch == 2
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer_of(EarlyStopping("m", patience=99, check_on_train_epoch_end=True), max_epochs=1)
    again.test(Stops(), DATA, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    again.fit(Stops(), DATA)
    assert again.global_step == 2


@pytest.mark.parametrize("schedule", [False, True])
def test_a_rate_that_a_resumed_run_does_not_take_is_told(tmp_path, schedule):
    trainer = trainer_of()
    trainer.fit(Line(schedule=schedule), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = trainer_of(max_epochs=2)
    with pytest.warns(
        UserWarning, match=r"SGD goes on with the checkpoint's lr=0\.1; for the configured lr=0\.001 begin a new run"
    ):
        resumed.fit(Line(lr=0.001, schedule=schedule), DATA, ckpt_path=tmp_path / "a.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=2).fit(Line(schedule=schedule), DATA, ckpt_path=tmp_path / "a.ckpt")
    assert not [str(warning.message) for warning in caught if "goes on with" in str(warning.message)]


def resumed(tmp_path, module, *callbacks, override=False, epochs=2):
    """The group of the optimizer of a fit that goes on from ``a.ckpt``, as the run began it, and what was warned."""
    seen = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update(trainer.optimizers[0].param_groups[0])

    trainer = trainer_of(Look(), *callbacks, max_epochs=epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DATA, ckpt_path=tmp_path / "a.ckpt", override_optimizer=override)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return seen, [str(w.message) for w in caught if "goes on with" in str(w.message)], trainer


def test_configured_values_replace_those_of_a_checkpoint(tmp_path):
    trainer = trainer_of()
    trainer.fit(Line(lr=0.1, momentum=0.5), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    group, told, _ = resumed(tmp_path, Line(lr=0.01, momentum=0.25), override=True)
    assert (group["lr"], group["momentum"], told) == (0.01, 0.25, [])
    group, told, _ = resumed(tmp_path, Line(lr=0.01, momentum=0.25), epochs=3)  # and from now on these are the run's
    assert (group["lr"], group["momentum"], told) == (0.01, 0.25, [])


def test_a_scheduler_goes_on_from_the_new_rate(tmp_path):
    trainer = trainer_of()
    trainer.fit(Line(lr=0.1, schedule=True), DATA)  # a tenth after each epoch
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    group, told, trainer = resumed(tmp_path, Line(lr=8.0, schedule=True), override=True)
    assert (group["initial_lr"], group["lr"], told) == (8.0, pytest.approx(0.8), [])
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.base_lrs, scheduler.get_last_lr()) == ([8.0], [pytest.approx(0.08)])


def test_a_change_that_is_not_taken_is_told_at_each_resume(tmp_path):
    trainer = trainer_of()
    trainer.fit(Line(), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for epochs in (2, 3):
        group, told, _ = resumed(tmp_path, Line(lr=0.001), epochs=epochs)
        assert group["lr"] == 0.1 and len(told) == 1 and "fit(..., override_optimizer=True)" in told[0]


def test_a_rate_that_a_callback_changed_is_no_change_of_the_configuration(tmp_path):
    class Halves(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["lr"] /= 2

    trainer = trainer_of(Halves())
    trainer.fit(Line(), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    group, told, _ = resumed(tmp_path, Line(), Halves())
    assert (group["lr"], told) == (0.05, [])


def test_home_in_ckpt_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer = trainer_of()
    trainer.fit(Line(), DATA)
    trainer.save_checkpoint("~/a.ckpt")
    assert (tmp_path / "a.ckpt").is_file()
    resumed = trainer_of(max_epochs=2)
    resumed.fit(Line(), DATA, ckpt_path="~/a.ckpt")
    assert resumed.global_step == 4
    assert Trainer(default_root_dir="~/runs", max_epochs=1, logger=False).default_root_dir == str(tmp_path / "runs")


@pytest.mark.parametrize(("kind", "key"), [("optimizers", "optimizer_states"), ("schedulers", "lr_schedulers")])
def test_another_number_of_optimizers_or_schedulers_is_refused_before_any_is_restored(tmp_path, kind, key):
    trainer = trainer_of()
    trainer.fit(Line(schedule=True), DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint[key] = [*checkpoint[key], *checkpoint[key]]
    torch.save(checkpoint, tmp_path / "two.ckpt")
    other = trainer_of(max_epochs=2)
    with pytest.raises(MisconfigurationException, match=f"the checkpoint holds 2 {kind}, this run has 1; resume with"):
        other.fit(Line(schedule=True), DATA, ckpt_path=tmp_path / "two.ckpt")
    assert not other.optimizers[0].state


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ({"max_epochs": 2}, "it has reached max_epochs=2. Nothing is left to train; raise max_epochs to go on"),
        ({"max_epochs": -1, "max_steps": 4}, "it has reached max_steps=4. Nothing is left to train; raise max_steps"),
        ({"max_epochs": 3}, ""), ({"max_epochs": -1, "max_steps": 5}, ""),
    ],
)  # fmt: skip
def test_that_a_run_is_finished_is_told_before_anything_else_is_made(limit, told, tmp_path, caplog):
    path, told_before = tmp_path / "end.ckpt", []

    class Watching(Line):
        def configure_optimizers(self):
            told_before.extend(caplog.messages)
            return super().configure_optimizers()

    first = quiet_trainer(max_epochs=2)
    first.fit(Line(), DATA)
    first.save_checkpoint(path)
    caplog.clear()
    with caplog.at_level("INFO", "espnet3_lite"):
        quiet_trainer(**limit).fit(Watching(), DATA, ckpt_path=path)
    finished = [line for line in told_before if "The run of this checkpoint is finished" in line]
    assert len(finished) == bool(told) and all(told in line for line in finished)


class Pair(LiteModule):
    """Two parts of one shape, each with an optimizer that has a name."""

    def __init__(self, **part_of):
        super().__init__()
        self.part_of, self.named_optimizers = part_of, {name: {} for name in part_of}
        self.parts = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in ("small", "large")})

    def training_step(self, batch, batch_idx):
        losses = {"small": self.parts["small"](batch[:1]).sum(), "large": self.parts["large"](batch[:1]).sum() * 100}
        return [OptimizationStep(losses[part], name) for name, part in self.part_of.items()]

    def configure_optimizers(self):
        rates = {"small": 0.1, "large": 0.2}
        return [
            torch.optim.SGD(self.parts[part].parameters(), lr=rates[part], momentum=0.5)
            for part in self.part_of.values()
        ]


def test_named_optimizers_get_their_own_state_whatever_their_order_in_the_configuration(tmp_path, recwarn):
    trainer, data = trainer_of(), [torch.ones(1, 1)] * 2
    trainer.fit(Pair(first="small", second="large"), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    recwarn.clear()
    resumed = trainer_of(max_epochs=1)
    resumed.fit(Pair(second="large", first="small"), data, ckpt_path=tmp_path / "a.ckpt")
    buffers = {
        name: [*slot.optimizer.state.values()][0]["momentum_buffer"] for name, slot in resumed.plan.slots.items()
    }
    assert buffers == {"first": torch.tensor([[1.5]]), "second": torch.tensor([[150.0]])}
    assert [str(warning.message) for warning in recwarn if "goes on with" in str(warning.message)] == []
    message = r"optimizers are \['first', 'second'\], this run's \['first', 'third'\]; resume with its own"
    with pytest.raises(MisconfigurationException, match=message):
        trainer_of(max_epochs=2).fit(Pair(first="small", third="large"), data, ckpt_path=tmp_path / "a.ckpt")


def test_what_a_scheduler_has_seen_and_waits_for_comes_to_the_one_of_the_same_optimizer():
    """As its state does: the file's order is the configuration's that wrote it."""

    def config(name):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return LRSchedulerConfig(scheduler, slot=OptimizerSlot(optimizer, name=name))

    a, b = config("a"), config("b")
    states = [{**a.scheduler.state_dict(), "last_epoch": last} for last in (5, 7)]
    ours = {
        "layout": 2,
        "scheduler_names": ["b", "a"],
        "scheduler_versions": [50, 70],
        "scheduler_waits": [True, False],
    }
    checkpoint = {"optimizer_states": [], "lr_schedulers": states, "loops": {"espnet3_lite": ours}}
    here = SimpleNamespace(optimizers=[], plan=SimpleNamespace(slots={}), lr_scheduler_configs=[a, b])
    run_state._restore_optimizers(here, checkpoint)
    assert (b.scheduler.last_epoch, b.seen_version, b.waits) == (5, 50, True)
    assert (a.scheduler.last_epoch, a.seen_version, a.waits) == (7, 70, False)


class Holding(torch.optim.Optimizer):
    """Steps by an optimizer of its own, with the same groups, as SAM's usual form; only the inner one has a state."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "momentum": 0.9})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


class SharingState(Holding):
    """Has the inner one's state too, as Lookahead."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.state = self.base_optimizer.state


class Several(Holding):
    """Has more than one, in a list."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.parts = [self.base_optimizer]
        del self.base_optimizer

    def step(self, closure=None):
        self.parts[0].step()


@pytest.mark.parametrize("optimizer", [Holding, SharingState, Several])
def test_an_optimizer_within_an_optimizer_goes_on(optimizer, tmp_path):
    """It began anew, in silence: its momentum was lost, and it no longer followed the rate of a scheduler."""

    class Held(Line):
        def configure_optimizers(self):
            whole = optimizer(self.parameters())
            return [whole], [{"scheduler": torch.optim.lr_scheduler.StepLR(whole, 1), "interval": "step"}]

    def run(steps, ckpt_path=None):
        torch.manual_seed(0)
        module = Held()
        trainer = quiet_trainer(max_steps=steps)
        trainer.fit(module, [torch.ones(2, 1)] * 6, ckpt_path=ckpt_path)
        return module.layer.weight.item(), trainer

    whole, _ = run(6)
    _, cut = run(3)
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    resumed, trainer = run(6, tmp_path / "cut.ckpt")
    assert resumed == whole
    [inner] = trainer.plan.slots[None].held
    assert inner.param_groups is trainer.optimizers[0].param_groups
