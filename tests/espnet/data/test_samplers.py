"""Batch samplers against ESPnet's own batches, and the messages for what cannot work."""

import gzip
import json
from pathlib import Path

import pytest

from espnet3_lite.espnet.data.samplers import LengthBatchSampler, build_batch_sampler
from espnet3_lite.exceptions import MisconfigurationException

FOLDER = Path(__file__).parents[2] / "golden" / "batches"
GOLDEN = json.loads(gzip.decompress((FOLDER / "espnet.json.gz").read_bytes()))


def build(setting):
    return build_batch_sampler(**{**setting, "shape_files": [str(FOLDER / name) for name in setting["shape_files"]]})


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.filterwarnings("ignore:batch_bins")
@pytest.mark.parametrize("kind", ["unsorted", "sorted", "folded", "length", "numel"])
def test_batches_equal_espnets(kind):
    cases = [case for case in GOLDEN["samplers"] if case["setting"]["type"] == kind]
    single = [case for case in cases if len(case["setting"]["shape_files"]) == 1]
    assert len({case["setting"]["shape_files"][0] for case in single}) == 5
    for case in cases:
        sampler = build(case["setting"])
        assert [list(batch) for batch in sampler] == case["batches"], case["setting"]
        assert len(sampler) == len(case["batches"])


def test_folded_batches_keep_categories_apart(tmp_path):
    shapes = write(tmp_path / "shape", "a 10\nb 20\nc 30\nd 40\n")
    categories = write(tmp_path / "utt2category", "a x\nb y\nc x\nd y\n")
    sampler = build_batch_sampler(
        "folded", batch_size=4, shape_files=[shapes], fold_lengths=[100], utt2category_file=categories
    )
    assert list(sampler) == [("c", "a"), ("d", "b")]


def test_small_last_batch_is_spread_over_the_others(tmp_path):
    shapes = write(tmp_path / "shape", "".join(f"u{i} 10\n" for i in range(8)))
    sampler = build_batch_sampler("length", batch_bins=25, shape_files=[shapes], min_batch_size=3)
    assert [len(batch) for batch in sampler] == [4, 4]


def test_batch_bins_below_the_longest_utterance_warns_and_names_it(tmp_path):
    shapes = write(tmp_path / "shape", "short 10,80\nlong 50,80\n")
    with pytest.warns(UserWarning, match=r"batch_bins=1000 .*'long' alone, which has 4000 bins by .*shape"):
        sampler = build_batch_sampler("numel", batch_bins=1000, shape_files=[shapes])
    assert list(sampler) == [("long", "short")]


def test_unused_settings_are_ignored(tmp_path):
    shapes = write(tmp_path / "shape", "a 10\nb 20\n")
    sampler = build_batch_sampler("unsorted", 1, 4000000, [shapes], min_batch_size=7, fold_lengths=[1, 2, 3])
    assert list(sampler) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"type": "numbel", "batch_bins": 9}, "unknown batch sampler type 'numbel'.*did you mean 'numel'"),
        ({"type": "catbel", "batch_size": 9}, "known are unsorted, sorted, folded, length, numel"),
        ({"type": "sorted"}, "batch_size of the batch sampler must be an integer >= 1, got None"),
        ({"type": "unsorted", "batch_size": 0}, "batch_size .* got 0"),
        ({"type": "length", "batch_bins": -3}, "batch_bins .* got -3"),
        ({"type": "numel", "batch_bins": True}, "batch_bins .* got True"),
        ({"type": "length", "batch_bins": 9, "min_batch_size": 0}, "min_batch_size .* got 0"),
        (
            {"type": "sorted", "batch_size": 2, "sort_batch": "descendin"},
            "sort_batch must be 'ascending' or 'descending', got 'descendin'; did you mean 'descending'",
        ),
        (
            {"type": "folded", "batch_size": 2, "fold_lengths": [5, 6]},
            r"fold_lengths needs one positive length for each of the 1 shape_files, got \[5, 6\]",
        ),
        ({"type": "folded", "batch_size": 2, "fold_lengths": [0]}, r"fold_lengths .* got \[0\]"),
    ],
)
def test_bad_settings(tmp_path, setting, message):
    shapes = write(tmp_path / "shape", "a 10\nb 20\n")
    with pytest.raises(MisconfigurationException, match=message):
        build_batch_sampler(shape_files=[shapes], **setting)


@pytest.mark.parametrize("shape_files", [(), [], "exp/stats/train/feats_shape"])
def test_shape_files_must_be_a_list(shape_files):
    with pytest.raises(MisconfigurationException, match="needs shape_files, a list of at least one file"):
        build_batch_sampler("sorted", batch_size=2, shape_files=shape_files)


def test_dimensions_that_cannot_be_padded(tmp_path):
    shapes = write(tmp_path / "shape", "a 10,80\nb 20,40\n")
    with pytest.raises(MisconfigurationException, match=r"'a' \[10, 80\] and 'b' \[20, 40\] differ beyond"):
        build_batch_sampler("numel", batch_bins=10000, shape_files=[shapes])
    unpadded = build_batch_sampler("numel", batch_bins=10000, shape_files=[shapes], padding=False)
    assert list(unpadded) == [("b", "a")]


def test_repr_tells_the_sizes(tmp_path):
    shapes = write(tmp_path / "shape", "a 30\nb 10\nc 20\nd 50\n")
    assert repr(LengthBatchSampler(80, [shapes])) == "LengthBatchSampler(2 batches of 1 to 3 utterances)"
