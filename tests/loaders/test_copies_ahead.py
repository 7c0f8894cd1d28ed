"""The next batch is copied to the GPU on a stream of its own while a step computes. No GPU is needed here: streams that
only take notes stand for CUDA's, and tensors that say that they are there.
"""

import contextlib

import pytest
import torch
from loader_lab import Save
from quiet import quiet_trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from espnet3_lite import LiteDataModule, LiteModule
from espnet3_lite.loaders.transfer import OnItsWay, side_stream
from espnet3_lite.trainer import setup


class OnGPU(torch.Tensor):
    """Says that it is on a GPU, and notes which stream uses it."""

    recorded = []
    is_cuda = True

    def record_stream(self, stream):
        self.recorded.append((self.tolist(), stream))


class Note:
    """A stream, or an event, that writes down what it is told."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __repr__(self):
        return self.name

    def wait_stream(self, other):
        self.notes.append(f"{self} waits for all on {other}")

    def wait_event(self, event):
        self.notes.append(f"{self} waits for {event}")

    def record_event(self):
        self.notes.append(f"{self} copied")
        return f"copy {sum(note == f'{self} copied' for note in self.notes)}"


@pytest.fixture
def notes(monkeypatch):
    """What streams and steps do, in order; `torch.cuda` knows no streams but these."""
    notes, OnGPU.recorded = [], []
    computing = Note("steps", notes)

    @contextlib.contextmanager
    def entered(stream):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        try:
            yield
        finally:
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)

    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(setup, "side_stream", lambda device: Note("side", notes))
    return notes


class Numbers(Dataset):
    def __init__(self, fails_at=None):
        self.fails_at = fails_at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.fails_at:
            raise KeyError(f"no sample {index}")
        return torch.tensor([float(index)])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4.0).reshape(4, 1))


class Model(LiteModule):
    def __init__(self, notes):
        super().__init__()
        self.notes, self.weight = notes, torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.notes.append(f"step {batch_idx} on {batch.item():g}")
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(**settings):
    """On the CPU a batch is there already; but with `64-true` it has a conversion before it."""
    return quiet_trainer(**{"max_epochs": 1, "precision": "64-true", **settings})


def epoch(notes, loader, model=None, **settings):
    """The notes of an epoch."""
    trainer_of(**settings).fit(model or Model(notes), loader)
    return notes


AHEAD = [
    "side waits for all on steps", "side copied", "step 0 on 0",
    "side waits for all on steps", "side copied", "steps waits for copy 1", "step 1 on 1",
    "side waits for all on steps", "side copied", "steps waits for copy 2", "step 2 on 2",
    "steps waits for copy 3", "step 3 on 3",
]  # fmt: skip


@pytest.mark.parametrize("data", [Numbers, Stream])
def test_each_copy_begins_before_the_step_before_it_and_no_batch_is_read_twice(data, notes):
    """The first batch has no step to be copied behind; each step waits for its own batch's copy, not for the next."""
    assert epoch(notes, DataLoader(data(), batch_size=None, num_workers=1)) == AHEAD


class Validates(Model):
    def validation_step(self, batch, batch_idx):
        self.notes.append(f"validation {batch_idx} on {batch.item():g}")


def test_nothing_beyond_the_limit_is_copied(notes):
    assert epoch(notes, DataLoader(Numbers(), num_workers=1), limit_train_batches=2) == AHEAD[:3] + AHEAD[5:7]


def test_an_evaluation_copies_ahead_too(notes):
    trainer_of(limit_val_batches=3).validate(Validates(notes), DataLoader(Numbers(), num_workers=1), verbose=False)
    assert notes == [note.replace("step ", "validation ") for note in AHEAD[:7] + AHEAD[9:11]]


class InDataModule(LiteDataModule):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def train_dataloader(self):
        return DataLoader(Numbers(), num_workers=1)


def overriding(hook):
    return type("Overriding", (Model,), {hook: lambda self, batch, *others: batch})


STEPS = [note for note in AHEAD if note.startswith("step ")]


@pytest.mark.parametrize("loader", [DataLoader(Numbers()), DataLoader(Stream()), list(torch.arange(4.0))])
def test_what_the_training_process_reads_itself_is_copied_in_its_turn(loader, notes):
    assert epoch(notes, loader) == STEPS


def test_it_can_be_switched_off(notes):
    assert epoch(notes, DataLoader(Numbers(), num_workers=1), prefetch_to_device=False) == STEPS


@pytest.mark.parametrize("hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"])
def test_hooks_see_a_batch_in_its_turn(hook, notes):
    assert epoch(notes, DataLoader(Numbers(), num_workers=1), overriding(hook)(notes)) == STEPS


def test_hooks_of_a_data_module_too(notes):
    trainer_of().fit(Model(notes), datamodule=InDataModule())
    assert notes == STEPS


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_a_gpu_has_a_side_stream(device):
    assert side_stream(torch.device(device)) is None


def test_without_a_gpu_nothing_is_copied_ahead():
    trainer = trainer_of()
    trainer.fit(Model([]), DataLoader(Numbers(), num_workers=1))
    assert trainer.prefetch_to_device is True
    assert trainer.plan.transfer is not None
    assert trainer.plan.copy is None


class Moves:
    """Moves itself, and counts it."""

    def __init__(self, x):
        self.x, self.moved = x, 0

    def to(self, device):
        self.moved += 1


def test_every_tensor_of_a_batch_is_kept_for_the_stream_that_uses_it(notes):
    def there(value):
        return torch.tensor([value]).as_subclass(OnGPU)

    moves, on_the_host = Moves(there(3.0)), torch.tensor([9.0])
    side = setup.side_stream(None)
    way = OnItsWay(torch.device("cpu"), side, (["a"], {"x": there(1.0), "more": [there(2.0), moves]}, on_the_host))
    assert OnGPU.recorded == []
    uids, named, _ = way.arrive()
    assert (uids, named["x"].tolist(), named["more"][1] is moves, moves.moved) == (["a"], [1.0], True, 1)
    assert [(value, str(stream)) for value, stream in OnGPU.recorded] == [
        ([1.0], "steps"), ([2.0], "steps"), ([3.0], "steps"),
    ]  # fmt: skip


class CannotMove:
    def to(self, device):
        raise RuntimeError("it stays here")


def cannot_move(samples):
    """A collate function: the batch of the third sample."""
    return CannotMove() if samples[0] == 2 else samples[0]


@pytest.mark.parametrize("data", [Numbers, Stream])
def test_what_cannot_be_copied_is_an_error_after_the_step_before_it(data, notes):
    with pytest.raises(RuntimeError, match="it stays here"):
        epoch(notes, DataLoader(data(), num_workers=1, collate_fn=cannot_move))
    assert [note for note in notes if note.startswith("step ")] == STEPS[:2]
    assert notes[-1] == STEPS[1]


class BreaksOff(Stream):
    def __iter__(self):
        yield from super().__iter__()
        raise KeyError("no sample 4")


@pytest.mark.parametrize(("data", "steps"), [(Numbers(fails_at=2), 2), (BreaksOff(), 4)])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_an_error_after_the_step_before_it(data, steps, workers, notes):
    with pytest.raises(KeyError, match="no sample"):
        epoch(notes, DataLoader(data, batch_size=None, num_workers=workers))
    assert [note for note in notes if note.startswith("step ")] == STEPS[:steps]


def test_a_conversion_comes_in_its_turn(notes):
    """What has arrived is converted, not what is on its way."""
    model = Model(notes)
    seen = []
    model.training_step = lambda batch, batch_idx: seen.append(batch.dtype) or (model.weight * batch).sum()
    epoch(notes, DataLoader(Numbers(), num_workers=1), model)
    assert seen == [torch.float64] * 4
    assert notes.count("side copied") == 3


def test_a_run_goes_on_behind_the_batch_that_was_trained(notes, tmp_path):
    """A batch that was copied ahead does not count: its number is not in the checkpoint."""
    loader = DataLoader(Numbers(), num_workers=1)
    epoch(notes, loader, callbacks=[Save(tmp_path)], max_steps=2)
    assert "side copied" in notes
    trainer_of().fit(Model(notes), loader, ckpt_path=tmp_path / "0-1.ckpt")
    assert [note for note in notes if note.startswith("step ")] == STEPS


class Sums(Model):
    def training_step(self, batch, batch_idx):
        self.notes.append((batch_idx, batch.flatten().tolist()))
        return (self.weight * batch).sum()


def test_a_resumed_run_whose_steps_take_more_samples_reads_ahead_to_its_own_epochs_end(tmp_path, notes):
    """As it is with more ranks: three batches of one sample are over, and two of two samples are left, not one."""
    data = torch.arange(7.0).tolist()
    trainer_of(callbacks=[Save(tmp_path)], max_steps=3).fit(Sums([]), DataLoader(data, num_workers=1))
    module = Sums([])
    trainer_of().fit(module, DataLoader(data, batch_size=2, num_workers=1), ckpt_path=tmp_path / "0-2.ckpt")
    assert module.notes == [(2, [3.0, 4.0]), (3, [5.0, 6.0])]
