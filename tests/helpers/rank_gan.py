"""Trainings of `gan_lab.TwoTurns` in one process or, by `rank_launch`, in several; each rank writes what it did."""

import json
from pathlib import Path

import gan_lab
import torch
from quiet import QUIET
from rank_lab import write_results
from torch.utils.data import DataLoader, SequentialSampler

from espnet3_lite import ESPnetTrainer
from espnet3_lite.espnet.gan import ESPnetGANModule


def config(gan=None, optimizer="Adam", scheduler=True, **more):
    """Named optimizers for `TwoTurns`, with ESPnet's warm-up."""
    optimizers, schedulers = {}, {}
    for name, rate in gan_lab.RATE.items():
        optimizers[name] = {"params": name, "optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": rate}, **more}
        warmup = {"_target_": "espnet2.schedulers.warmup_lr.WarmupLR", "warmup_steps": gan_lab.WARMUP}
        schedulers[name] = {"scheduler": warmup, "interval": "step"}
    found = {"optimizers": optimizers, "trainer": {"gan": gan or {}}}
    return {**found, "schedulers": schedulers} if scheduler else found


def samples(count):
    (_, batch), *_ = gan_lab.batches(1, count)
    batch["number"] = torch.arange(count)
    return [(f"utt{i}", {key: value[i] for key, value in batch.items()}) for i in range(count)]


def collate(given):
    uids, items = zip(*given, strict=True)
    return list(uids), {key: torch.stack([item[key] for item in items]) for key in items[0]}


def train(folder, count=8, batch_size=4, bad=None, gan=None, epochs=1, ckpt_path=None):
    """Train; the weights at the end, which turns the model was called for, and how often each optimizer stepped."""
    model = gan_lab.TwoTurns(bad={int(number): turn for number, turn in (bad or {}).items()}, clears=True)
    module, data = ESPnetGANModule(model, config(gan)), samples(count)
    settings = {"max_epochs": epochs, **QUIET, "num_sanity_val_steps": 0, "precision": "64-true"}
    trainer = ESPnetTrainer(module, folder, settings)
    loader = DataLoader(data, batch_size=batch_size, sampler=SequentialSampler(data), collate_fn=collate)
    trainer.fit(loader, ckpt_path=ckpt_path)
    trainer.trainer.save_checkpoint(f"{folder}/epoch{epochs}.ckpt")
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "calls": model.calls,
        "updates": {name: slot.update_step for name, slot in trainer.trainer.plan.slots.items()},
        "global_step": trainer.trainer.global_step,
        "logged": sorted(name for name in trainer.trainer.callback_metrics if name.startswith("train/")),
    }


def main(folder, cases):
    """`cases` is the JSON of ``{name: the arguments of train}``; a rank's batches have two samples."""
    cases = json.loads(cases)
    results = {name: train(str(Path(folder, name)), batch_size=2, **case) for name, case in cases.items()}
    write_results(folder, results)
