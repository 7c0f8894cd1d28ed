"""Run by torchrun, and in one process: the callbacks that change weights, each with its final weights and buffers."""

import json
import sys
import warnings
from pathlib import Path

from weights_parts import Net, loader, trainer_of

from espnet3_lite.callbacks import BackboneFinetuning, EMAWeightAveraging, ModelPruning, StochasticWeightAveraging


class Headed(Net):
    """Without BatchNorm; the first layer is the backbone."""

    def __init__(self):
        super().__init__(batch_norm=False)
        self.backbone = self.net[0]


def cases():
    """Name, module and callback. BatchNorm sees each rank's own batches: there, one process is another model."""
    yield "ema", Net(batch_norm=False), EMAWeightAveraging(decay=0.8)
    yield "ema_buffers", Net(), EMAWeightAveraging(decay=0.8)
    yield "swa", Net(batch_norm=False), StochasticWeightAveraging(0.05, swa_epoch_start=2)
    yield "swa_buffers", Net(), StochasticWeightAveraging(0.05, swa_epoch_start=2)
    yield "finetuning", Headed(), BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    yield "pruning", Net(batch_norm=False), ModelPruning("l1_unstructured", amount=0.3)


def run(processes):
    """Batches of 4 over all processes. Gives the final state and the epochs' validation of each case."""
    results = {}
    for name, module, callback in cases():
        trainer = trainer_of(callback, max_epochs=3)
        trainer.fit(module, loader(batch_size=4 // processes), loader(batch_size=4 // processes))
        state = {key: value.flatten().tolist() for key, value in module.state_dict().items()}
        results[name] = {"state": state, "steps": trainer.global_step, "trainable": count_trainable(module)}
    return results


def count_trainable(module):
    return sum(parameter.requires_grad for parameter in module.parameters())


if __name__ == "__main__":
    import os

    warnings.simplefilter("ignore")
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    (folder / f"rank{rank}.json").write_text(json.dumps(run(processes=2)))
