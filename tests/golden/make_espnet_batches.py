"""Record the batches that ESPnet makes of this folder's shape files. Run by hand, with espnet on the path.

    PYTHONPATH=<espnet 202611, unpacked> python tests/golden/make_espnet_batches.py

It needs espnet's samplers only (torch, numpy, typeguard), and imports them in functions, since pytest looks into
every file for doctests. The shape files in ``batches/`` are FSDD's (every 20th recording for ``train``, every 50th
for ``valid``; 20 features a frame), written by ESPnet3's own collect_stats. The tests compare with
``batches/espnet.json.gz`` and never run this file.
"""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "batches"
FILES = [
    "train_feats_shape",
    "train_speech_shape",
    "train_text_shape",
    "valid_feats_shape",
    "valid_speech_shape",
]
# A batch of some eight utterances by each way of counting.
BINS = {
    "length": {"feats": 400, "speech": 30000, "text": 32},
    "numel": {"feats": 8000, "speech": 30000, "text": 32},
}
FOLDS = {"feats": 40, "speech": 3000, "text": 4}
ORDERS = list(itertools.product(["descending", "ascending"], ["ascending", "descending"]))


def settings():
    """Every sampler's settings, without defaults that ESPnet requires all the same."""
    for name in FILES:
        stream = name.split("_")[1]
        for drop_last in (False, True):
            yield {"type": "unsorted", "shape_files": [name], "batch_size": 7, "drop_last": drop_last}
            for (inside, outside), minimum in itertools.product(ORDERS, (1, 3)):
                common = {
                    "shape_files": [name],
                    "drop_last": drop_last,
                    "sort_in_batch": inside,
                    "sort_batch": outside,
                }
                if minimum == 1:
                    yield {"type": "sorted", "batch_size": 7, **common}
                common["min_batch_size"] = minimum
                yield {"type": "folded", "batch_size": 9, "fold_lengths": [FOLDS[stream]], **common}
                for kind, padding in itertools.product(BINS, (True, False)):
                    yield {"type": kind, "batch_bins": BINS[kind][stream], "padding": padding, **common}
    pair = ["train_feats_shape", "train_text_shape"]
    for minimum in (1, 6):
        yield {
            "type": "folded",
            "shape_files": pair,
            "batch_size": 12,
            "fold_lengths": [30, 5],
            "min_batch_size": minimum,
        }
        for kind, bins in (("length", 420), ("numel", 8100)):
            yield {"type": kind, "shape_files": pair, "batch_bins": bins, "min_batch_size": minimum}
    # Fewer bins than the longest utterance has, and a batch larger than the corpus.
    yield {"type": "numel", "shape_files": ["valid_feats_shape"], "batch_bins": 300}
    yield {"type": "sorted", "shape_files": ["valid_feats_shape"], "batch_size": 1000}
    yield {"type": "unsorted", "shape_files": ["valid_feats_shape"], "batch_size": 1000, "drop_last": True}


def orders():
    """The iterator's settings, each for the first epochs of a run."""
    for shuffle, seed in itertools.product((False, True), (0, 17)):
        for num_iters in (None, 1, 3, 7, 8, 20):
            yield {"shuffle": shuffle, "seed": seed, "num_iters_per_epoch": num_iters}
        yield {"shuffle": shuffle, "seed": seed, "shuffle_within_batch": True}
        yield {"shuffle": shuffle, "seed": seed, "num_iters_per_epoch": 3, "shuffle_within_batch": True}


def build(setting):
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    arguments = {"batch_size": 1, "batch_bins": 1, **setting}
    arguments["shape_files"] = [str(FOLDER / name) for name in setting["shape_files"]]
    return build_batch_sampler(**arguments)


def main():
    from espnet2.iterators.sequence_iter_factory import SequenceIterFactory

    samplers = [{"setting": s, "batches": [list(b) for b in build(s)]} for s in settings()]
    order_sampler = {"type": "numel", "shape_files": ["valid_feats_shape"], "batch_bins": 8000}
    sampler = build(order_sampler)
    epochs = []
    for setting in orders():
        factory = SequenceIterFactory(list(range(100)), sampler, **setting)
        rows = [[list(batch) for batch in factory.build_iter(epoch).batch_sampler] for epoch in range(1, 7)]
        epochs.append({"setting": setting, "epochs": rows})
    record = {
        "provenance": f"espnet 202611, numpy {np.__version__}; made by tests/golden/make_espnet_batches.py",
        "samplers": samplers,
        "order_sampler": order_sampler,
        "orders": epochs,
    }
    text = json.dumps(record, separators=(",", ":"))
    (FOLDER / "espnet.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(samplers)} samplers, {len(epochs)} orders of {len(sampler)} batches, {len(text)} characters")


if __name__ == "__main__":
    main()
