"""A training on espnet's own iterators, in one process or under torchrun: ``iterators_lab.py KIND FOLDER``.

Run in an environment with espnet; started by `tests/reference/test_espnet_iterators.py`. Each rank writes what it was
trained on, each batch as the sums of its rows.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from quiet import quiet_trainer

from espnet3_lite import ESPnetModule
from espnet3_lite.config.targets import find_target, instantiate
from espnet3_lite.distributed.rank import global_rank, world_size
from espnet3_lite.espnet.data.dataset import CombinedDataset
from espnet3_lite.espnet.data.samplers import build_batch_sampler

LENGTHS = [4 + 3 * (index % 5) for index in range(11)]
ITERATORS = "espnet2.iterators"
COLLATE = "espnet2.train.collate_fn.CommonCollateFn"


def rows_of(batch):
    return batch["speech"].sum(1).tolist()


class Keyed(list):
    """Samples by the shape files' keys, with their key, as espnet's own data sets give them."""

    def __getitem__(self, key):
        return key, super().__getitem__(int(key))


class Data:
    """Samples of 4 to 16 frames."""

    def __init__(self):
        samples = [
            {"speech": np.arange(length, dtype=np.float32) + 100 * index} for index, length in enumerate(LENGTHS)
        ]
        self.train = self.valid = CombinedDataset([samples], [(None, None)])
        self.keyed = Keyed(samples)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, speech, **lengths):
        loss = (self.layer(speech[..., None] / 1000) - 1).square().mean()
        return loss, {"loss": loss.detach()}, len(speech)


class Noting(ESPnetModule):
    def __init__(self, model, config):
        super().__init__(model, config)
        self.seen = []

    def training_step(self, batch, batch_idx):
        if not self.trainer.train_data.replaying:
            self.seen.append([self.current_epoch, rows_of(batch[1])])
        return super().training_step(batch, batch_idx)


def factory_of(kind, folder):
    """The `iter_factory` block, as espnet's own recipes give the arguments."""
    own = folder / f"of_rank{global_rank()}"  # no rank reads what another one is writing
    own.mkdir(exist_ok=True)
    shapes, categories = own / "shape", own / "category2utt"
    shapes.write_text("".join(f"{index} {length}\n" for index, length in enumerate(LENGTHS)))
    categories.write_text("".join(f"c{c} {' '.join(str(i) for i in range(c, len(LENGTHS), 3))}\n" for c in range(3)))
    one = {"type": "unsorted", "batch_size": 1, "shape_files": [str(shapes)]}
    balanced = {"batch_size": 3, "category2utt_file": str(categories)}
    chunks = {"chunk_length": 3, "chunk_shift_ratio": 1.0, "batch_size": 2, "shuffle": True, "seed": 3}
    sampler = {"_target_": "espnet2.samplers.category_balanced_sampler.CategoryBalancedSampler", **balanced}
    return {
        "chunk": {"_target_": f"{ITERATORS}.chunk_iter_factory.ChunkIterFactory", "batches": one, **chunks},
        "category": {
            "_target_": f"{ITERATORS}.category_iter_factory.CategoryIterFactory", "batches": sampler,
            "sampler_args": balanced,
        },
        "category_chunk": {
            "_target_": f"{ITERATORS}.category_chunk_iter_factory.CategoryChunkIterFactory",
            "batches": sampler, **chunks,
        },
    }[kind]  # fmt: skip


def by_hand(factory, data):
    """The same epochs by espnet's factory alone, on this rank's share of the batches."""
    arguments = {key: value for key, value in factory.items() if key not in ("_target_", "batches")}
    batches = build_batch_sampler(**factory["batches"]) if "type" in factory["batches"] else (
        instantiate(factory["batches"]))  # fmt: skip
    if "sampler_args" in arguments:  # as espnet's own tasks give them
        arguments["sampler_args"] = {**arguments["sampler_args"], "num_batches": None, "distributed": world_size() > 1}
    share = [list(batch) for batch in batches][global_rank() :: world_size()]
    collate = find_target(COLLATE)()
    made = find_target(factory["_target_"])(dataset=data.keyed, batches=share, collate_fn=collate, **arguments)
    return [[epoch, rows_of(batch)] for epoch in range(2) for _, batch in made.build_iter(epoch + 1)]


def main(kind, folder):
    torch.manual_seed(0)
    config = {
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01}, "dataset": {"_target_": "__main__.Data"},
        "dataloader": {
            "collate_fn": {"_target_": COLLATE},
            "train": {"iter_factory": factory_of(kind, folder)},
            "valid": {"batch_size": 4},
        },
    }  # fmt: skip
    module = Noting(Model(), config)
    quiet_trainer(max_epochs=2, num_sanity_val_steps=0).fit(module)
    factory = type(module.trainer.train_dataloader.factory)
    found = {
        "seen": module.seen, "by_hand": by_hand(factory_of(kind, folder), Data()),
        "weights": module.model.layer.weight.tolist(), "factory": factory.__module__,
        "steps": module.trainer.global_step,
    }  # fmt: skip
    (folder / f"rank{global_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
