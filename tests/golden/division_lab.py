"""How an epoch is divided into batches, and these among ranks: espnet's own classes beside ours, in random settings.

``python tests/golden/division_lab.py FIRST LAST FOLDER``, in an environment with espnet: seeds FIRST to LAST - 1.
The last line is JSON, how many cases of each kind there were. The first difference ends it. Which differences are meant
is in ``docs/differences.md``; there the relation between the two is checked instead.
"""

import collections
import json
import random
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

KINDS = ("unsorted", "sorted", "folded", "length", "numel")
SEQUENCE = "espnet2.iterators.sequence_iter_factory.SequenceIterFactory"
EPOCHS = 4


def sampler_setting(chance, folder):
    """Shape files of random lengths, many of them equal, and a sampler's settings."""
    count, kind = chance.randint(1, 60), chance.choice(KINDS)
    keys = [f"{index}" for index in range(count)]
    files, streams = [], chance.choice([1, 1, 2, 3])
    for stream in range(streams):
        longest, width = chance.choice([3, 20, 200]), chance.choice(["", "", ",2", ",3,4"])
        order = keys if stream == 0 or chance.random() < 0.5 else chance.sample(keys, count)
        file = folder / f"shape{stream}"
        file.write_text("".join(f"{key} {chance.randint(1, longest)}{width}\n" for key in order))
        files.append(str(file))
    categories = folder / "utt2category"
    categories.write_text("".join(f"{key} c{chance.randint(0, 2)}\n" for key in keys))
    setting = {
        "type": kind, "shape_files": files, "batch_size": chance.randint(1, 12),
        "batch_bins": chance.choice([1, 20, 150, 1000, 10**6]), "drop_last": chance.random() < 0.4,
        "min_batch_size": chance.choice([1, 1, 2, 3, 5]), "padding": chance.random() < 0.7,
        "sort_in_batch": chance.choice(["descending", "ascending"]),
        "sort_batch": chance.choice(["descending", "ascending"]),
        "fold_lengths": [chance.choice([2, 10, 100]) for _ in files],
    }  # fmt: skip
    if kind == "folded" and chance.random() < 0.4:
        setting["utt2category_file"] = str(categories)
    return count, setting


def order_setting(chance, batches):
    """An epoch's settings: with a window of batches, smaller and larger than all of them."""
    return {
        "shuffle": chance.random() < 0.6, "seed": chance.choice([0, 3, 1000]),
        "num_iters_per_epoch": chance.choice([None, None, 1, 2, batches, batches + 1, 2 * batches + 3]),
        "shuffle_within_batch": chance.random() < 0.2,
    }  # fmt: skip


def attempt(function, *arguments, **settings):
    """What a function returns, or the exception that it raises."""
    try:
        return function(*arguments, **settings)
    except Exception as error:  # compared with what the other side does
        return error


def plain(batches):
    return [list(batch) for batch in batches]


def compare_samplers(setting):
    """The batches, on which both agree; None where both refuse the setting."""
    from espnet2.samplers.build_batch_sampler import build_batch_sampler as theirs_of

    from espnet3_lite.espnet.data.samplers import build_batch_sampler as ours_of

    theirs, ours = attempt(theirs_of, **setting), attempt(ours_of, **setting)
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert isinstance(theirs, Exception) and isinstance(ours, Exception), (setting, theirs, ours)
        return None
    assert plain(theirs) == plain(ours) and len(theirs) == len(ours), (setting, plain(theirs), plain(ours))
    return theirs


def compare_epochs(batches, setting, order):
    """The factories on one process, epoch by epoch."""
    from espnet2.iterators.sequence_iter_factory import SequenceIterFactory as Theirs

    from espnet3_lite.espnet.data.iterators import SequenceIterFactory as Ours
    from espnet3_lite.espnet.data.samplers import build_batch_sampler

    theirs, ours = Theirs([], batches, **order), Ours([], build_batch_sampler(**setting), **order)
    for epoch in range(1, EPOCHS + 1):
        expected = plain(theirs.build_iter(epoch).batch_sampler)
        assert plain(ours.build_iter(epoch).batch_sampler) == expected, (setting, order, epoch)


class Ranks:
    """A process group that is none: ranks one after the other in this process."""

    def __init__(self, size):
        self.size, self.rank = size, 0

    def each(self, function):
        """What the function returns as each of the ranks."""
        results = []
        for rank in range(self.size):
            self.rank = rank
            here = {
                "is_initialized": lambda: True, "get_world_size": lambda: self.size, "get_rank": lambda: self.rank,
                "all_gather_object": lambda found, own: found.__setitem__(slice(None), [own] * self.size),
            }  # fmt: skip
            with mock.patch.multiple("torch.distributed", **here):
                results.append(function(self.rank))
        return results


def their_share(count, block, epoch, ranks):
    """The batches of each rank as ESPnet3's `DataLoaderBuilder` gives them."""
    from espnet3.components.data.dataloader import DataLoaderBuilder
    from omegaconf import OmegaConf

    data = SimpleNamespace(datasets=[range(count)], shard=None)
    config = OmegaConf.create({"dataloader": {"train": block}})

    def share(rank):
        loader = DataLoaderBuilder(data, config, None, ranks.size, epoch).build("train")
        return plain(loader._source().batch_sampler)

    return ranks.each(share)


def our_share(count, block, epoch, ranks):
    """The same by ours, as the training loop deals them out: for each batch whether it is a stand-in, too."""
    from espnet3_lite.espnet.data.loader import DataLoaderBuilder
    from espnet3_lite.loaders.rank_loader import SharedLoader

    def share(rank):
        loader = DataLoaderBuilder(range(count), {"dataloader": {"train": block}}, epoch=epoch).build("train")
        strategy = SimpleNamespace(world_size=ranks.size, global_rank=rank, deals_out=True, broadcast=None)
        sampler = SharedLoader(loader, strategy).sampler
        batches = [[key[1] if isinstance(key, tuple) else key for key in batch] for batch in sampler]
        return list(zip(batches, [stand_in for stand_in, _ in sampler.marks], strict=True))

    return ranks.each(share)


def compare_ranks(count, setting, order, distribution, size):
    """Two or three ranks, each epoch."""
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    ranks = Ranks(size)
    factory = {"_target_": SEQUENCE, "batches": setting, **order}
    block = {"iter_factory": factory, "batch_distribution": distribution}
    total = len(list(build_batch_sampler(**setting)))
    for epoch in range(EPOCHS):
        theirs, ours = (attempt(share, count, block, epoch, ranks) for share in (their_share, our_share))
        if distribution == "global":
            if isinstance(theirs, Exception) or isinstance(ours, Exception):
                assert type(theirs) is type(ours) or isinstance(theirs, Exception) and isinstance(ours, Exception), (
                    setting, order, theirs, ours,
                )  # fmt: skip
                return "refused"
            assert [[batch for batch, _ in share] for share in ours] == theirs, (setting, order, size, epoch)
            continue
        assert not isinstance(ours, Exception), (setting, order, ours)
        check_dealt(ours, one_order(setting, order, size, epoch), order, size)
        if not isinstance(theirs, Exception) and comparable(order, total, size):
            steps = min(map(len, theirs))
            assert [[batch for batch, _ in share][:steps] for share in ours] == theirs, (setting, order, size, epoch)
    return distribution


def comparable(order, total, size):
    """ESPnet3 shuffles each rank's share by itself, and drops what does not divide; else both deal out alike."""
    alike = not order["shuffle"] and not order["shuffle_within_batch"]
    return alike and (order["num_iters_per_epoch"] is None or total % size == 0)


def one_order(setting, order, size, epoch):
    """ESPnet's order on one process; ``num_iters_per_epoch`` steps of several ranks take as many of it as they are."""
    from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    order = dict(order)
    if order["num_iters_per_epoch"] is not None:
        order["num_iters_per_epoch"] *= size
    factory = SequenceIterFactory([], build_batch_sampler(**setting), **order)
    return plain(factory.build_iter(epoch + 1).batch_sampler)


def check_dealt(shares, expected, order, size):
    """Each batch goes to one rank, in turn; all ranks take as many steps; who has none left stands in."""
    steps = -(-len(expected) // size)
    assert [len(share) for share in shares] == [steps] * size
    if order["num_iters_per_epoch"] is not None and not order["shuffle_within_batch"]:
        assert steps == order["num_iters_per_epoch"]
    dealt = [shares[rank][step] for step in range(steps) for rank in range(size)]
    assert [batch for batch, stand_in in dealt if not stand_in] == expected


def main(first, last, folder):
    warnings.simplefilter("ignore")
    found = collections.Counter()
    for seed in range(first, last):
        chance = random.Random(seed)
        count, setting = sampler_setting(chance, folder)
        batches = compare_samplers(setting)
        if batches is None:
            found["refused by both"] += 1
            continue
        found[setting["type"]] += 1
        order = order_setting(chance, len(batches))
        compare_epochs(batches, setting, order)
        distribution, size = chance.choice(["per_gpu", "global"]), chance.choice([2, 3])
        if distribution == "global":
            order["shuffle_within_batch"] = False  # refused by both
            setting["min_batch_size"] = 1  # ESPnet3 replaces it, ours takes the larger one
        found[f"{compare_ranks(count, setting, order, distribution, size)}, {size} ranks"] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
