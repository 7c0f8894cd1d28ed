"""Loaders as people bring them: several, of a wrong length, used up, with a state of their own, or no loader at all."""

import math

import pytest
import torch
from loader_lab import check_resumed, fit, quiet
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer


class Model(LiteModule):
    """Keeps the batches that it was trained and validated on, and the rates it was trained with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.flatten().tolist()))
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated.append((self.global_step, dataloader_idx, batch.flatten().tolist()))
        self.log("value", batch.mean())

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("value", batch.mean(), on_step=True, on_epoch=True)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return dataloader_idx, batch.flatten().tolist()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def rows(count, offset=0.0):
    return (torch.arange(float(count)) + offset).reshape(-1, 1)


def numbers(count, size=1, offset=0.0, **settings):
    return DataLoader(rows(count, offset), size, **settings)


# ---- several of them -----------------------------------------------------------------------------------------------


def test_a_dict_of_loaders_is_several_named_by_its_keys():
    loaders = {"clean": numbers(2, offset=1.0), "other": numbers(1, offset=5.0)}
    trainer, model = quiet(max_epochs=1), Model()
    assert trainer.validate(model, loaders, verbose=False) == [{"value/clean": 1.5}, {"value/other": 5.0}]
    assert model.validated == [(0, 0, [1.0]), (0, 0, [2.0]), (0, 1, [5.0])]
    assert trainer.val_dataloaders is loaders and trainer.num_val_batches == [2, 1]
    assert trainer.test(model, loaders, verbose=False) == [{"value_epoch/clean": 1.5}, {"value_epoch/other": 5.0}]
    assert trainer.predict(model, loaders) == [[(0, [1.0]), (0, [2.0])], [(1, [5.0])]]


def test_in_a_fit_too_and_one_alone_needs_no_name():
    trainer = quiet(max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Model(), numbers(1), {"clean": numbers(2, offset=1.0), "other": numbers(1, offset=5.0)})
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {
        "value/clean": 1.5, "value/other": 5.0,
    }  # fmt: skip
    assert trainer.validate(Model(), {"clean": numbers(2)}, verbose=False) == [{"value": 0.5}]


class NoDataLoader:
    """A loader of a user's own."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["DataLoader", "own", "generator", "mixed"])
def test_a_list_of_nothing_but_loaders_is_several(kind):
    own = NoDataLoader(torch.ones(1, 1))
    given = {"DataLoader": [numbers(1, offset=1.0)] * 2, "own": [own, own], "mixed": [numbers(1, offset=1.0), own],
             "generator": [(torch.ones(1, 1) for _ in range(1)) for _ in range(2)]}[kind]  # fmt: skip
    results = quiet(max_epochs=1).validate(Model(), given, verbose=False)
    assert results == [{"value/dataloader_idx_0": 1.0}, {"value/dataloader_idx_1": 1.0}]


def test_any_other_list_is_one_loader_of_batches():
    batches = [torch.ones(2, 1), torch.full((1, 1), 4.0)]
    assert quiet(max_epochs=1).validate(Model(), batches, verbose=False) == [{"value": 2.0}]
    model = fit(Model, lambda: batches, max_epochs=1)
    assert [batch for _, _, batch in model.seen] == [[1.0, 1.0], [4.0]]

    class Pairs(Model):
        def validation_step(self, batch, batch_idx):
            self.log("value", batch[0].mean() + batch[1].mean())

    pairs = [[torch.ones(1, 1), torch.ones(1, 1)]] * 3  # each batch is a list itself
    assert quiet(max_epochs=1).validate(Pairs(), pairs, verbose=False) == [{"value": 2.0}]


def test_a_data_set_is_no_loader():
    data = TensorDataset(rows(3))
    for given in (data, {"clean": data, "other": data}):
        with pytest.raises(MisconfigurationException, match="is a data set .TensorDataset.*wrap it in a DataLoader"):
            quiet(max_epochs=1).validate(Model(), given, verbose=False)
    with pytest.raises(MisconfigurationException, match="the training loader is a data set .*DataLoader"):
        quiet(max_epochs=1).fit(Model(), data)
    prepared = type("DataLoaderShard", (DataLoader,), {"__module__": "accelerate.data_loader"})(data)
    with pytest.raises(
        MisconfigurationException, match="was prepared by accelerate .DataLoaderShard.*the loader it was given"
    ):
        quiet(max_epochs=1).fit(Model(), prepared)
    with pytest.raises(MisconfigurationException, match=r"val_dataloader/other must be a loader.*got int"):
        quiet(max_epochs=1).fit(Model(), numbers(1), {"clean": numbers(1), "other": 3})


# ---- where an epoch ends -------------------------------------------------------------------------------------------


class LongerThanItIs(IterableDataset):
    def __len__(self):
        return 20

    def __iter__(self):
        return iter(rows(5))


class LyingSampler(Sampler):
    def __len__(self):
        return 20

    def __iter__(self):
        return iter(range(5))


class LyingLoader(NoDataLoader):
    def __len__(self):
        return 20


TOO_LONG = {
    "stream": lambda: DataLoader(LongerThanItIs(), 1),
    "stream in a worker": lambda: DataLoader(LongerThanItIs(), 1, num_workers=1),
    "sampler": lambda: DataLoader(rows(5), 1, sampler=LyingSampler()),
    "sampler and workers": lambda: DataLoader(rows(5), 1, sampler=LyingSampler(), num_workers=2),
    "own": lambda: LyingLoader(*rows(5).split(1)),
}


class Ends(Callback):
    def __init__(self):
        self.epochs = self.validations = 0

    def on_validation_end(self, trainer, pl_module):
        self.validations += 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1


@pytest.mark.parametrize("kind", TOO_LONG)
def test_an_epoch_ends_where_the_loader_ends(kind):
    """The last batch closes its window, the scheduler steps, validation runs, as with the right length."""

    def train(make):
        ends = Ends()
        module = fit(Model, make, val=lambda: numbers(1), accumulate_grad_batches=2, max_epochs=3, callbacks=[ends])
        assert (ends.epochs, ends.validations) == (3, 3) and len(module.seen) == 15
        assert module.trainer.global_step == 9 and module.optimizers().param_groups[0]["lr"] == 0.1 / 8
        return module.layer.weight

    with pytest.warns(UserWarning, match=r"gave 5 batches, though its length says 20") as caught:
        weight = train(TOO_LONG[kind])
    assert len([each for each in caught if "its length says" in str(each.message)]) == 1
    assert torch.equal(weight, train(lambda: numbers(5)))


def test_with_a_limit_above_what_a_stream_gives():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows(5))

    ends = Ends()
    module = fit(
        Model, lambda: DataLoader(Stream(), 1), val=lambda: numbers(1), limit_train_batches=9, callbacks=[ends]
    )
    assert (len(module.seen), ends.epochs, ends.validations) == (10, 2, 2)


def test_nothing_is_read_behind_the_limit():
    read = []

    def batches():
        for batch in rows(9).split(1):
            read.append(float(batch))
            yield batch

    fit(Model, batches, max_epochs=1, limit_train_batches=3)
    assert read == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("settings", [{"max_steps": 20, "max_epochs": -1}, {"max_epochs": 3}])
def test_a_generator_is_used_up_after_one_epoch(settings):
    with pytest.raises(MisconfigurationException, match="loader .generator. gave no batch in this epoch.*over twice"):
        fit(Model, lambda: (batch for batch in rows(4).split(1)), **settings)
    once = fit(Model, lambda: (batch for batch in rows(4).split(1)), max_epochs=1)
    assert len(once.seen) == 4


def test_a_validation_generator_is_used_up_too():
    with pytest.raises(MisconfigurationException, match="validation: the loader .generator. gave no batch"):
        fit(Model, lambda: numbers(2), val=lambda: (batch for batch in rows(2).split(1)))


def test_a_validation_loader_that_never_gives_a_batch_is_not_said_to_have_given_one():
    module = fit(Model, lambda: numbers(2), val=lambda: NoDataLoader())
    assert module.trainer.current_epoch == 2


def test_a_stream_without_anything_is_warned_about_and_ends_the_fit():
    with pytest.warns(UserWarning, match="gave no batch, so that nothing is trained"):
        module = fit(Model, lambda: NoDataLoader(), max_epochs=-1, max_steps=3)
    assert module.seen == []


@pytest.mark.parametrize("loader", [[], NoDataLoader(), torch.utils.data.DataLoader(TensorDataset(rows(0)))])
@pytest.mark.parametrize("epoch_and_batch", [(0, 1), (0, 3)], ids=["within the epoch", "at its end"])
def test_a_run_that_resumes_without_a_batch_is_an_error(loader, epoch_and_batch, tmp_path):
    fit(Model, lambda: list(rows(4).split(1)), tmp_path)
    path = tmp_path / "{}-{}.ckpt".format(*epoch_and_batch)
    with pytest.raises(MisconfigurationException, match=r"gave no batch in this epoch.*batches before: it is empty"):
        fit(Model, lambda: loader, path=path, max_epochs=4)


class StopsIteration(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return next(iter([])) if index == 4 else torch.ones(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_iteration_in_a_sample_does_not_end_the_epoch_silently(workers):
    with pytest.raises(
        RuntimeError, match=r"ended after 2 batches.*StopsIteration.__getitem__ or the collate function"
    ):
        fit(Model, lambda: DataLoader(StopsIteration(), 2, num_workers=workers))


# ---- a state of its own --------------------------------------------------------------------------------------------


class Stateful:
    """Knows its position; where that is at the end, `iter` begins the next epoch. Notes what was taken from it."""

    def __init__(self, length=None):
        self.position, self.epoch, self.taken, self.length = 0, 0, [], length
        if length is not None:
            self.__class__ = SizedStateful

    def __iter__(self):
        if self.position == 5:
            self.position, self.epoch = 0, self.epoch + 1
        while self.position < 5:
            self.position += 1
            self.taken.append(10 * self.epoch + self.position)
            yield torch.full((1, 1), float(10 * self.epoch + self.position))

    def state_dict(self):
        return {"position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.position, self.epoch = state["position"], state["epoch"]


class SizedStateful(Stateful):
    def __len__(self):
        return self.length


@pytest.mark.parametrize("length", [None, 5, 8])
@pytest.mark.filterwarnings("ignore:the training loader .SizedStateful. gave 5 batches")
def test_a_loader_with_a_state_goes_on_in_mid_epoch_and_at_its_end(length, tmp_path):
    points = [(epoch, batch_idx) for epoch in (0, 1) for batch_idx in range(5)]
    whole = check_resumed(Model, lambda: Stateful(length), tmp_path, points, max_epochs=3)
    assert [batch for _, _, [batch] in whole.seen] == [10 * e + n for e in range(3) for n in (1, 2, 3, 4, 5)]


def test_at_the_end_of_an_epoch_nothing_is_taken_and_thrown_away(tmp_path):
    fit(Model, Stateful, tmp_path, max_epochs=2)
    loader = Stateful()
    fit(Model, lambda: loader, path=tmp_path / "0-4.ckpt", max_epochs=2)
    assert loader.taken == [11, 12, 13, 14, 15]


class Fresh:
    """As torchdata's StatefulDataLoader: an iteration begins anew, but for the first one after `load_state_dict`."""

    def __init__(self):
        self.generator, self.resumed, self.iteration = torch.Generator().manual_seed(3), None, None

    def __len__(self):
        return 4

    def __iter__(self):
        begun, position = self.resumed or (self.generator.get_state(), 0)
        self.resumed = None
        self.generator.set_state(begun)
        order = torch.randperm(4, generator=self.generator)
        self.iteration = iteration = [begun, position]
        return self._items(iteration, order)

    def _items(self, iteration, order):
        while iteration[1] < 4:
            iteration[1] += 1
            yield order[iteration[1] - 1].reshape(1, 1).float()

    def state_dict(self):
        return {"begun": self.iteration[0], "position": self.iteration[1]}

    def load_state_dict(self, state):
        self.resumed = state["begun"], state["position"]


@pytest.mark.parametrize("limit", [1.0, 3])
def test_a_loader_whose_iterations_begin_anew_does_so_after_an_epoch_that_was_over(limit, tmp_path):
    batches = 4 if limit == 1.0 else limit
    points = [(epoch, batch_idx) for epoch in (0, 1) for batch_idx in range(batches)]
    whole = check_resumed(Model, Fresh, tmp_path, points, max_epochs=3, limit_train_batches=limit)
    assert len(whole.seen) == 3 * batches


class PlaceUntilItsEnd:
    """As litdata's StreamingDataLoader: only an iteration that was read to its end lets go of `load_state_dict`."""

    def __init__(self):
        self.epoch, self.position, self.restore = 0, 0, False

    def __len__(self):
        return 4

    def __iter__(self):
        if not self.restore:
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(4, generator=torch.Generator().manual_seed(self.epoch))
        for number in order[self.position :]:
            self.position += 1
            yield number.reshape(1, 1).float()
        self.restore = False

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position, self.restore = state["epoch"], state["position"], state["position"] < 4


def test_a_loader_that_lets_go_of_its_place_at_its_end_is_read_up_to_there(tmp_path):
    points = [(epoch, batch_idx) for epoch in (0, 1) for batch_idx in range(4)]
    whole = check_resumed(Model, PlaceUntilItsEnd, tmp_path, points, max_epochs=3)
    assert len({str(whole.seen[4 * epoch :][:4]) for epoch in range(3)}) == 3


# ---- when they are asked for ---------------------------------------------------------------------------------------


def test_making_a_validation_loader_moves_no_random_numbers():
    def weights(drawn, **settings):
        class Random(Model):
            def val_dataloader(self):
                torch.rand(drawn)
                return numbers(2, shuffle=True)

        return fit(Random, lambda: numbers(8, shuffle=True), num_sanity_val_steps=2, **settings).seen

    assert weights(0) == weights(5)


class Told(Dataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_sets_are_told_each_epoch_once(workers):
    data = Told()
    fit(Model, lambda: DataLoader(data, 2, shuffle=True, num_workers=workers), max_epochs=3)
    assert data.epochs == [0, 1, 2]


def test_overfitting_validates_on_what_is_trained_on():
    with pytest.warns(UserWarning, match="validation takes the training's batches"):
        module = fit(Model, lambda: numbers(6, 2, shuffle=True), val=lambda: numbers(3, offset=9.0), overfit_batches=2,
                     num_sanity_val_steps=1)  # fmt: skip
    trained = [batch for _, _, batch in module.seen]
    assert trained == [[0.0, 1.0], [2.0, 3.0]] * 2
    assert [batch for _, _, batch in module.validated] == [[0.0, 1.0], *trained]


@pytest.mark.parametrize(
    "settings, steps",
    [({"max_epochs": 2}, math.inf), ({"max_epochs": 2, "max_steps": 6}, 6), ({"limit_train_batches": 3}, 6),
     ({"max_epochs": -1}, math.inf)],
)  # fmt: skip
def test_steps_of_a_stream_cannot_be_estimated(settings, steps):
    class Asks(Model):
        def configure_optimizers(self):
            self.estimate = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

        def on_train_start(self):
            self.trainer.should_stop = True

    assert fit(Asks, lambda: DataLoader(LongerStream(), 1), **settings).estimate == steps


class LongerStream(IterableDataset):
    def __iter__(self):
        return iter(rows(5))


def test_the_users_own_loader_is_what_can_be_read_from_the_trainer():
    train, val = numbers(2, num_workers=1), [numbers(1), numbers(1)]
    trainer = quiet(max_epochs=1)
    assert trainer.train_dataloader is None
    trainer.fit(Model(), train, val)
    assert trainer.train_dataloader is train and trainer.val_dataloaders is val
    assert isinstance(trainer, Trainer) and train.dataset is trainer.train_dataloader.dataset
