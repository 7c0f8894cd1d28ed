"""Combined, transformed and sharded data sets: which sample an index gives, under which id."""

import pytest
from torch.utils.data import DataLoader

from espnet3_lite.espnet.data.contract import DatasetContractError
from espnet3_lite.espnet.data.dataset import (
    CombinedDataset,
    DatasetWithTransform,
    EpochShards,
    ShardedDataset,
    do_nothing,
)
from espnet3_lite.exceptions import MisconfigurationException


class ByKey(dict):
    """Indexed by utterance id alone."""


class ByBoth:
    """Takes integers and utterance ids."""

    def __init__(self, **rows):
        self.rows = rows
        self.fetched = []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.fetched.append(index)
        return self.rows[index] if isinstance(index, str) else list(self.rows.values())[index]


def rows(*values):
    return [{"x": value} for value in values]


def combined(*datasets, **settings):
    return CombinedDataset(datasets, [(None, None)] * len(datasets), **settings)


def test_integers_count_over_all_data_sets():
    data = combined(rows(1, 2), rows(), rows(3))
    assert len(data) == 3
    assert [data[i]["x"] for i in range(3)] == [1, 2, 3]
    assert [data[-1]["x"], data[-3]["x"], data["2"]["x"]] == [3, 1, 3]
    for index in (3, -4, "3"):
        with pytest.raises(IndexError, match=f"index {index} is out of range: there are 3 samples"):
            data[index]


def test_each_data_set_has_its_transform_and_preprocessor():
    data = CombinedDataset(
        [rows(1), rows(2)],
        [(lambda s: {"x": s["x"] * 10}, lambda s: {"x": s["x"] + 1}), (None, lambda s: {"x": -s["x"]})],
    )
    assert [data[0], data[1]] == [{"x": 11}, {"x": -2}]


def test_espnets_preprocessors_and_collators_get_the_id():
    data = CombinedDataset(
        [rows(5), rows(6)],
        [(None, lambda uid, s: {"x": f"{uid}:{s['x']}"})] * 2,
        use_espnet_preprocessor=True,
    )
    assert data[1] == {"x": "1:6"}
    data.use_espnet_collator = True
    assert data[-1] == data["1"] == ("1", {"x": "1:6"})


def test_string_keys_are_ids():
    data = combined(ByKey(a={"x": 1}, b={"x": 2}), rows(3))
    data.use_espnet_collator = True
    assert data[1] == data["b"] == ("b", {"x": 2})
    assert data[2] == data["2"] == ("2", {"x": 3})
    with pytest.raises(KeyError, match="no data set has an utterance 'c'"):
        data["c"]


def test_ids_of_a_data_set_that_takes_integers_too():
    both = ByBoth(a={"x": 1}, b={"x": 2})
    data = combined(rows(0), both)
    data.use_espnet_collator = True
    both.fetched.clear()
    assert data["b"] == ("b", {"x": 2})
    assert both.fetched == ["b"]
    assert data[1] == ("1", {"x": 1})


def test_may_have_does_not_load():
    both = ByBoth(a={"x": 1}, b={"x": 2})
    keyed, mixed = combined(ByKey(a={"x": 1})), combined(both)
    both.fetched.clear()
    assert [keyed.may_have(index) for index in ("a", "b", "0", "1", 0, 1)] == [True, False, True, False, True, False]
    assert [mixed.may_have(index) for index in ("perhaps", "1", "2")] == [True, True, False]
    assert both.fetched == []


def test_an_id_that_python_reads_as_a_number_is_no_index():
    data = combined(rows(*range(20)))
    with pytest.raises(KeyError, match="1_2"):
        data["1_2"]


def test_errors_of_a_data_set_come_through():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        combined(Broken(rows(1)))

    class Promised(list):
        def __getitem__(self, index):
            raise DatasetContractError("text is missing")

    with pytest.raises(DatasetContractError, match="text is missing"):
        combined(Promised(rows(1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: combined(rows(1), [{"y": 2}]),
            r"data sets 0 and 1 differ in their keys: \['x'\] and \['y'\]",
        ),
        (
            lambda: combined([3]),
            r"data set 0 \(list\) gives int after its transform; a sample must be a dict, .*ESPnet's contract; a model",
        ),
        (lambda: CombinedDataset([rows(1)], [("upper", None)]), "a transform must be callable, got 'upper'"),
        (lambda: CombinedDataset([rows(1)], [(None, 3)]), "a preprocessor must be callable, got 3"),
        (lambda: CombinedDataset([rows(1)], []), "got 1 data sets and 0 pairs"),
        (lambda: combined(ByKey(a={"x": 1}), ByKey(a={"x": 2})), "the utterance id 'a' occurs twice"),
        (lambda: combined(ByKey({3: {"x": 1}})), r"ids must come as strings .* gave 1 values, such as \[3\]"),
        (
            lambda: combined(Letters(3, 1), rows(1)),
            "either all data sets of a split are ShardedDataset, or none",
        ),
        (lambda: combined(Letters(3, 1), Letters(3, 3)), r"the same .* got \[\(3, 1\), \(3, 3\)\]"),
        (lambda: combined(Letters(None, 1)), r"must all set the same total_shards .* got \[\(None, 1\)\]"),
        (lambda: combined(rows(1)).shard(0), "needs data sets that are all ShardedDataset"),
        (lambda: EpochShards(combined(Letters(0, 1))), "total_shards .* integer >= 1, got 0"),
        (
            lambda: EpochShards(combined(Letters(3, 2))),
            "total_shards=3 cannot be divided by dist_world_size=2",
        ),
    ],
)
def test_what_cannot_be_combined(build, message):
    with pytest.raises(MisconfigurationException, match=message):
        build()


def test_the_first_samples_are_not_changed_by_the_check():
    data = rows(1)
    CombinedDataset([data], [(lambda s: s.update(x=9) or s, None)])
    assert data == rows(1)


def test_dataset_with_transform():
    data = DatasetWithTransform(
        ByKey(a={"x": 2}),
        lambda s: {"x": s["x"] + 1},
        lambda uid, s: {uid: s["x"]},
        use_espnet_preprocessor=True,
    )
    assert len(data) == 1
    assert data["a"] == data("a") == {"a": 3}
    assert DatasetWithTransform(rows(4), None, None)[0] == {"x": 4}
    with pytest.raises(MisconfigurationException, match="a transform must be callable, got 3"):
        DatasetWithTransform(rows(4), 3, None)


def test_do_nothing():
    assert do_nothing({"x": 1}) == {"x": 1}
    assert do_nothing("uid", {"x": 1}) == ("uid", {"x": 1})


class Letters(ShardedDataset):
    """Piece i is two samples of the letter i."""

    def __init__(self, total_shards, dist_world_size):
        self.total_shards, self.dist_world_size = total_shards, dist_world_size

    def __len__(self):
        return 2 * self.total_shards if self.total_shards else 2

    def __getitem__(self, index):
        return {"x": "abcdef"[index // 2]}

    def shard(self, idx):
        return rows(*"abcdef"[idx] * 2)


@pytest.mark.parametrize(
    ("world", "epochs"),
    [(1, ["aa", "bb", "cc", "dd", "aa"]), (2, ["aabb", "ccdd", "aabb"]), (4, ["aabbccdd"])],
)
def test_epochs_go_round_the_shards(world, epochs):
    data = combined(Letters(4, world))
    data.use_espnet_collator = True
    shards = EpochShards(data)
    for epoch, letters in enumerate(epochs):
        shards.set_epoch(epoch)
        assert "".join(shards[i][1]["x"] for i in range(len(shards))) == letters
        assert [shards[i][0] for i in range(len(shards))] == [str(i) for i in range(len(letters))]


def test_shards_and_loader_follow_the_epoch():
    shards = EpochShards(combined(Letters(3, 1)), epoch=1)
    loader = DataLoader(shards, batch_size=2, num_workers=1)
    assert [batch["x"] for batch in loader] == [["b", "b"]]
    shards.set_epoch(2)
    assert [batch["x"] for batch in loader] == [["c", "c"]]


def test_several_sharded_sets_are_sharded_together():
    shards = EpochShards(combined(Letters(2, 1), Letters(2, 1)))
    shards.set_epoch(1)
    assert [shards[i]["x"] for i in range(len(shards))] == ["b", "b", "b", "b"]
