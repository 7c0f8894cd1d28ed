"""The time of a training step of a one-layer model, against a loop written by hand, in one interleaved run.

    python benchmarks/step.py [--peers]

``bare``: forward, backward, step. ``features``: progress bar, loss log, NaN check, clipping by norm and a step
scheduler, on both sides. Each repetition trains both for as many steps, in alternation; printed are the minimum and the
median over the repetitions, and their ratios. ``--peers`` adds Lightning and Accelerate where they are installed.
"""

import argparse
import io
import logging
import math
import statistics
import time
import warnings

import torch
from tqdm import tqdm

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import TQDMProgressBar

WIDTH, BATCH = 32, 16
CLIP, GAMMA, REFRESH = 1.0, 0.9999, 50


class Batches:
    """A loader without any work: what is timed is the step."""

    def __init__(self, steps):
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, 1, generator=generator))
            for _ in range(steps)
        ]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_batches(steps):
    return Batches(steps)


def make_layer():
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, 1)


class Module(LiteModule):
    """One layer. With `features` it logs its loss to the progress bar and has a step scheduler."""

    def __init__(self, features):
        super().__init__()
        self.layer, self.features = make_layer(), features

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        if self.features:
            self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        if not self.features:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_hand(batches, features):
    """The loop that one writes oneself; gives the seconds a step."""
    layer = make_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
    bar = tqdm(total=len(batches), file=io.StringIO(), mininterval=0) if features else None
    start = time.perf_counter()
    for index, (x, y) in enumerate(batches):
        loss = torch.nn.functional.mse_loss(layer(x), y)
        if features and not math.isfinite(loss.item()):
            continue
        optimizer.zero_grad()
        loss.backward()
        if features:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), CLIP)
        optimizer.step()
        if features:
            scheduler.step()
            if (index + 1) % REFRESH == 0:
                bar.set_postfix({"loss": loss.item()}, refresh=False)
                bar.update(REFRESH)
    seconds = time.perf_counter() - start
    return seconds / len(batches), layer.weight.detach()


class Stopwatch(Callback):
    """Times the epoch itself: neither the set-up nor the end of a run."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def ours(batches, features):
    module, watch = Module(features), Stopwatch()
    callbacks = [watch]
    if features:
        bar = TQDMProgressBar(refresh_rate=REFRESH)
        callbacks.append(bar)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=features, callbacks=callbacks, gradient_clip_val=CLIP if features else None,
    )  # fmt: skip
    trainer.fit(module, batches)
    return watch.seconds / len(batches), module.layer.weight.detach()


def lightning(batches, features):
    """Lightning, if it is there."""
    import lightning.pytorch as pl

    class Peer(pl.LightningModule):
        __init__ = Module.__init__
        training_step = Module.training_step
        configure_optimizers = Module.configure_optimizers

    Peer.__init__ = lambda self: (pl.LightningModule.__init__(self), setattr(self, "layer", make_layer()),
                                  setattr(self, "features", features))[0]  # fmt: skip

    class Watch(pl.Callback):
        on_train_epoch_start = Stopwatch.on_train_epoch_start
        on_train_epoch_end = Stopwatch.on_train_epoch_end

    module, watch = Peer(), Watch()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=features, callbacks=[watch], gradient_clip_val=CLIP if features else None,
    )  # fmt: skip
    trainer.fit(module, batches)
    return watch.seconds / len(batches), module.layer.weight.detach()


def measure(features, steps, repetitions, peers):
    batches = make_batches(steps)
    runs = {"by hand": by_hand, "espnet3_lite": ours, **peers}
    seconds = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        weights = {}
        for name, run in runs.items():
            taken, weights[name] = run(batches, features)
            if repetition:  # the first one warms up
                seconds[name].append(taken)
        for name, weight in weights.items():
            assert torch.equal(weight, weights["by hand"]), f"{name} trained something else"
    title = "features" if features else "bare"
    least, middle = min(seconds["by hand"]), statistics.median(seconds["by hand"])
    for name, values in seconds.items():
        print(
            f"{title:<9} {name:<13} min {min(values) * 1e6:7.1f} us ({min(values) / least:.3f} x)   "
            f"median {statistics.median(values) * 1e6:7.1f} us ({statistics.median(values) / middle:.3f} x)"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--peers", action="store_true")
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peers = {"Lightning": lightning} if parsed.peers else {}
    for features in (False, True):
        measure(features, parsed.steps, parsed.repetitions, peers)


if __name__ == "__main__":
    main()
