"""Run by torchrun in test_accumulate_by_weight.py: two ranks take turns with the batches; the argument is a folder."""

import copy
import sys

import torch
import torch.distributed as dist
from rank_lab import trainer_of, write_results
from torch.utils.data import DataLoader
from weighted_batches import ADAM, SEVERAL, Model, batches

from espnet3_lite import ESPnetModule


class Turns(torch.utils.data.IterableDataset):
    """Every second batch, from the rank's own number on."""

    def __iter__(self):
        return iter(batches()[dist.get_rank() :: 2])


def train(config, **settings):
    model = Model("optimizers" in config)
    module = ESPnetModule(model, {**config, "accumulate_by_weight": True})
    trainer = trainer_of(max_epochs=1, strategy="ddp", use_distributed_sampler=False, **settings)
    trainer.fit(module, DataLoader(Turns(), batch_size=None))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist(), trainer


def main():
    parameters, trainer = train({"optimizer": ADAM}, accumulate_grad_batches=2)
    several = copy.deepcopy(SEVERAL)
    for block in several["optimizers"].values():
        block["accum_grad_steps"] = 2
    named, _ = train(several, limit_train_batches=2)
    eager = {"backend": "aot_eager"}
    compiled, _ = train({"optimizer": ADAM}, accumulate_grad_batches=2, compile=eager)
    compiled_several, _ = train(several, limit_train_batches=2, compile=eager)
    same = {"compiled": compiled, "compiled_several": compiled_several}
    write_results(sys.argv[1], {**same, "parameters": parameters, "steps": trainer.global_step, "several": named})


if __name__ == "__main__":
    main()
