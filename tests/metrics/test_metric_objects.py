"""Metric objects keep their values over a resume in mid-epoch, as if the run had not been cut."""

import unittest.mock

import numpy
import pytest
import torch
from weights_parts import Net, loader, trainer_of

from espnet3_lite import Callback
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.metrics.logged_value import LogArguments, LoggedValue, one_number
from espnet3_lite.metrics.metric_objects import metric_objects, restore, state_of


class Mean:
    """A plain object: its sums are attributes."""

    def __init__(self):
        self.reset()
        self.scale = 2.0

    def reset(self):
        self.total, self.count, self.parts, self.extremes = 0.0, 0, [], {}

    def update(self, value):
        self.total, self.count = self.total + float(value) * self.scale, self.count + 1
        self.parts.append(value.detach())
        self.extremes["last"] = float(value)

    def compute(self):
        return torch.tensor(self.total / max(self.count, 1) + len(self.parts) + self.extremes.get("last", 0.0))


class ModuleMean(torch.nn.Module):
    """A module, such as torchmetrics', with a part of its own, a state in an attribute and one in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = Mean()
        self.default = torch.zeros(())
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.part = torch.nn.Identity()
        self.reset()

    def reset(self):
        self.total, self.part.count = self.default.clone(), 0
        self.seen.zero_()

    def update(self, value):
        self.total = self.total + value.detach()
        self.part.count += 1
        self.seen += 1

    def compute(self):
        return self.total / self.part.count + self.seen


class Measured(Net):
    """Logs one object in each step, another at the epoch's end, and keeps one of validation."""

    def __init__(self, kind=Mean):
        super().__init__()
        self.logged, self.at_end, self.validation = kind(), kind(), kind()
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.logged.update(loss.detach())
        self.at_end.update(loss.detach() * 2)
        self.log("logged", self.logged, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.validation.update(self.net(batch[0]).mean())

    def on_validation_epoch_end(self):
        self.seen.append(("validation", float(self.validation.compute())))
        self.validation.reset()

    def on_train_epoch_end(self):
        self.seen.append(("end", float(self.at_end.compute())))
        self.at_end.reset()


class Save(Callback):
    """Saves after each training batch and within each validation."""

    place = 2

    def __init__(self, folder):
        self.folder, self.files = folder, []

    def save(self, trainer, name):
        path = self.folder / f"{trainer.current_epoch}-{name}.ckpt"
        trainer.save_checkpoint(path)
        self.files.append(path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.save(trainer, f"batch{batch_idx}")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.save(trainer, f"validation{batch_idx}")


class Notes(Callback):
    def __init__(self):
        self.notes = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.notes.append(float(trainer.callback_metrics["logged"]))


@pytest.mark.parametrize("kind", [Mean, ModuleMean])
def test_wherever_a_run_is_cut_the_objects_go_on(tmp_path, kind):
    def run(module, *callbacks, ckpt_path=None):
        notes = Notes()
        trainer_of(notes, *callbacks, max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=None).fit(
            module, loader(batch_size=3), loader(batch_size=6), ckpt_path=ckpt_path
        )
        return notes.notes, module.seen

    save = Save(tmp_path)
    at_end = ModelCheckpoint(tmp_path, "{epoch}-end", auto_insert_metric_name=False, save_top_k=-1)
    notes, seen = run(Measured(kind), save, at_end)
    files = [*save.files, tmp_path / "0-end.ckpt", tmp_path / "1-end.ckpt"]
    assert len(files) == 14
    for path in files:
        resumed_notes, resumed_seen = run(Measured(kind), ckpt_path=path)
        assert resumed_notes == notes[2 - len(resumed_notes) :], path.name
        assert resumed_seen == seen[len(seen) - len(resumed_seen) :], path.name
        expected = {"0-end.ckpt": 1, "1-end.ckpt": 0}.get(path.name, 2 - int(path.name[0]))
        assert len(resumed_notes) == expected, path.name


def test_a_setting_is_not_part_of_the_state():
    one, other = Mean(), Mean()
    one.update(torch.tensor(3.0))
    state = state_of("mean", one)
    assert state == {"": {"total": 6.0, "count": 1, "parts": [torch.tensor(3.0)], "extremes": {"last": 3.0}}}
    other.scale = 5.0
    restore(other, state, torch.device("cpu"))
    assert (other.total, other.count, other.scale) == (6.0, 1, 5.0)
    one.update(torch.tensor(1.0))
    assert len(other.parts) == 1


def test_sets_and_numpys_numbers_are_kept_as_they_are_now():
    class Seen(Mean):
        def reset(self):
            super().reset()
            self.names, self.best = set(), numpy.float64(0)

    seen = Seen()
    seen.names.add("a")
    seen.best = numpy.float64(2)
    state = state_of("seen", seen)
    seen.names.add("b")
    assert state == {"": {"names": {"a"}, "best": 2.0}}


def test_parts_of_a_metric_object_are_not_counted_twice():
    module = Measured(ModuleMean)
    assert list(metric_objects(module)) == ["logged", "at_end", "validation"]


def test_an_object_that_cannot_be_copied_is_told(tmp_path):
    class Locked(Mean):
        def __deepcopy__(self, memo):
            raise TypeError("a lock")

    module = Measured(Locked)
    trainer = trainer_of(ModelCheckpoint(tmp_path), max_epochs=1, enable_checkpointing=True)
    with pytest.warns(
        UserWarning, match=r"the metric object logged \(Locked\) cannot be copied and reset \(TypeError: a lock\)"
    ):
        trainer.fit(module, loader())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"a": 1.0, "b": 2.0},
            r"`self.log\('seen', ...\)`: Several.compute\(\) gave several values, .* `self.log_dict`",
        ),
        (torch.zeros(3), r"`self.log\('seen', ...\)`: Several.compute\(\) gave a tensor of shape \(3,\)"),
    ],
    ids=["collection", "vector"],
)
def test_collections_and_vectors_are_refused_by_name(value, message):
    class Several:
        def compute(self):
            return value

        def reset(self):
            pass

    with pytest.raises(ValueError, match=message):
        one_number("seen", Several(), value)
    arguments = LogArguments(False, True, False, True, "mean", False, False, True, False)
    entry = LoggedValue("seen", "training_step", arguments)
    entry.take_metric(Several())
    with pytest.raises(ValueError, match=message):
        entry.epoch_value()


def test_what_has_anything_it_is_asked_for_is_no_metric_object(tmp_path):
    module = Net()
    module.on_train_epoch_end = unittest.mock.Mock()  # as tests of modules do
    assert metric_objects(module) == {}
    trainer = trainer_of(max_epochs=2)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "mocked.ckpt")
    assert module.on_train_epoch_end.call_count == 2
