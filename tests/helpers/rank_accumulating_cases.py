"""What two ranks do in `tests/distributed/test_fsdp_accumulating.py`; each case with DDP and with FSDP2.

    torchrun --nproc-per-node 2 rank_accumulating_cases.py FOLDER

FSDP2 reduces once a window, ``FSDPStrategy(sync_each_batch=False)``; DDP is what it is compared with. A rank writes
``FOLDER/rank<R>.json``: case to result.
"""

import contextlib
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from rank_alone_cases import error_of
from rank_cases import fit, rank_and_size, share
from rank_lab import SINGLE, Model, Module, Note, collate, loader_of, report, trainer_of, write_results
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, IterableDataset

from espnet3_lite import Callback
from espnet3_lite.callbacks import GradientAccumulationScheduler
from espnet3_lite.strategies import DDPStrategy, FSDPStrategy

RANK, _ = rank_and_size()
#: Four batches an epoch: a window of three, and a short one.
WINDOWS = {"accumulate_grad_batches": 3, "count": 27, "shuffle": False}


class Deep(Model):
    """With two layers in a list, which are units of their own."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        layers = [torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()).double() for _ in range(2)]
        self.layers = torch.nn.ModuleList(layers)
        for parameter in self.layers.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x, y):
        for layer in self.layers:
            x = layer(x)
        return super().forward(x, y)


class Stream(IterableDataset):
    """Seven batches of one sample for rank 0, five for rank 1."""

    def __iter__(self):
        data = loader_of(40, 1, False).dataset
        return (data[number] for number in (range(7), range(7, 12))[RANK])


class LeavesEarly(Module):
    """Ends its first epoch within a window, whose gradients are then thrown away."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if (self.trainer.current_epoch, batch_idx) == (0, 2) else None


class Overflows(Module):
    """A finite loss whose gradient is infinite, in one window."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if (self.trainer.current_epoch, batch_idx) == (0, 1):
            zero = (self.model.first.weight * 0.0).sum()
            loss = loss + zero.sqrt()  # its slope at zero is infinite
        return loss


def trained(strategy, module=None, **settings):
    module = Module(Deep(), SINGLE) if module is None else module
    return fit(module, strategy=strategy, gradient_clip_val=0.05, **{**WINDOWS, **settings})


def counted(strategy, **settings):
    """Also how many reductions and gathers the fit has sent."""
    sent = []

    def noting(function):
        def call(*args, **kwargs):
            sent.append(function.__name__.split("_")[0])
            return function(*args, **kwargs)

        return call

    before = ("reduce_scatter_tensor", "all_gather_into_tensor")
    since_torch_2_13 = ("reduce_scatter_single", "all_gather_single")
    with contextlib.ExitStack() as patches:
        for name in (name for name in (*before, *since_torch_2_13) if hasattr(dist, name)):
            patches.enter_context(patch.object(dist, name, noting(getattr(dist, name))))
        return {**trained(strategy, **settings), "reductions": sent.count("reduce"), "gathers": sent.count("all")}


def stopped_within_a_window(strategy, bad=()):
    """The first fit ends after the second of three batches; the next one, with another strategy, begins anew."""
    module = Module(Deep(), SINGLE)

    def stop(trainer, _, batch_idx):
        trainer.should_stop = trainer.current_epoch == trainer.max_epochs - 1 and batch_idx == 0

    trained(strategy, module, bad=bad, callbacks=[Note(stop)])
    return trained(type(strategy)(), module)


def saved_within_a_window(strategy):
    """A run that saves in the middle of a window, and one that goes on from there."""
    path = Path(FOLDER, f"{strategy.name}.ckpt")

    def save(trainer, module, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(path)

    whole = trained(strategy, callbacks=[Note(save)])
    module = Module(Deep(), SINGLE)
    trainer = trainer_of(accumulate_grad_batches=3, gradient_clip_val=0.05, strategy=strategy)
    trainer.fit(module, loader_of(27, share(8), False), ckpt_path=path)
    return {**whole, "resumed": report(trainer, module)}


def saved_before_backward(strategy):
    """Between a forward pass and its backward pass."""

    class Saves(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.fit_loop.work.index == 1:
                trainer.save_checkpoint(Path(FOLDER, f"between-{strategy.name}.ckpt"))

    return trained(strategy, callbacks=[Saves()])


def failed_within_a_window(strategy):
    """A fit that an exception ends, and a second one of the same module."""

    class Fails(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise ValueError("boom")

    module = Module(Deep(), SINGLE)
    fails = error_of(lambda: trained(strategy, module, callbacks=[Fails()]))
    return [fails, error_of(lambda: trained(strategy, module))]


CASES = {
    "windows": counted,
    "closing_batch_skipped": lambda strategy: counted(strategy, bad=[20]),
    "middle_batch_skipped": lambda strategy: counted(strategy, bad=[12]),
    "whole_window_skipped": lambda strategy: counted(strategy, bad=[0, 12, 20]),
    "short_window_skipped": lambda strategy: counted(strategy, bad=[26]),
    "validated_within": lambda strategy: counted(strategy, val_count=13, val_check_interval=2),
    "unequal_ranks": lambda strategy: trained(
        strategy, loader=DataLoader(Stream(), batch_size=1, collate_fn=collate), accumulate_grad_batches=2
    ),
    "by_weight": lambda strategy: trained(strategy, Module(Deep(), {**SINGLE, "accumulate_by_weight": True})),
    "left_early": lambda strategy: trained(strategy, LeavesEarly(Deep(), SINGLE)),
    "gradient_not_finite": lambda strategy: trained(strategy, Overflows(Deep(), SINGLE), check_grad_finite=True),
    "windows_grow": lambda strategy: trained(
        strategy, accumulate_grad_batches=1, callbacks=[GradientAccumulationScheduler({1: 2})], max_epochs=3
    ),
    "mixed": lambda strategy: trained(strategy, Module(Deep().float(), SINGLE), precision="16-mixed"),
    "stopped": stopped_within_a_window,
    "stopped_after_skipping": lambda strategy: stopped_within_a_window(strategy, bad=[0, 12]),
    "saved": saved_within_a_window,
    "saved_before_backward": saved_before_backward,
}


def main(folder, *names):
    global FOLDER
    FOLDER = folder
    found = {
        name: {"ddp": case(DDPStrategy()), "fsdp": case(FSDPStrategy(sync_each_batch=False))}
        for name, case in CASES.items()
        if not names or name in names
    }
    found["each_batch"] = counted(FSDPStrategy())
    found["not_freed"] = counted(FSDPStrategy(reshard_after_forward=False))
    found["different"] = error_of(lambda: trained(FSDPStrategy(sync_each_batch=RANK == 0)))
    with patch.object(FSDPModule, "reset_iter_state"):
        del FSDPModule.reset_iter_state
        found["old_torch"] = error_of(lambda: trained(FSDPStrategy(sync_each_batch=False)))
    found["failed"] = failed_within_a_window(FSDPStrategy(sync_each_batch=False))
    write_results(folder, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
