"""The `dataloader` block: torch's loader, ESPnet's batches, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from espnet3_lite.config import Config
from espnet3_lite.espnet.data.collate import CommonCollateFn
from espnet3_lite.espnet.data.dataset import CombinedDataset, EpochShards, ShardedDataset
from espnet3_lite.espnet.data.iterators import EpochBatchSampler, FactoryLoader
from espnet3_lite.espnet.data.loader import DataLoaderBuilder
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loaders.samplers import EpochSampler

FACTORY = "espnet3_lite.espnet.data.iterators.SequenceIterFactory"


class Foreign:
    """An iterator factory that is not ours."""

    def __init__(self, dataset, batches, collate_fn=None, repeat=1):
        self.dataset, self.batches, self.repeat = dataset, list(batches), repeat

    def build_iter(self, epoch):
        return [(epoch, [self.dataset[key]["x"].item() for key in batch]) for batch in self.batches] * self.repeat


class Pieces(ShardedDataset):
    total_shards, dist_world_size = 2, 1

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"x": np.array([index])}

    def shard(self, idx):
        return [{"x": np.array([2 * idx + i])} for i in range(2)]


@pytest.fixture
def dataset():
    return CombinedDataset([[{"x": np.arange(n + 1)} for n in range(6)]], [(None, None)])


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "x_shape"
    path.write_text("".join(f"{n} {n + 1}\n" for n in range(6)))
    return str(path)


def config(**train):
    return Config.create({"dataloader": {"train": train}})


def with_factory(shapes, batches=None, distribution=None, **factory):
    batches = {"type": "sorted", "batch_size": 2, "shape_files": [shapes], **(batches or {})}
    return config(iter_factory={"_target_": FACTORY, "batches": batches, **factory}, batch_distribution=distribution)


def build(dataset, config, mode="train", **arguments):
    return DataLoaderBuilder(dataset, config, CommonCollateFn(), **arguments).build(mode)


def test_plain_loader(dataset):
    loader = build(dataset, config(iter_factory=None, batch_size=4, shuffle=False, num_workers=0, drop_last=False))
    assert type(loader) is DataLoader
    assert isinstance(loader.sampler, SequentialSampler)
    uids, batch = list(loader)[1]
    assert uids == ["4", "5"]
    assert batch["x"].tolist() == [[0, 1, 2, 3, 4, -1], [0, 1, 2, 3, 4, 5]]


def test_espnets_own_keys_do_not_reach_torch(dataset):
    block = {"batch_size": 2, "shuffle": True, "total_shards": 1, "dist_world_size": 1, "batch_distribution": "per_gpu"}
    loader = build(dataset, config(**block))
    assert isinstance(loader.sampler, EpochSampler) and loader.batch_size == 2
    first = list(loader.sampler)
    loader.sampler.set_epoch(1)
    assert sorted(first) == sorted(loader.sampler) == list(range(len(dataset)))
    assert first != list(loader.sampler)


def test_sampler_at_the_top_of_the_config(dataset):
    settings = {"dataloader": {"valid": {"batch_size": 2}}}
    settings["sampler"] = {"_target_": "torch.utils.data.SequentialSampler"}
    loader = build(dataset, settings, mode="valid")
    assert loader.sampler.data_source is dataset
    settings["batch_sampler"] = {"_target_": "builtins.list"}
    with pytest.raises(MisconfigurationException, match="both `sampler` and `batch_sampler`"):
        build(dataset, settings, mode="valid")


def test_factory_loader_serves_the_whole_run(dataset, shapes):
    loader = build(dataset, with_factory(shapes, shuffle=True, seed=1, num_iters_per_epoch=2))
    assert isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, EpochBatchSampler)
    batches = [("1", "0"), ("3", "2"), ("5", "4")]
    first, second = list(batches), list(batches)
    np.random.RandomState(1).shuffle(first)
    np.random.RandomState(2).shuffle(second)
    expected = [first[:2], [first[2], second[0]], second[1:]]
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        assert [tuple(uids) for uids, _ in loader] == expected[epoch]
        assert len(loader) == 2
    assert next(iter(loader))[1]["x"].dtype == torch.int64


def test_factory_loader_begins_with_the_epoch_given(dataset, shapes):
    late = build(dataset, with_factory(shapes, shuffle=True), epoch=3)
    loader = build(dataset, with_factory(shapes, shuffle=True), num_device=2)
    loader.batch_sampler.set_epoch(3)
    assert list(late.batch_sampler) == list(loader.batch_sampler)


def test_shuffle_false_is_respected(dataset, shapes):
    loader = build(dataset, with_factory(shapes, shuffle=False))
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        assert list(loader.batch_sampler) == [["1", "0"], ["3", "2"], ["5", "4"]]


def test_ids_only_for_collate_functions_that_want_them(dataset):
    class Subclass(CommonCollateFn):
        pass

    DataLoaderBuilder(dataset, config(batch_size=2), list).build("train")
    assert dataset.use_espnet_collator is False
    DataLoaderBuilder(dataset, config(batch_size=2), Subclass()).build("train")
    assert dataset.use_espnet_collator is True
    assert next(iter(DataLoaderBuilder([1, 2], config(batch_size=2)).build("train"))).tolist() == [1, 2]


@pytest.mark.parametrize(("given", "seen"), [(None, "per_gpu"), ("per_gpu", "per_gpu"), ("global", "global")])
def test_batch_distribution(dataset, shapes, given, seen):
    assert build(dataset, with_factory(shapes, distribution=given)).batch_sampler.batch_distribution == seen


def test_factorys_own_collate_function_comes_first(dataset, shapes):
    own = {"_target_": "espnet3_lite.espnet.data.collate.CommonCollateFn", "int_pad_value": 7}
    loader = build(dataset, with_factory(shapes, collate_fn=own))
    assert next(iter(loader))[1]["x"].tolist() == [[0, 1], [0, 7]]


def test_a_splits_own_collate_function(dataset, shapes):
    own = {"_target_": "espnet3_lite.espnet.data.collate.CommonCollateFn", "int_pad_value": 7}
    assert build(dataset, config(batch_size=2, collate_fn=own)).collate_fn.int_pad_value == 7
    settings = with_factory(shapes)
    settings.dataloader.train["collate_fn"] = own
    assert build(dataset, settings).collate_fn.int_pad_value == 7


@pytest.mark.parametrize("line", ["6 3", "some_id 3"])
def test_shape_files_of_other_data_are_noticed_at_once(dataset, shapes, line):
    with open(shapes, "a") as file:
        file.write(f"{line}\n")
    dataset = CombinedDataset([{str(n): dataset.datasets[0][n] for n in range(6)}], [(None, None)])
    key = line.split()[0]
    with pytest.raises(MisconfigurationException, match=f"have an utterance '{key}', the data set of 6 samples"):
        build(dataset, with_factory(shapes))


def test_batches_may_name_the_function_or_another_sampler(dataset, shapes):
    named = {"_target_": "espnet2.samplers.build_batch_sampler.build_batch_sampler"}
    assert list(build(dataset, with_factory(shapes, batches=named)).batch_sampler)[0] == ["1", "0"]
    own = {"_target_": "espnet3_lite.espnet.data.samplers.UnsortedBatchSampler", "key_file": shapes, "batch_size": 3}
    factory = {"_target_": FACTORY, "batches": own}
    assert list(build(dataset, config(iter_factory=factory)).batch_sampler) == [["0", "1", "2"], ["3", "4", "5"]]


def test_foreign_factory(dataset, shapes):
    settings = with_factory(shapes, batches={"batch_size": 3}, repeat=2, collate_fn={"_target_": "builtins.list"})
    settings.dataloader.train.iter_factory["_target_"] = f"{Foreign.__module__}.Foreign"
    dataset.transforms = [(lambda sample: {"x": sample["x"][-1:]}, lambda sample: sample)]
    loader = build(dataset, settings, epoch=4)
    assert isinstance(loader, FactoryLoader)
    assert list(loader) == [(5, [2, 1, 0]), (5, [5, 4, 3])] * 2


def test_foreign_factory_gets_its_ranks_share(dataset, shapes, monkeypatch):
    monkeypatch.setattr("espnet3_lite.espnet.data.loader.world_size", lambda: 2)
    monkeypatch.setattr("espnet3_lite.espnet.data.loader.global_rank", lambda: 1)
    settings = with_factory(shapes)
    settings.dataloader.train.iter_factory["_target_"] = f"{Foreign.__module__}.Foreign"
    assert build(dataset, settings).factory.batches == [("3", "2")]


class Anew(Foreign):
    """Makes its batches anew, as ESPnet's `CategoryIterFactory`, and looks these two up."""

    def __init__(self, dataset, batches, sampler_args, collate_fn=None):
        super().__init__(dataset, batches)
        self.sampler_args = sampler_args


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_factory_that_makes_batches_anew_shares_them_among_the_ranks(dataset, shapes, monkeypatch, ranks):
    monkeypatch.setattr("espnet3_lite.espnet.data.loader.world_size", lambda: ranks)
    settings = with_factory(shapes, sampler_args={"batch_size": 2, "distributed": False})
    settings.dataloader.train.iter_factory["_target_"] = f"{Foreign.__module__}.Anew"
    found = build(dataset, settings).factory.sampler_args
    assert found == {"batch_size": 2, "num_batches": None, "distributed": ranks == 2}


STRICT = """
class SequenceIterFactory:
    def __init__(self, dataset, batches, collate_fn=None):
        if not isinstance(batches, list):  # espnet2's own is typechecked likewise: its AbsSampler, or a sequence
            raise TypeError(f"batches is {type(batches).__name__}")
        self.batches = batches
"""


def test_espnets_own_factory_gets_a_list_with_one_process_too(dataset, shapes, tmp_path, monkeypatch):
    package = tmp_path / "espnet2" / "iterators"
    package.mkdir(parents=True)
    (tmp_path / "espnet2" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "sequence_iter_factory.py").write_text(STRICT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ESPNET3_LITE_USE_ESPNET", "1")
    settings = with_factory(shapes)
    settings.dataloader.train.iter_factory["_target_"] = "espnet2.iterators.sequence_iter_factory.SequenceIterFactory"
    try:
        assert build(dataset, settings).factory.batches == [("1", "0"), ("3", "2"), ("5", "4")]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "espnet2"]:
            del sys.modules[name]


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr("espnet3_lite.espnet.data.loader.world_size", lambda: 2)
    monkeypatch.setattr("espnet3_lite.espnet.data.loader.global_rank", lambda: 1)


@pytest.mark.filterwarnings("ignore:batch_bins=1 is smaller")
def test_global_batches_have_something_for_each_rank(dataset, shapes, second_of_two):
    """As ESPnet3: no batch is smaller than there are ranks; a batch that is, is refused."""
    tight = {"type": "length", "batch_bins": 1}
    loader = build(dataset, with_factory(shapes, tight, "global"))
    assert list(loader.batch_sampler) == [["1", "0"], ["3", "2"], ["5", "4"]]
    assert len(build(dataset, with_factory(shapes, tight, "per_gpu")).batch_sampler) == 5
    larger = with_factory(shapes, {**tight, "min_batch_size": 3}, "global")
    assert list(map(len, build(dataset, larger).batch_sampler)) == [3, 3]
    with pytest.raises(MisconfigurationException, match="cannot split batch 0 of size 1 over world_size=2"):
        build(dataset, with_factory(shapes, {"batch_size": 1}, "global"))


def test_a_foreign_factory_gets_its_part_of_global_batches(dataset, shapes, second_of_two):
    settings = with_factory(shapes, {"batch_size": 3}, "global")
    factory = settings.dataloader.train.iter_factory
    factory["_target_"] = f"{Foreign.__module__}.Foreign"
    assert build(dataset, settings).factory.batches == [("1",), ("4",)]
    factory["_target_"] = "espnet2.iterators.category_iter_factory.CategoryIterFactory"
    with pytest.raises(MisconfigurationException, match="needs sampler_args.distributed: true"):
        build(dataset, settings)


def test_global_batches_are_neither_dealt_anew_nor_sharded(dataset, shapes):
    with pytest.raises(MisconfigurationException, match="shuffle_within_batch: true does not go with"):
        build(dataset, with_factory(shapes, distribution="global", shuffle_within_batch=True))
    with pytest.raises(MisconfigurationException, match="not sharded, but the data set has total_shards=2; use per_g"):
        build(CombinedDataset([Pieces()], [(None, None)]), with_factory(shapes, distribution="global"))


def test_sharded_data_set_takes_the_epochs_shard():
    data = CombinedDataset([Pieces()], [(None, None)])
    loader = build(data, config(batch_size=2), epoch=1)
    assert isinstance(loader.dataset, EpochShards)
    assert [batch["x"].tolist() for _, batch in loader] == [[[2], [3]]]
    loader.dataset.set_epoch(2)
    assert [batch["x"].tolist() for _, batch in loader] == [[[0], [1]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "the config needs a `dataloader` block with `train` and `valid`, got None"),
        ({"dataloader": {"trian": {}}}, "no dataloader.train; it has .*did you mean 'trian'"),
        ({"dataloader": {"train": None}}, "the config has no dataloader.train"),
        (
            {"dataloader": {"train": {"batchsize": 2}}},
            "dataloader.train has the unknown key 'batchsize'; known are .*; did you mean 'batch_size'",
        ),
        (
            {"dataloader": {"train": {"batch_distribution": "globl"}}},
            "must be 'per_gpu' or 'global', got 'globl'; did you mean 'global'",
        ),
        ({"dataloader": {"train": {"batch_distribution": "global"}}}, "global needs an iter_factory"),
        (
            {"dataloader": {"train": {"num_iters_per_epoch": 3}}},
            "dataloader.train.num_iters_per_epoch: belongs under iter_factory: dataloader.train.iter_factory.num_iters",
        ),
        ({"dataloader": {"train": {"multiple_iterator": True}}}, "multiple_iterator is not supported"),
        ({"dataloader": {"train": {"iter_factory": {"batches": {}}}}}, "iter_factory must be a mapping with a"),
        (
            {"dataloader": {"train": {"iter_factory": {"_target_": "espnet2.iterators.x.MultipleIterFactory"}}}},
            "MultipleIterFactory is not supported",
        ),
        (
            {"dataloader": {"train": {"iter_factory": {"_target_": FACTORY}}}},
            "iter_factory.batches must be a mapping with a `type` and shape_files, got None",
        ),
        (
            {"dataloader": {"train": {"iter_factory": {"_target_": FACTORY, "batches": {"batch_size": 3}}}}},
            "iter_factory.batches has no `type`",
        ),
        (
            {
                "dataloader": {
                    "train": {"iter_factory": {"_target_": FACTORY, "batches": {"type": "numel", "batch_bin": 3}}}
                }
            },
            "iter_factory.batches has the unknown key 'batch_bin'; known are .*; did you mean 'batch_bins'",
        ),
    ],
)
def test_blocks_that_cannot_be_built(dataset, settings, message):
    with pytest.raises(MisconfigurationException, match=message):
        build(dataset, settings)


def test_espnets_names_give_ours(dataset, shapes):
    settings = with_factory(shapes, collate_fn={"_target_": "espnet2.train.collate_fn.CommonCollateFn"})
    settings.dataloader.train.iter_factory["_target_"] = "espnet2.iterators.sequence_iter_factory.SequenceIterFactory"
    loader = build(dataset, settings)
    assert isinstance(loader.batch_sampler, EpochBatchSampler)
    assert type(loader.collate_fn) is CommonCollateFn


class Ragged:
    """Samples of other lengths."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(index + 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_unequal_size_ask_for_a_collate_function(workers):
    loader = DataLoaderBuilder(Ragged(), config(batch_size=2, num_workers=workers)).build("train")
    with pytest.raises(RuntimeError, match=r"equal size.*dataloader\.collate_fn.*_partial_: true"):
        next(iter(loader))


def test_without_batches_samples_stay_as_they_are():
    loader = DataLoaderBuilder(Ragged(), config(batch_size=None)).build("train")
    assert [len(sample) for sample in loader] == [1, 2, 3, 4]
