"""A run resumes, and its training loader does not give what it gave to the run that was cut: the user is told."""

import itertools
import random
import warnings

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from espnet3_lite import Callback, LiteModule, MisconfigurationException


class Buffer(Dataset):
    """Grows by one sample in each step, as a replay buffer does."""

    def __init__(self, count=4):
        self.items = [float(number) for number in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return torch.tensor([self.items[index]])


class Replays(LiteModule):
    def __init__(self, count=4, keeps=False):
        super().__init__()
        self.layer, self.buffer, self.keeps, self.seen = torch.nn.Linear(1, 1), Buffer(count), keeps, []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.flatten().tolist())
        self.buffer.items.append(float(len(self.buffer)))
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def train_dataloader(self):
        return DataLoader(self.buffer, 2, shuffle=True)

    def val_dataloader(self):
        return [torch.ones(1, 1)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint):
        if self.keeps:
            checkpoint["replay"] = list(self.buffer.items)

    def on_load_checkpoint(self, checkpoint):
        if self.keeps:
            self.buffer.items = list(checkpoint["replay"])


class Saves(Callback):
    """Saves once, in a hook, behind so many steps; with no path, never."""

    def __init__(self, path, step, hook="on_train_batch_end"):
        def save(trainer, module, *arguments):
            if path is not None and trainer.global_step == step:
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


def resumed(make, path, step, hook="on_train_batch_end", **settings):
    """A whole run, and one that goes on from its checkpoint; what that one warns of, and both modules."""
    whole, again = make(), make()
    settings = {"max_epochs": 3, "num_sanity_val_steps": 0, **settings}
    quiet_trainer(callbacks=[Saves(path, step, hook)], **settings).fit(*whole)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(**settings).fit(*again, ckpt_path=path)
    told = [str(warning.message) for warning in caught if "val_dataloader" not in str(warning.message)]
    return told, whole[0], again[0]


# ---- data that grow --------------------------------------------------------------------------------------------------

GROWN = (
    "Data that grow while a run trains, such as a replay buffer, are in no checkpoint by themselves: put them there in "
    "the module's on_save_checkpoint, and back in its on_load_checkpoint"
)


def test_a_replay_buffer_that_was_lost_is_told_within_an_epoch(tmp_path):
    told, *_ = resumed(lambda: [Replays()], tmp_path / "cut.ckpt", step=3)
    assert told == [
        f"this epoch had 6 samples (or batches) and has 4 now, so that its rest may repeat samples or miss some: "
        f"resume with the same data, or from a checkpoint of an epoch's end. {GROWN}"
    ]


def test_a_replay_buffer_that_was_lost_is_told_between_two_epochs(tmp_path):
    """Before, the run went on with a small buffer and said nothing."""
    told, *_ = resumed(lambda: [Replays()], tmp_path / "cut.ckpt", step=5, hook="on_train_epoch_end")
    assert told == [
        f"the training data had 9 samples (or batches) when the checkpoint was written, and have 4 now. {GROWN}"
    ]


def test_where_the_run_is_refused_for_it_that_is_said(tmp_path):
    """Its validation interval is larger than what is left of an epoch: there is nothing to change in it."""
    path, module = tmp_path / "cut.ckpt", Replays(16)
    settings = {"max_epochs": 3, "num_sanity_val_steps": 0, "val_check_interval": 8}
    quiet_trainer(callbacks=[Saves(path, 8, "on_train_epoch_end")], **settings).fit(module)
    with pytest.raises(MisconfigurationException) as raised:
        quiet_trainer(**settings).fit(Replays(4), ckpt_path=path)
    assert str(raised.value).endswith(
        f"set `check_val_every_n_epoch=None`. the training data had 24 samples (or batches) when the checkpoint was "
        f"written, and have 4 now. {GROWN}"
    )
    with pytest.raises(MisconfigurationException) as raised:
        quiet_trainer(**settings).fit(Replays(4))
    assert str(raised.value).endswith("set `check_val_every_n_epoch=None`.")


def test_a_replay_buffer_that_is_kept_goes_on_with_the_same_batches(tmp_path):
    told, whole, again = resumed(
        lambda: [Replays(keeps=True)], tmp_path / "cut.ckpt", step=5, hook="on_train_epoch_end"
    )
    assert told == [] and again.seen == whole.seen[5:]


def test_data_that_have_grown_within_the_epoch_are_told_though_they_are_kept(tmp_path):
    """Their order was drawn from fewer."""
    (told,), *_ = resumed(lambda: [Replays(keeps=True)], tmp_path / "cut.ckpt", step=3)
    assert told.startswith("this epoch had 6 samples (or batches) and has 7 now, so that its rest may repeat")


# ---- streams ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Numbers in the order in which `shuffle` puts them."""

    def __init__(self, shuffle):
        self.shuffle = shuffle

    def __iter__(self):
        numbers = list(range(40))
        self.shuffle(numbers)
        return iter([torch.tensor([float(number)]) for number in numbers])


def by_itself(numbers):
    """As webdataset and datasets do without a seed."""
    random.Random().shuffle(numbers)


def by_global_numbers(numbers):
    random.shuffle(numbers)


class InPlace(Replays):
    """Changes its batches, and keeps nothing."""

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.flatten().tolist())
        return self.layer(batch.mul_(0.1)).mean()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_shuffles_by_itself_is_told_where_a_run_resumes_within_its_epoch(workers, tmp_path):
    def make():
        return InPlace(), DataLoader(Stream(by_itself), 2, num_workers=workers)

    told, *_ = resumed(make, tmp_path / "cut.ckpt", step=5, max_epochs=1)
    assert len(told) == 1 and told[0].startswith(
        "the run resumes within an epoch, and Stream gives other batches there than it gave to the run that was cut"
    )


class OwnIter(DataLoader):
    """As monai's `ThreadDataLoader` and prefetch_generator's: its batches depend on how far a thread was."""

    readings = itertools.count()

    def __iter__(self):
        number = next(self.readings)
        return (batch + number for batch in super().__iter__())


def test_a_loader_with_an_iter_of_its_own_is_told_what_would_do(tmp_path):
    (told,), *_ = resumed(lambda: (InPlace(), OwnIter(Buffer(40), 2)), tmp_path / "cut.ckpt", step=5, max_epochs=1)
    assert "Buffer gives other batches there" in told and "OwnIter has an __iter__ of its own" in told
    assert "num_workers=1" in told and "webdataset" not in told


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_optimizer_step", "on_validation_end"])
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_told_of_a_stream_that_gives_the_same(workers, hook, tmp_path):
    """Whenever the checkpoint is written, and whatever becomes of the batches."""

    def make():
        return InPlace(), DataLoader(Stream(by_global_numbers), 2, num_workers=workers)

    told, whole, again = resumed(make, tmp_path / "cut.ckpt", 5, hook, max_epochs=1, val_check_interval=5)
    assert told == [] and again.seen == whole.seen[5:]


def test_between_two_epochs_a_stream_may_give_what_it_likes(tmp_path):
    def make():
        return InPlace(), DataLoader(Stream(by_itself), 2)

    assert resumed(make, tmp_path / "cut.ckpt", 20, "on_train_epoch_end", max_epochs=2)[0] == []


# ---- workers that give their batches as they come --------------------------------------------------------------------


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_end", 2), ("on_train_epoch_end", 4)])
def test_batches_in_no_order_are_told_where_a_run_resumes_within_an_epoch(hook, step, tmp_path):
    def make():
        return InPlace(), DataLoader(Buffer(8), 2, num_workers=2, in_order=False)

    told, *_ = resumed(make, tmp_path / "cut.ckpt", step, hook, max_epochs=2)
    assert len(told) == (hook == "on_train_batch_end")
    assert all(text.startswith("the run resumes within an epoch whose loader has in_order=False") for text in told)
