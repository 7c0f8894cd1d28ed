"""Loaders that change while a run goes on: they grow, are asked for anew, count for themselves, keep their workers."""

import gc
import itertools
import time

import pytest
import torch
from loader_lab import check_resumed, fit, quiet
from torch.utils.data import DataLoader, Dataset, IterableDataset

from espnet3_lite import Callback, LiteModule


class Model(LiteModule):
    """Says what happened, and of each training batch what was in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.events, self.seen = [], []

    def training_step(self, batch, batch_idx):
        self.events.append(batch_idx)
        self.seen.append((self.current_epoch, batch_idx, batch.flatten().tolist()))
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.events.append("validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Grows(Model):
    def on_train_epoch_start(self):
        self.trainer.train_dataloader.dataset.count = 2 + self.current_epoch


class AsksAnew(Model):
    """Its loader has another length in each epoch."""

    def train_dataloader(self):
        return DataLoader(Numbers(2 + self.current_epoch))


@pytest.mark.parametrize(
    ("model", "loader", "settings"),
    [
        (Grows, DataLoader(Numbers(2), shuffle=True), {}),
        (AsksAnew, None, {"reload_dataloaders_every_n_epochs": 1}),
    ],
)
def test_an_epoch_has_what_its_loader_has_and_is_validated_at_its_end(model, loader, settings):
    model = model()
    quiet(max_epochs=3, **settings).fit(model, loader, DataLoader(Numbers(1)))
    assert model.events == [0, 1, "validation", 0, 1, 2, "validation", 0, 1, 2, 3, "validation"]


def test_a_part_of_an_epoch_is_one_of_the_epoch_in_work():
    model = AsksAnew()
    settings = {"reload_dataloaders_every_n_epochs": 1, "val_check_interval": 0.5}
    quiet(max_epochs=3, **settings).fit(model, None, DataLoader(Numbers(1)))
    halves = [0, "validation", 1, "validation"], [0, "validation", 1, "validation", 2, "validation"]
    assert model.events == [*halves[0], *halves[1], 0, 1, "validation", 2, 3, "validation"]


class DrawsItsData(Model):
    """New data in each epoch, from a generator that the module keeps and from the global one."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def train_dataloader(self):
        data = torch.randn(4, 1, generator=self.generator) + torch.rand(())
        return DataLoader(data, shuffle=True)


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_draws_the_data_of_its_epoch_again(every, tmp_path):
    settings = {"reload_dataloaders_every_n_epochs": every, "max_epochs": 4}
    points = [(epoch, batch) for epoch in range(4) for batch in range(4)]
    check_resumed(DrawsItsData, lambda: None, tmp_path, points, **settings)


class SaveAtEnds(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_resumes_between_two_epochs_draws_the_next_one_s_data(every, tmp_path):
    settings = {"reload_dataloaders_every_n_epochs": every, "max_epochs": 4}
    whole = fit(DrawsItsData, lambda: None, callbacks=[SaveAtEnds(tmp_path)], **settings)
    for epoch in range(3):
        rest = fit(DrawsItsData, lambda: None, path=tmp_path / f"{epoch}.ckpt", **settings)
        assert rest.seen == whole.seen[4 * (epoch + 1) :]


class CountsItsEpochs(IterableDataset):
    """Says only when an epoch is over that it is."""

    epoch = 0

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        yield from (torch.tensor([10.0 * self.epoch + number]) for number in range(3))
        self.epoch += 1


def test_a_count_that_an_epochs_end_moves_goes_on(tmp_path):
    points = [(epoch, batch) for epoch in range(3) for batch in range(3)]
    check_resumed(Model, lambda: DataLoader(CountsItsEpochs()), tmp_path, points, max_epochs=3)


def test_other_data_within_an_epoch_are_told(tmp_path):
    fit(Model, lambda: DataLoader(Numbers(4), shuffle=True), tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match="this epoch had 4 samples .* and has 5 now"):
        fit(Model, lambda: DataLoader(Numbers(5), shuffle=True), path=tmp_path / "0-2.ckpt", max_epochs=1)


def test_the_same_data_are_not_told(tmp_path, recwarn):
    fit(Model, lambda: DataLoader(Numbers(4), shuffle=True), tmp_path, max_epochs=1)
    fit(Model, lambda: DataLoader(Numbers(4), shuffle=True), path=tmp_path / "0-2.ckpt", max_epochs=1)
    assert not [warning for warning in recwarn if "this epoch had" in str(warning.message)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(2, 1))


class Remembers(DataLoader):
    """Knows the workers that stay with it; a trainer's copies of it know them, too."""

    def __init__(self, data):
        super().__init__(data, num_workers=1, persistent_workers=True)
        self.workers = []

    def _get_iterator(self):
        iterator = super()._get_iterator()
        self.workers.extend(iterator._workers)
        return iterator


class GivesThem(Model):
    def __init__(self, train, val):
        super().__init__()
        self.train_loader, self.val_loader = train, val

    def train_dataloader(self):
        return self.train_loader

    def val_dataloader(self):
        return self.val_loader


@pytest.mark.parametrize(("every", "count"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("data", [Numbers(2), Stream()])
def test_workers_that_stay_end_with_the_call(data, every, count):
    train, val = Remembers(data), Remembers(data)
    began = time.monotonic()
    quiet(max_epochs=2, reload_dataloaders_every_n_epochs=every).fit(GivesThem(train, val))
    gc.collect()
    assert len(train.workers) == len(val.workers) == count
    assert not any(worker.is_alive() for worker in train.workers + val.workers)
    assert time.monotonic() - began < 4  # torch waits five seconds for a worker that does not hear of its end


def test_workers_that_stay_end_with_a_call_that_fails():
    class Fails(Model):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    train, val = Remembers(Numbers(2)), Remembers(Stream())
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet(max_epochs=2).fit(Fails(), train, val)
    assert not any(worker.is_alive() for worker in train.workers + val.workers)


def with_a_larger_size(loader):
    loader.batch_sampler.batch_size = 3


def with_full_batches_alone(loader):
    loader.batch_sampler.drop_last = True


def with_other_batches(loader):
    loader.collate_fn = lambda samples: torch.stack(samples) + 10


@pytest.mark.parametrize(
    ("change", "batches"),
    [
        (with_a_larger_size, [[0, 1, 2], [3, 4]]),
        (with_full_batches_alone, [[0, 1], [2, 3]]),
        (with_other_batches, [[10, 11], [12, 13], [14]]),
    ],
)
def test_what_a_hook_sets_in_the_loader_counts_from_the_next_epoch_on(change, batches):
    class Changes(Model):
        def on_train_epoch_end(self):
            change(self.trainer.train_dataloader)

    model = Changes()
    quiet(max_epochs=2).fit(model, DataLoader(Numbers(5), 2))
    assert [batch for epoch, _, batch in model.seen if epoch == 0] == [[0, 1], [2, 3], [4]]
    assert [batch for epoch, _, batch in model.seen if epoch == 1] == batches


@pytest.mark.parametrize(
    ("change", "batches"),
    [
        (with_a_larger_size, [[0, 1, 2], [3, 4]]),
        (with_full_batches_alone, [[0, 1], [2, 3]]),
        (with_other_batches, [[10, 11], [12, 13], [14]]),
    ],
)
@pytest.mark.parametrize("call", ["fit", "validate", "test", "predict"])
def test_what_a_hook_sets_in_an_evaluations_loader_counts_from_the_next_pass_on(call, change, batches):
    class Changes(Model):
        def validation_step(self, batch, batch_idx):
            self.seen.append((self.passes, batch.flatten().tolist()))

        test_step = predict_step = validation_step
        passes = 0

        def on_validation_epoch_end(self):
            self.passes += 1
            change(loader)

        on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

        def training_step(self, batch, batch_idx):
            return self.layer(batch).mean()

    model, loader = Changes(), DataLoader(Numbers(5), 2)
    trainer = quiet(max_epochs=2, num_sanity_val_steps=0)
    if call == "fit":
        trainer.fit(model, DataLoader(Numbers(2)), loader)
    else:
        for _ in range(2):
            getattr(trainer, call)(model, loader)
    assert [batch for passed, batch in model.seen if passed == 0] == [[0, 1], [2, 3], [4]]
    assert [batch for passed, batch in model.seen if passed == 1] == batches


def test_a_generator_that_a_hook_sets_in_the_loader_counts_from_the_next_epoch_on():
    class Changes(Model):
        def on_train_epoch_end(self):
            loader.generator = loader.sampler.generator = torch.Generator().manual_seed(5)

    loader = DataLoader(Numbers(5), 2, shuffle=True)
    model, again = Changes(), Model()
    quiet(max_epochs=2).fit(model, loader)
    generator = torch.Generator().manual_seed(5)
    quiet(max_epochs=1).fit(again, DataLoader(Numbers(5), 2, shuffle=True, generator=generator))
    assert [batch for epoch, _, batch in model.seen if epoch == 1] == [batch for *_, batch in again.seen]


class Notes:
    """A `worker_init_fn` that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __call__(self, worker_id):
        self.path.touch()


@pytest.mark.parametrize("stays", [False, True])
def test_what_a_hook_sets_for_the_workers_counts_from_the_next_epoch_on(stays, tmp_path):
    """Of a stream with workers that stay the trainer uses a copy."""

    class Changes(Model):
        def on_train_epoch_end(self):
            loader.worker_init_fn = Notes(tmp_path / f"after_{self.current_epoch}")

    loader = DataLoader(Stream() if stays else Numbers(4), 2, num_workers=1, persistent_workers=stays)
    quiet(max_epochs=2).fit(Changes(), loader)
    assert [path.name for path in tmp_path.iterdir()] == ["after_0"]


# ---- loaders that go their own way, with workers that stay -----------------------------------------------------------


class GoesItsOwnWay(DataLoader):
    """Gives each batch twice."""

    def __iter__(self):
        for batch in super().__iter__():
            yield from (batch, batch)

    def __len__(self):
        return 2 * super().__len__()


@pytest.mark.parametrize("data", [Numbers(2), Stream()])
def test_a_loader_with_an_iterator_of_its_own_may_keep_its_workers(data):
    model = Model()
    quiet(max_epochs=2).fit(model, GoesItsOwnWay(data, num_workers=1, persistent_workers=True))
    assert [number for _, _, [number] in model.seen] == 2 * ([0, 0, 1, 1] if isinstance(data, Numbers) else [0] * 4)


class KnowsItsPosition(DataLoader):
    """As torchdata's loaders, with workers that stay: it counts what it gave."""

    def __init__(self, data):
        super().__init__(data, num_workers=1, persistent_workers=True)
        self.given, self.left_out = 0, 0

    def __iter__(self):
        self.given, self.left_out = self.left_out, 0
        for batch in itertools.islice(super().__iter__(), self.given, None):
            self.given += 1
            yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.left_out = state["given"]


class Counting(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(4.0).reshape(4, 1))


@pytest.mark.parametrize("data", [Numbers(4), Counting()])
def test_a_loader_that_knows_its_position_may_keep_its_workers(data, tmp_path):
    points, made = [(epoch, batch) for epoch in range(2) for batch in range(3)], []
    whole = check_resumed(Model, lambda: made.append(KnowsItsPosition(data)) or made[-1], tmp_path, points)
    for loader in made:  # the user's own, which nobody else ends: the garbage collector would wait 5 s for each
        loader._iterator._shutdown_workers()
    assert [number for _, _, [number] in whole.seen] == 2 * [0, 1, 2, 3]


class BeginsAnewAtItsEnd:
    """As the loader of torchdata's nodes: an iteration from an end's state is a new one, and each new one draws."""

    def __init__(self):
        self.generator, self.resumed = torch.Generator().manual_seed(3), (4, [])

    def __iter__(self):
        self.position, self.order = self.resumed
        self.resumed = (4, [])
        if self.position == 4:
            self.position, self.order = 0, torch.randperm(4, generator=self.generator).tolist()
        return self._items()

    def _items(self):
        while self.position < 4:
            self.position += 1
            yield torch.tensor([[float(self.order[self.position - 1])]])

    def state_dict(self):
        return {"position": self.position, "order": self.order}

    def load_state_dict(self, state):
        self.resumed = state["position"], state["order"]


def test_a_loader_that_begins_anew_at_its_end_draws_once(tmp_path):
    points = [(epoch, batch) for epoch in range(2) for batch in range(4)]
    check_resumed(Model, BeginsAnewAtItsEnd, tmp_path, points, max_epochs=3)
    whole = fit(Model, BeginsAnewAtItsEnd, callbacks=[SaveAtEnds(tmp_path)], max_epochs=3)
    for epoch in range(2):
        rest = fit(Model, BeginsAnewAtItsEnd, path=tmp_path / f"{epoch}.ckpt", max_epochs=3)
        assert rest.seen == whole.seen[4 * (epoch + 1) :]
