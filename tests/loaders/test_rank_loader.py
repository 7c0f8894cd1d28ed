"""Loaders around which a run is started and continued, in one process; with several they are in `test_two_ranks`."""

from types import SimpleNamespace

import pytest
import torch
from rank_lab import SINGLE, Model, Module, Note, Samples, collate, report, trainer_of
from torch.utils.data import DataLoader, RandomSampler

from espnet3_lite import Callback
from espnet3_lite.distributed.single import Strategy
from espnet3_lite.loaders.rank_loader import SharedLoader, is_map_style, rebuild
from espnet3_lite.loaders.requests import prepare_loader

ALONE = Strategy(torch.device("cpu"))


class OfTwo(Strategy):
    """The second of two ranks, which have the same loader."""

    deals_out, world_size, global_rank = True, 2, 1

    def gather_objects(self, value):
        return [value, value]


def loader_of(**settings):
    return DataLoader(Samples(20), collate_fn=collate, **{"batch_size": 3, "shuffle": True, **settings})


def run(path=None, save=None, **settings):
    """Two epochs of a model with a user's own shuffled loader; saves to `save` within the second epoch."""
    torch.manual_seed(21)

    def keep(trainer, module, batch_idx):
        if save is not None and (trainer.current_epoch, batch_idx) == (1, 3):
            trainer.save_checkpoint(save)

    trainer, module = trainer_of(callbacks=[Note(keep)]), Module(Model(), SINGLE)
    if path is not None:
        torch.manual_seed(99)  # the checkpoint's random state counts, not this
    trainer.fit(module, loader_of(**settings), ckpt_path=path)
    return report(trainer, module)


def test_a_cut_epoch_of_a_users_own_shuffling_goes_on_in_its_order(tmp_path):
    whole = run(save=tmp_path / "cut.ckpt")
    rest = run(path=tmp_path / "cut.ckpt")
    assert rest["trained"] == whole["trained"][-3:]
    assert rest["parameters"] == whole["parameters"]


def test_a_generator_of_the_users_own_goes_on_too(tmp_path):
    whole = run(save=tmp_path / "cut.ckpt", generator=torch.Generator().manual_seed(8))
    rest = run(path=tmp_path / "cut.ckpt", generator=torch.Generator().manual_seed(9))
    assert rest["trained"] == whole["trained"][-3:]


def test_no_sample_of_what_was_over_is_loaded(tmp_path):
    run(save=tmp_path / "cut.ckpt")
    loaded = []

    class Watched(Samples):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    trainer, module = trainer_of(), Module(Model(), SINGLE)
    trainer.fit(module, DataLoader(Watched(20), 3, shuffle=True, collate_fn=collate), ckpt_path=tmp_path / "cut.ckpt")
    assert len(loaded) == 20 - 4 * 3


def test_a_run_between_two_epochs_goes_on_in_the_same_order(tmp_path):
    """The next epoch's order is drawn from the random state, which the checkpoint holds."""
    torch.manual_seed(21)

    class SaveAtEnd(Note):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "epoch.ckpt")

    trainer, module = trainer_of(max_epochs=3, callbacks=[SaveAtEnd(lambda *_: None)]), Module(Model(), SINGLE)
    trainer.fit(module, loader_of())
    torch.manual_seed(99)
    resumed, second = trainer_of(max_epochs=3), Module(Model(), SINGLE)
    resumed.fit(second, loader_of(), ckpt_path=tmp_path / "epoch.ckpt")
    assert second.trained == module.trained[7:]
    assert report(resumed, second)["parameters"] == report(trainer, module)["parameters"]


def test_one_rank_sees_what_its_loader_gives():
    torch.manual_seed(4)
    expected = [batch[0] for batch in loader_of()]
    torch.manual_seed(4)
    shared = SharedLoader(loader_of(), ALONE)
    shared.set_epoch(0)
    assert [batch[0] for batch in shared] == expected and shared.length == 7


@pytest.mark.parametrize("whole", [True, False])
def test_an_order_that_is_drawn_when_it_is_asked_for_is_drawn_once(whole):
    """As a `DataLoader` of its own would draw it, with the numbers that it draws itself before or after."""
    drawn = []

    class Draws:
        def __len__(self):
            return 10 if whole else 20

        def __iter__(self):
            drawn.append(torch.randperm(20))
            return iter(drawn[-1].reshape(10, 2).tolist() if whole else drawn[-1].tolist())

    def make():
        return loader_of(
            shuffle=None, **({"batch_sampler": Draws(), "batch_size": 1} if whole else {"sampler": Draws()})
        )

    torch.manual_seed(4)
    expected = [batch[0] for batch in make()]
    torch.manual_seed(4)
    shared = SharedLoader(make(), ALONE)
    shared.set_epoch(0)
    assert [batch[0] for batch in shared] == expected and len(drawn) == 2


def test_plain_shuffling_becomes_an_order_by_seed_and_epoch():
    shared = SharedLoader(loader_of(), ALONE, by_epoch=True, seed=5)
    orders = []
    for epoch in (0, 1, 0):
        shared.set_epoch(epoch)
        orders.append([batch[0] for batch in shared])
    assert orders[0] == orders[2] != orders[1]
    replaced = SharedLoader(loader_of(shuffle=False, sampler=RandomSampler(range(20), replacement=True)), ALONE)
    assert replaced.order.replacement  # drawing with replacement is the user's own


def test_a_rebuilt_loader_keeps_its_settings():
    loader = loader_of(num_workers=1, persistent_workers=True, prefetch_factor=3, timeout=5)
    rebuilt = rebuild(loader, batch_sampler=[[0, 1], [2]])
    for name in ("num_workers", "persistent_workers", "prefetch_factor", "timeout", "collate_fn", "dataset"):
        assert getattr(rebuilt, name) == getattr(loader, name)
    assert [batch[0] for batch in rebuilt] == [["utt0", "utt1"], ["utt2"]]
    assert is_map_style(loader) and not is_map_style([1])


def test_a_stream_that_goes_on_with_another_number_of_ranks_is_warned_about(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Samples(6)[index] for index in range(6)])

    def save(trainer, module, batch_idx):
        if trainer.current_epoch == 0 and batch_idx == 1:
            trainer.save_checkpoint(tmp_path / "one.ckpt")

    trainer_of(max_epochs=1, callbacks=[Note(save)]).fit(
        Module(Model(), SINGLE), DataLoader(Stream(), 1, collate_fn=collate)
    )
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    checkpoint["loops"]["espnet3_lite"]["train_data"]["ranks"] = 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    module = Module(Model(), SINGLE)
    with pytest.warns(UserWarning, match="written by 2 processes, this run has 1"):
        trainer_of(max_epochs=1).fit(
            module, DataLoader(Stream(), 1, collate_fn=collate), ckpt_path=tmp_path / "two.ckpt"
        )
    assert [batch for (batch,) in module.trained] == ["utt2", "utt3", "utt4", "utt5"]


class Rounds:
    """A loader of the user's own that knows how often it was iterated over, and says so in its state."""

    def __init__(self):
        self.rounds = 0

    def __iter__(self):
        self.rounds += 1
        for index in range(3):
            yield [f"round{self.rounds}"], {"x": torch.full((1, 3), index + 0.5).double(), "y": torch.ones(1).double()}

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
@pytest.mark.parametrize("kind", ["generator", "loader"])
def test_what_a_loader_itself_knows_goes_on_behind_an_epochs_last_batch(tmp_path, hook, kind):
    def one_run(path=None):
        class Save(Callback):
            pass

        def save(callback, trainer, *arguments):
            if path is None and trainer.current_epoch == 0 and trainer.fit_loop.is_last_batch:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

        setattr(Save, hook, save)
        loader = Rounds()
        if kind == "generator":
            loader = loader_of(generator=torch.Generator().manual_seed(8 if path is None else 9))
        trainer, module = trainer_of(callbacks=[Save()], max_epochs=3), Module(Model(), SINGLE)
        trainer.fit(module, loader, ckpt_path=path)
        return module.trained

    whole = one_run()
    assert one_run(tmp_path / "cut.ckpt") == whole[len(whole) // 3 :]


def test_a_list_that_each_rank_has_for_itself_is_read_as_it_is():
    """Without a `DataLoader` around it, which costs as much a batch as a small step does."""
    batches, strategy = [torch.zeros(1), torch.ones(1), torch.ones(2)], OfTwo(torch.device("cpu"))
    trainers = (SimpleNamespace(strategy=strategy, use_distributed_sampler=deal_out) for deal_out in (False, True))
    own, dealt = (prepare_loader(batches, trainer, training=True) for trainer in trainers)
    assert own.loader is batches
    assert [batch is given for batch, given in zip(iter(own), batches, strict=False)] == [True, True, True]
    assert isinstance(dealt, SharedLoader)
    assert len(list(dealt)) == 2  # every other batch, and a stand-in
