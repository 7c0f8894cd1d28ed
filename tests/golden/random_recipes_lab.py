"""Random ESPnet3 configurations, trained by ESPnet3 under Lightning and by this package: every batch, rate and weight.

``python tests/golden/random_recipes_lab.py FIRST LAST``, in an environment with espnet 202611 and Lightning 2.6.6:
seeds FIRST to LAST - 1. The last line is JSON, how many runs had which trait; the first difference ends it. Under
torchrun each rank has utterances of its own. What differs on purpose (``docs/differences.md``) is not drawn: with named
optimizers, accumulation, and a batch for both; with several ranks, batches of different weights, losses that are not
finite, and BatchNorm's statistics with named optimizers.
"""

import collections
import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed

RANK, RANKS = (int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1)))
TOLERANCE = 3e-6  # float32, in another order of additions


def espnets():
    from espnet3.components.data.dataset import CombinedDataset
    from espnet3.components.modeling.lightning_module import ESPnetLightningModule
    from espnet3.components.modeling.optimization_spec import OptimizationStep
    from espnet3.components.trainers.trainer import ESPnet3LightningTrainer
    from lightning.pytorch import Callback
    from omegaconf import OmegaConf

    def trainer(model, config, folder):
        config = OmegaConf.create(config)
        module = ESPnetLightningModule(model, config)
        return ESPnet3LightningTrainer(module, str(folder), config.trainer, config.best_model_criterion)

    return SimpleNamespace(trainer=trainer, step=OptimizationStep, callback=Callback, data=CombinedDataset)


def ours():
    from espnet3_lite import Callback, ESPnetModule, ESPnetTrainer, OptimizationStep
    from espnet3_lite.espnet.data.dataset import CombinedDataset

    def trainer(model, config, folder):
        return ESPnetTrainer(ESPnetModule(model, config), folder, config["trainer"], config["best_model_criterion"])

    return SimpleNamespace(trainer=trainer, step=OptimizationStep, callback=Callback, data=CombinedDataset)


# ---- what is drawn ---------------------------------------------------------------------------------------------------

OPTIMIZERS = (
    {"_target_": "torch.optim.Adam", "lr": 0.02},
    {"_target_": "torch.optim.SGD", "lr": 0.02, "momentum": 0.9},
    {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1},
)
SCHEDULERS = (
    {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5},
    {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.9},
    {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "patience": 0, "factor": 0.5},
    {"_target_": "espnet2.schedulers.warmup_lr.WarmupLR", "warmup_steps": 3},
    {"_target_": "espnet2.schedulers.noam_lr.NoamLR", "model_size": 16, "warmup_steps": 4},
    {
        "_target_": "espnet2.schedulers.cosine_anneal_warmup_restart.CosineAnnealingWarmupRestarts",
        "first_cycle_steps": 10, "max_lr": 0.05, "min_lr": 0.001, "warmup_steps": 2,
    },
)  # fmt: skip


def drawn(seed):
    """A case: what the model does, how many utterances there are, and a configuration."""
    chance = random.Random(seed)
    case = {"seed": seed, "named": chance.random() < 0.4, "weight": chance.choice(["frames", "size", None])}
    case["batch_norm"] = chance.random() < 0.2
    case["nan"] = chance.random() < 0.2 and not case["named"] and not case["batch_norm"]
    if RANKS > 1:
        case.update(nan=False, weight=case["weight"] and "size", batch_norm=case["batch_norm"] and not case["named"])
    case["train"], case["valid"], case["size"] = chance.choice([5, 8, 12]), chance.choice([3, 6]), chance.choice([2, 3])
    case["trainer"] = trainer = {
        "max_epochs": chance.choice([1, 2, 3]),
        "log_every_n_steps": chance.choice([1, 3, 500]),
    }
    case["criterion"] = chance.choice(
        [[["valid/loss", 3, "min"]], [["valid/loss", 2, "min"], ["valid/most", 1, "max"]]]
    )

    def perhaps(share, name, *values):
        if chance.random() < share:
            trainer[name] = chance.choice(values)

    perhaps(0.3, "num_sanity_val_steps", 0, 1)
    perhaps(0.2, "limit_train_batches", 2)
    perhaps(0.2, "limit_val_batches", 1)
    if case["named"]:
        names = ("generator", "discriminator")
        case["optimizers"] = {name: named_optimizer(chance, name) for name in names}
        case["schedulers"] = {name: named_scheduler(chance) for name in names}
        return case
    perhaps(0.25, "val_check_interval", 1, 2, 0.5)
    perhaps(0.3, "accumulate_grad_batches", 2, 3)
    perhaps(0.3, "gradient_clip_val", 0.5, 0.1)
    if not case["nan"]:  # ESPnet3 counts a step for a batch that is skipped
        perhaps(0.15, "max_steps", 3, 5)
    case["optimizer"], case["scheduler"] = chance.choice(OPTIMIZERS), chance.choice(SCHEDULERS)
    by_metric = "Plateau" in case["scheduler"]["_target_"]
    case["scheduler_interval"] = "epoch" if by_metric or case["nan"] else chance.choice(["step", "epoch"])
    if by_metric:
        case["scheduler_monitor"] = chance.choice(["valid/loss", "valid/most"])
    return case


def named_optimizer(chance, name):
    clips = chance.choice(
        [{}, {"gradient_clip_val": 0.5}, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}]
    )
    return {"optimizer": chance.choice(OPTIMIZERS), "params": name, **clips}


def named_scheduler(chance):
    scheduler = chance.choice(SCHEDULERS)
    if "Plateau" in scheduler["_target_"]:
        return {"scheduler": scheduler, "interval": "epoch", "monitor": "valid/loss"}
    return {"scheduler": scheduler, "interval": chance.choice(["step", "epoch"])}


# ---- a run -----------------------------------------------------------------------------------------------------------


class Utterances(torch.utils.data.Dataset):
    def __init__(self, count, seed, nan=False):
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed + 10 * RANK))
        if nan:
            self.x[2] = float("nan")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        frames = self.x[int(index)].repeat(3 + int(index) * 7 % 5, 1)
        return {"speech": frames.numpy(), "text": self.x[int(index)].nan_to_num().abs().mul(3).long().numpy()}


class Data:
    """What ``dataset:`` of the configuration gives."""

    test, side = None, None

    def __init__(self, train, valid, nan):
        self.train = self.side.data([Utterances(train, 1, nan)], [(None, None)])
        self.valid = self.side.data([Utterances(valid, 2)], [(None, None)])

    def log_summary(self, log=None):
        pass


class Model(torch.nn.Module):
    """Two parts, which named optimizers train in turn."""

    def __init__(self, case, step):
        super().__init__()
        self.case, self.step, self.turns = case, step, 0
        middle = torch.nn.BatchNorm1d(5) if case["batch_norm"] else torch.nn.Identity()
        self.generator = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), middle, torch.nn.Linear(5, 1))
        self.discriminator = torch.nn.Linear(4, 1)

    def forward(self, speech, speech_lengths, text, text_lengths):
        mask = (torch.arange(speech.shape[1])[None] < speech_lengths[:, None]).float()
        generated = self.generator(speech.reshape(-1, 4)).reshape(mask.shape)
        first = ((generated * mask).sum(1) / speech_lengths - text.float().mean(1)).square().mean()
        judged = (self.discriminator(speech)[..., 0] * mask).sum(1) / speech_lengths
        second = (judged + text.float().sum(1)).square().mean()
        stats = {"loss": first.detach(), "most": float(first.detach()) + 1.0, "never": None}
        weight = {"frames": speech_lengths.sum(), "size": torch.tensor(len(speech)), None: None}[self.case["weight"]]
        if not self.case["named"]:
            return first + second, stats, weight
        steps = [self.step(loss=first, name="generator"), self.step(loss=second, name="discriminator")]
        if self.training:
            self.turns += 1
            return steps[self.turns % 2], stats, weight
        return steps, stats, weight


def run(case, side, folder):
    """What each batch and each validation saw, and the weights at the end."""
    lines = []
    Data.side = side
    config = {key: case[key] for key in case if key.startswith(("optimizer", "scheduler"))}
    loading = {"iter_factory": None, "shuffle": False, "num_workers": 0}
    config.update(
        num_device=RANKS, best_model_criterion=case["criterion"],
        trainer={
            "accelerator": "cpu", "devices": RANKS, "logger": False, "enable_model_summary": False, **case["trainer"],
            **({"strategy": "ddp_find_unused_parameters_true", "use_distributed_sampler": False} if RANKS > 1 else {}),
        },
        dataset={"_target_": "random_recipes_lab.Data", **{key: case[key] for key in ("train", "valid", "nan")}},
        dataloader={"train": {**loading, "batch_size": case["size"]}, "valid": {**loading, "batch_size": 2}},
    )  # fmt: skip
    torch.manual_seed(case["seed"])
    model = Model(case, side.step)
    trainer = side.trainer(model, config, folder)

    class Recorder(side.callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
            # ESPnet3 steps a named optimizer's epoch schedulers after the hooks of the epoch's last batch.
            shown = [] if case["named"] and trainer.is_last_batch else rates
            lines.append(["batch", trainer.current_epoch, batch_idx, seen(trainer, "train/"), shown])

        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                lines.append(["validated", trainer.current_epoch, seen(trainer, "valid/")])

    # LearningRateMonitor refuses to be without a logger under Lightning; here it is left out.
    trainer.trainer.callbacks = [Recorder(), *without_rates(trainer.trainer.callbacks)]
    trainer.fit()
    lines.append(["weights", [float(v) for p in model.parameters() for v in p.detach().reshape(-1)]])
    best = [
        sorted(Path(path).name for path in c.best_k_models) for c in trainer.trainer.checkpoint_callbacks if c.monitor
    ]
    counts_alike = not case["named"] and not case["nan"]  # files are named by their step
    lines.append(["best", best if counts_alike else len(best)])
    return lines


def without_rates(callbacks):
    return [callback for callback in callbacks if type(callback).__name__ != "LearningRateMonitor"]


def seen(trainer, prefix):
    """The metrics of training or validation, but for the counts of updates."""
    metrics = trainer.callback_metrics.items()
    return {k: float(v) for k, v in sorted(metrics) if k.startswith(prefix) and not k.endswith("/update_step")}


def alike(first, second):
    """Equal, numbers up to rounding."""
    if isinstance(first, float) and isinstance(second, float):
        return first == second or abs(first - second) <= TOLERANCE * max(1.0, abs(first)) or first != first != second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(alike, first, second))
    return first == second


@contextlib.contextmanager
def common_folder():
    """One for all ranks. Whoever leaves it waits for the others."""
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        if RANKS > 1:
            distributed.broadcast_object_list(folder)
        yield Path(folder[0])
        if RANKS > 1:
            distributed.barrier()


def main(begin, end):
    """Compare seeds `begin` to `end` - 1."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    if RANKS > 1:
        distributed.init_process_group("gloo")
    sys.modules["random_recipes_lab"] = sys.modules["__main__"]
    traits = collections.Counter()
    for seed in range(begin, end):
        case, found = drawn(seed), []
        for side in (espnets(), ours()):
            with common_folder() as folder, contextlib.redirect_stdout(io.StringIO()):
                found.append(run(case, side, folder / "exp"))
        if not alike(*found):
            place = next((i for i, pair in enumerate(zip(*found, strict=False)) if not alike(*pair)), 0)
            around = slice(max(0, place - 2), place + 2)
            sys.exit(json.dumps({"case": case, "ESPnet3": found[0][around], "here": found[1][around]}, indent=1))
        blocks = [case["scheduler"]] if "scheduler" in case else [s["scheduler"] for s in case["schedulers"].values()]
        traits.update([*case["trainer"], *(block["_target_"].rsplit(".", 1)[-1] for block in blocks)])
        traits.update(name for name in ("named", "nan", "batch_norm") if case[name])
    if RANK == 0:
        print(json.dumps(traits))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
