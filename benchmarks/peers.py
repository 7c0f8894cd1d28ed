"""Lightning and Accelerate on the same layer and batches, where they are installed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.measuring import now


def installed() -> dict[str, Callable[[Any, bool], tuple[float, Any]]]:
    """Functions of batches and `features` that return the seconds a step and the weight, by name."""
    sides = {"Lightning": ("lightning", lightning), "Accelerate": ("accelerate", accelerate)}
    return {name: run for name, (package, run) in sides.items() if importlib.util.find_spec(package) is not None}


class _Loader:
    """A list of batches that Lightning does not take for a list of loaders."""

    def __init__(self, batches: Any):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def lightning(batches: Any, features: bool) -> tuple[float, Any]:
    """`steps.Module` under Lightning's trainer."""
    import lightning.pytorch as pl

    from benchmarks.steps import CLIP, QUIET, Module, Stopwatch, make_layer

    class Peer(pl.LightningModule):
        training_step, configure_optimizers = Module.training_step, Module.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.features, self.names = make_layer(), features, []

    class Watch(pl.Callback):
        on_train_epoch_start = Stopwatch.on_train_epoch_start
        on_train_epoch_end = Stopwatch.on_train_epoch_end

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, watch = Peer(), Watch()
    settings = {"enable_progress_bar": features, "gradient_clip_val": CLIP if features else None}
    pl.Trainer(**{**QUIET, **settings}, callbacks=[watch]).fit(module, _Loader(batches))
    return watch.seconds / len(batches), module.layer.weight.detach()


def accelerate(batches: Any, features: bool) -> tuple[float, Any]:
    """A loop by hand through an `Accelerator`: a bar, a scheduler and the check for NaN are the user's there."""
    import math

    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from benchmarks.steps import CLIP, GAMMA, REFRESH, make_layer

    accelerator = Accelerator(cpu=True)
    layer = make_layer()
    plain = torch.optim.SGD(layer.parameters(), lr=0.01)
    layer, optimizer, scheduler = accelerator.prepare(
        layer, plain, torch.optim.lr_scheduler.ExponentialLR(plain, GAMMA)
    )
    bar = tqdm(total=len(batches)) if features else None
    start = now()
    for index, (x, y) in enumerate(batches):
        loss = torch.nn.functional.mse_loss(layer(x), y)
        if features and not math.isfinite(loss.item()):
            continue
        optimizer.zero_grad()
        accelerator.backward(loss)
        if features:
            accelerator.clip_grad_norm_(layer.parameters(), CLIP)
        optimizer.step()
        if features:
            scheduler.step()
        if bar is not None and (index + 1) % REFRESH == 0:
            bar.set_postfix({"loss": loss.item()}, refresh=False)
            bar.update(REFRESH)
    return (now() - start) / len(batches), accelerator.unwrap_model(layer).weight.detach()
