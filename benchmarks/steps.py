"""Training steps and validation batches of small models: what the trainer costs a step, whatever the model.

A case is a loop by hand and a module that trains the same weights. Only the epoch itself is timed, neither the set-up
nor the end of a run.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import peers
from benchmarks.measuring import BY_HAND, Options, Row, Samples, interleaved, now, require_equal
from espnet3_lite import Callback, ESPnetModule, LiteModule, OptimizationStep, Trainer, get_default_callbacks
from espnet3_lite.callbacks import TQDMProgressBar
from espnet3_lite.loggers import CSVLogger

WIDTH, BATCH = 32, 16
CLIP, GAMMA, REFRESH = 1.0, 0.9999, 50
QUIET = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
    "enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
}  # fmt: skip

#: Seconds a step, and a weight that was trained.
Outcome = tuple[float, torch.Tensor]


def make_batches(count: int, espnet: bool = False) -> list[Any]:
    """A list: a loader without any work, since what is timed is the step. `espnet`: batches ``(uids, {x, y})``.

    A loader of the user's own that is read in the training's process costs more: before it is read one batch ahead
    the states of all random generators are noted, and `numpy.random.get_state` is slow.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, 1, generator=generator))
        for _ in range(count)
    ]
    uids = [f"utterance{number}" for number in range(BATCH)]
    return [(uids, {"x": x, "y": y}) for x, y in pairs] if espnet else pairs


def make_layer() -> torch.nn.Linear:
    """The model, the same for all sides."""
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, 1)


class Stopwatch(Callback):
    """Times the epoch, or the validation: what is between its first hook and its last one."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = now() - self.start

    on_validation_epoch_start, on_validation_epoch_end = on_train_epoch_start, on_train_epoch_end


def fit(module: LiteModule, batches: list[Any], callbacks: list[Callback] | None = None, **settings: Any) -> float:
    """Seconds a step of one epoch."""
    watch = Stopwatch()
    trainer = Trainer(**{**QUIET, **settings}, callbacks=[watch, *(callbacks or [])])
    trainer.fit(module, batches)
    return watch.seconds / len(batches)


# ---- one optimizer -------------------------------------------------------------------------------------------------


class Module(LiteModule):
    """One layer. With `features` it logs its loss to the bar and has a step scheduler; `logs` more values a step."""

    def __init__(self, features: bool = False, logs: int = 0):
        super().__init__()
        self.layer, self.features = make_layer(), features
        self.names = [f"value{number}" for number in range(logs)]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        if self.features:
            self.log("loss", loss, prog_bar=True)
        for name in self.names:
            self.log(name, loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        if not self.features:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_hand(batches: list[Any], features: bool = False, logs: int = 0, reads: bool = False) -> Outcome:
    """The loop that one writes oneself. With `reads` it adds up numbers, not tensors, as one may on a CPU."""
    layer = make_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
    bar = tqdm(total=len(batches), file=io.StringIO()) if features else None
    zero: Any = 0.0 if reads else torch.zeros((), dtype=torch.float64)
    sums, weights = {f"value{number}": zero for number in range(logs)}, 0
    start = now()
    for index, (x, y) in enumerate(batches):
        loss = torch.nn.functional.mse_loss(layer(x), y)
        for name in sums:
            sums[name] = sums[name] + (loss.item() if reads else loss.detach().double()) * len(x)
        weights += len(x)
        if features and not math.isfinite(loss.item()):
            continue
        optimizer.zero_grad()
        loss.backward()
        if features:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), CLIP)
        optimizer.step()
        if features:
            scheduler.step()
        if bar is not None and (index + 1) % REFRESH == 0:
            bar.set_postfix({"loss": loss.item()}, refresh=False)
            bar.update(REFRESH)
    return (now() - start) / len(batches), layer.weight.detach()


def telling_by_hand(batches: list[Any], listeners: int) -> Outcome:
    """The loop by hand with callbacks, of which it calls each at each of the six hooks of a step."""
    layer, callbacks = make_layer(), [Callback() for _ in range(listeners)]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)

    def tell(hook: str, *values: Any) -> None:
        for callback in callbacks:
            getattr(callback, hook)(None, layer, *values)

    start = now()
    for index, (x, y) in enumerate(batches):
        tell("on_train_batch_start", (x, y), index)
        loss = torch.nn.functional.mse_loss(layer(x), y)
        tell("on_before_zero_grad", optimizer)
        optimizer.zero_grad()
        tell("on_before_backward", loss)
        loss.backward()
        tell("on_after_backward")
        tell("on_before_optimizer_step", optimizer)
        optimizer.step()
        tell("on_train_batch_end", loss, (x, y), index)
    return (now() - start) / len(batches), layer.weight.detach()


def one_optimizer(batches: list[Any], features: bool = False, logs: int = 0, listeners: int = 0) -> Outcome:
    """The same with the trainer; `listeners` callbacks that listen to nothing beside."""
    module = Module(features, logs)
    callbacks = [Callback() for _ in range(listeners)] + ([TQDMProgressBar(refresh_rate=REFRESH)] if features else [])
    settings = {"enable_progress_bar": features, "gradient_clip_val": CLIP if features else None}
    return fit(module, batches, callbacks, **settings), module.layer.weight.detach()


# ---- many small tensors --------------------------------------------------------------------------------------------


class ManyTensors(LiteModule):
    """2,000 parameters of one number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.numbers = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(1)) for _ in range(2000)])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.cat(list(self.numbers)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def many_by_hand(batches: list[Any]) -> Outcome:
    """The same by hand, with the check for NaN."""
    module = ManyTensors()
    optimizer = module.configure_optimizers()
    start = now()
    for batch in batches:
        loss = module.training_step(batch, 0)
        if not math.isfinite(loss.item()):
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (now() - start) / len(batches), torch.cat(list(module.numbers)).detach()


def many_tensors(batches: list[Any]) -> Outcome:
    """The same with the trainer."""
    module = ManyTensors()
    return fit(module, batches), torch.cat(list(module.numbers)).detach()


# ---- ESPnet's contract ---------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """``loss, stats, weight = model(x, y)``; with `named`, one loss for each of two optimizers."""

    def __init__(self, named: bool = False):
        super().__init__()
        self.first, self.second, self.named = make_layer(), make_layer(), named
        self.second.requires_grad_(named)  # else nobody trains it: no side builds its graph

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        losses = [torch.nn.functional.mse_loss(layer(x), y) for layer in (self.first, self.second)]
        if self.named:
            steps = [OptimizationStep(losses[0], "first"), OptimizationStep(losses[1], "second")]
            return steps, {}, torch.tensor(len(x))
        return losses[0], {"loss": losses[0].detach(), "error": losses[1].detach()}, torch.tensor(len(x))


def contract_by_hand(batches: list[Any], options: Options, interval: int) -> Outcome:
    """Bar, metrics lines with ESPnet3's times and rates, a CSV file, means of two values, and the check for NaN.

    Training means are not weighted, neither here nor in the trainer nor in ESPnet3: a weight counts in validation, and
    where ranks share a step. The bar moves with each batch and is drawn by the clock, as the trainer's: lines may be
    minutes apart.
    """
    model = Model()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.01)
    lines, window = [], defaultdict(list)
    with open(options.folder / "by_hand.csv", "w") as file:
        table = csv.DictWriter(file, ["step", "lr", "loss", "error"])
        table.writeheader()
        bar, start = tqdm(total=len(batches), file=io.StringIO()), now()
        asked = time.perf_counter()
        for index, (_, batch) in enumerate(batches):
            began = time.perf_counter()
            loss, stats, _ = model(**batch)
            if not math.isfinite(loss.item()):
                continue
            for name, value in stats.items():
                window[name].append(value)
            optimizer.zero_grad()
            forwarded = time.perf_counter()
            loss.backward()
            window["backward_time"].append(time.perf_counter() - forwarded)
            optimizer.step()
            window["lr"].append(optimizer.param_groups[0]["lr"])
            if (index + 1) % 50 == 0:
                values = {name: value.item() for name, value in stats.items()}
                table.writerow({"step": index, "lr": optimizer.param_groups[0]["lr"], **values})
            if (index + 1) % 100 == 0:
                file.flush()
            window["iter_time"].append(began - asked)
            window["forward_time"].append(forwarded - began)
            asked = time.perf_counter()
            window["train_time"].append(asked - began)
            bar.update()
            if (index + 1) % interval == 0:
                means = {name: float(torch.as_tensor(values).mean()) for name, values in window.items()}
                lines.append(f"{index + 1}batch: " + ", ".join(f"{name}={mean:.6g}" for name, mean in means.items()))
                window.clear()
                bar.set_postfix({name: value.item() for name, value in stats.items()}, refresh=False)
        return (now() - start) / len(batches), model.first.weight.detach()


def contract(batches: list[Any], options: Options, interval: int) -> Outcome:
    """The same with `ESPnetModule` and ESPnet3's default callbacks."""
    model = Model()
    module = ESPnetModule(model, {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01}})
    callbacks = get_default_callbacks(options.folder / "contract", log_interval=interval, best_model_criterion=[])
    logger = CSVLogger(options.folder / "csv")
    assert logger.experiment  # its folder is made before the clock starts, as the file by hand
    settings = {"enable_checkpointing": True, "enable_progress_bar": True, "logger": logger}
    return fit(module, batches, callbacks, **settings), model.first.weight.detach()


def named_by_hand(batches: list[Any]) -> Outcome:
    """Two optimizers, each with its loss; both losses and both counts of updates are logged."""
    model = Model(named=True)
    layers = {"first": model.first, "second": model.second}
    optimizers = {name: torch.optim.SGD(layer.parameters(), lr=0.01) for name, layer in layers.items()}
    updates = dict.fromkeys(optimizers, 0)
    logged: dict[str, Any] = {}
    start = now()
    for _, batch in batches:
        steps, _, _ = model(**batch)
        if not all(math.isfinite(step.loss.item()) for step in steps):
            continue
        for step in steps:
            logged[f"{step.name}/loss"] = step.loss.detach()
            optimizers[step.name].zero_grad()
            step.loss.backward(inputs=list(layers[step.name].parameters()))
        for name, optimizer in optimizers.items():
            optimizer.step()
            updates[name] += 1
            logged[f"{name}/update_step"] = updates[name]
    return (now() - start) / len(batches), model.first.weight.detach()


def named_optimizers(batches: list[Any]) -> Outcome:
    """The same with `ESPnetModule`."""
    module = named_module()
    return fit(module, batches), module.model.first.weight.detach()


def named_module() -> ESPnetModule:
    """`Model` with its two optimizers by name."""
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.01}
    blocks = {name: {"params": name, "optimizer": optimizer} for name in ("first", "second")}
    return ESPnetModule(Model(named=True), {"optimizers": blocks})


# ---- validation ----------------------------------------------------------------------------------------------------


def validation_by_hand(batches: list[Any], reads: bool = False) -> Outcome:
    """Seconds a batch, and the mean loss by weight. `reads` as above."""
    layer, weight = make_layer().eval(), 0
    total: Any = 0.0 if reads else torch.zeros((), dtype=torch.float64)
    start = now()
    with torch.inference_mode():
        for x, y in batches:
            loss = torch.nn.functional.mse_loss(layer(x), y)
            total = total + (loss.item() if reads else loss.double()) * len(x)
            weight += len(x)
    return (now() - start) / len(batches), torch.as_tensor(total / weight).float()


def validation(batches: list[Any]) -> Outcome:
    """The same with the trainer, which leaves batches with a loss that is not finite out of the mean."""
    watch = Stopwatch()
    (values,) = Trainer(**QUIET, callbacks=[watch]).validate(Module(), batches, verbose=False)
    return watch.seconds / len(batches), torch.tensor(values["loss"])


# ---- rows ----------------------------------------------------------------------------------------------------------


def compare(options: Options, sides: dict[str, Callable[[], Outcome]]) -> Samples:
    """Seconds a step of each side, after they trained the same."""
    weights: dict[str, torch.Tensor] = {}

    def timed(name: str) -> float:
        seconds, weights[name] = sides[name]()
        return seconds

    samples = interleaved({name: lambda name=name: timed(name) for name in sides}, options.repetitions)
    require_equal(weights)
    return samples


def _step(options: Options, features: bool) -> Samples:
    batches = make_batches(options.count(2000))
    sides = {BY_HAND: lambda: by_hand(batches, features), "espnet3_lite": lambda: one_optimizer(batches, features)}
    if options.peers:
        sides.update({name: lambda run=run: run(batches, features) for name, run in peers.installed().items()})
    return compare(options, sides)


def _logging(options: Options, reads: bool = False) -> Samples:
    batches = make_batches(options.count(200))
    sides = {BY_HAND: lambda: by_hand(batches, logs=100, reads=reads)}
    return compare(options, {**sides, "espnet3_lite": lambda: one_optimizer(batches, logs=100)})


def _listeners(options: Options) -> Samples:
    batches = make_batches(options.count(2000))
    sides = {BY_HAND: lambda: telling_by_hand(batches, 50)}
    return compare(options, {**sides, "espnet3_lite": lambda: one_optimizer(batches, listeners=50)})


def _tensors(options: Options) -> Samples:
    batches = make_batches(options.count(40))
    return compare(options, {BY_HAND: lambda: many_by_hand(batches), "espnet3_lite": lambda: many_tensors(batches)})


def _contract(options: Options) -> Samples:
    batches = make_batches(options.count(2000), espnet=True)
    interval = options.count(500)
    return compare(
        options,
        {
            BY_HAND: lambda: contract_by_hand(batches, options, interval),
            "espnet3_lite": lambda: contract(batches, options, interval),
        },
    )


def _named(options: Options) -> Samples:
    batches = make_batches(options.count(1000), espnet=True)
    return compare(
        options, {BY_HAND: lambda: named_by_hand(batches), "espnet3_lite": lambda: named_optimizers(batches)}
    )


def _validation(options: Options, reads: bool = False) -> Samples:
    batches = make_batches(options.count(2000))
    sides = {BY_HAND: lambda: validation_by_hand(batches, reads)}
    return compare(options, {**sides, "espnet3_lite": lambda: validation(batches)})


ROWS = (
    Row("step", "a step: forward, backward, update", 1.0, "us", lambda options: _step(options, features=False)),
    Row("features", "with bar, log, NaN check, clipping, step scheduler", 1.0, "us", lambda o: _step(o, features=True)),
    Row("tensors", "a step of 2,000 parameters of one number", 1.0, "us", _tensors),
    Row("callbacks", "50 callbacks that listen to nothing, against a loop that calls each", 0.9, "us", _listeners),
    Row("logging", "a step that logs 100 values for the epoch's means", 1.1, "us", _logging),
    Row("logging-read", "the same against sums of numbers, for which each value is read", None, "us",
        lambda options: _logging(options, reads=True)),
    Row("contract", "ESPnet's contract with the default callbacks", 1.05, "us", _contract),
    Row("named", "two named optimizers", 1.02, "us", _named),
    Row("validation", "a validation batch", 1.15, "us", _validation),
    Row("validation-read", "the same against a sum of numbers", None, "us", lambda o: _validation(o, reads=True)),
)  # fmt: skip
