"""Batch samplers against ESPnet's own batches, and the messages for what cannot work."""

import gzip
import json
import math
import random
import tracemalloc
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


def batches_by_dicts(texts, batch_bins, elements, descending):
    """`length` and `numel` batches as one writes them down, without padding's finer points: dicts and lists."""
    streams = []
    for text in texts:
        rows = (line.split() for line in text.splitlines() if line.strip())
        streams.append({key: [int(number) for number in shape.split(",")] for key, shape in rows})
    costs = {
        key: sum(math.prod(shapes[key]) if elements else shapes[key][0] for shapes in streams) for key in streams[0]
    }
    batches, batch = [], []
    for key in sorted(streams[0], key=lambda key: streams[0][key][0]):
        batch.append(key)
        if len(batch) * costs[key] > batch_bins:
            batches.append(tuple(batch[::-1] if descending else batch))
            batch = []
    return batches + ([tuple(batch[::-1] if descending else batch)] if batch else [])


@pytest.mark.parametrize("kind", ["length", "numel"])
@pytest.mark.parametrize("odd", ["", "shuffled", "blank lines", "tabs", "spaces"])
def test_arrays_give_the_batches_that_dicts_give(tmp_path, kind, odd):
    chance = random.Random(f"{kind} {odd}")
    keys = [f"speaker{number % 7}-{number}" for number in range(500)]
    frames = [f"{key} {chance.randint(1, 40)},{3 if kind == 'numel' else chance.randint(1, 5)}\n" for key in keys]
    tokens = [f"{key} {chance.randint(1, 9)}\n" for key in keys]
    if odd == "shuffled":
        chance.shuffle(tokens)
    elif odd == "blank lines":
        tokens[250:250] = ["\n", "  \n"]
    elif odd == "tabs":
        tokens = [line.replace(" ", "\t") for line in tokens]
    elif odd == "spaces":
        tokens = [f" {line[:-1]} \n" for line in tokens]
    texts = ["".join(frames), "".join(tokens)]
    files = [write(tmp_path / "frames_shape", texts[0]), write(tmp_path / "tokens_shape", texts[1])]
    sampler = build_batch_sampler(kind, batch_bins=700, shape_files=files)
    assert list(sampler) == batches_by_dicts(texts, 700, elements=kind == "numel", descending=True)
    ascending = build_batch_sampler(kind, batch_bins=700, shape_files=files, sort_in_batch="ascending")
    assert list(ascending) == batches_by_dicts(texts, 700, elements=kind == "numel", descending=False)


def test_batches_of_100_000_utterances_take_less_than_24_mib(tmp_path):
    """What is allocated at the same time, counted; a dict of lists took 30 MiB."""
    shapes = write(
        tmp_path / "shape", "".join(f"utterance-{number:06d} {100 + number % 900},80\n" for number in range(100_000))
    )
    tracemalloc.start()
    sampler = build_batch_sampler("numel", batch_bins=10_000_000, shape_files=[shapes])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, sampler)) == 100_000
    assert peak < 24 * 2**20
