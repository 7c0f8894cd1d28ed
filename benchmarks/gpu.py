"""What a GPU alone can show, in one script: ``python -m benchmarks.gpu [--device cuda] [--json FILE] [--scale X]``.

It needs torch, numpy, PyYAML and tqdm, takes less than four minutes on one card, and prints a table. With ``--device
cpu`` the same code runs without a GPU: that is for the tests, its times say nothing about a card.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from benchmarks.__main__ import quiet
from benchmarks.measuring import BY_HAND, interleaved
from benchmarks.steps import QUIET
from espnet3_lite import Callback, ESPnetModule, LiteModule, OptimizationStep, Trainer

WIDTH, BATCH, CLIP, GAMMA = 1024, 64, 1.0, 0.999


@dataclass
class Bench:
    """How the script was called, and what it has found.

    Attributes:
        device: Where everything is trained.
        scale: The work, as a fraction of the usual one.
        folder: Where rows may write; removed afterwards.
        rows: One dict a line of the table: ``row``, ``side``, ``value``, ``unit``, ``ratio`` (to the row's first side).
    """

    device: torch.device
    scale: float
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def count(self, usual: int) -> int:
        """So many steps instead of the usual number."""
        return max(4, round(usual * self.scale))

    @property
    def width(self) -> int:
        """Of the layers; small where the script is only tried out."""
        return max(16, round(WIDTH * min(1.0, self.scale)))

    @property
    def trainer(self) -> dict[str, Any]:
        """Settings of a trainer on the device."""
        return {**QUIET, "accelerator": "gpu" if self.device.type == "cuda" else "cpu", "devices": 1}

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def add(self, row: str, values: dict[str, float], unit: str) -> None:
        """Keep a row and print it."""
        first = next(iter(values.values()))
        for side, value in values.items():
            ratio = value / first if first and side != next(iter(values)) else None
            self.rows.append({"row": row, "side": side, "value": value, "unit": unit, "ratio": ratio})
            shown = "" if ratio is None else f"{ratio:.2f}"
            print(f"| {row} | {side} | {value:.4g} {unit} | {shown} |", flush=True)


class Stopwatch(Callback):
    """Seconds of the epoch, when the device has done its work."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.bench.wait()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.bench.wait()
        self.seconds = time.perf_counter() - self.start


# ---- steps: the trainer's against those by hand ----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A kind of step.

    Attributes:
        name: What the table calls it.
        precision: As the trainer has it.
        full: Clipping, a step scheduler and a logged loss too.
        compile: With ``torch.compile``.
    """

    name: str
    precision: str = "32-true"
    full: bool = False
    compile: bool = False

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Of the mixed modes."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


CASES = (
    Case("bare"),
    Case("full", full=True),
    Case("bf16-mixed", precision="bf16-mixed", full=True),
    Case("16-mixed", precision="16-mixed", full=True),
    Case("compiled", compile=True),
)


def make_network(width: int, dropout: float = 0.0) -> torch.nn.Sequential:
    """Four layers, the same for all sides."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))


def make_batches(bench: Bench, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """On the device already: what is timed is the step. They repeat, so that they take little memory."""
    generator = torch.Generator().manual_seed(0)
    few = [
        tuple(torch.randn(BATCH, size, generator=generator).to(bench.device) for size in (bench.width, 1))
        for _ in range(min(count, 8))
    ]
    return [few[number % len(few)] for number in range(count)]  # type: ignore[misc]


class Regression(LiteModule):
    """Four layers and a squared error; with `full` a step scheduler and a logged loss."""

    def __init__(self, width: int, full: bool = False, dropout: float = 0.0):
        super().__init__()
        self.network, self.full = make_network(width, dropout), full

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self.network(batch[0]), batch[1])
        if self.full:
            self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        if not self.full:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def step_by_hand(bench: Bench, case: Case, batches: list[Any]) -> float:
    """Seconds a step of the loop that one writes oneself; each has the check for NaN, which is its read."""
    network = make_network(bench.width).to(bench.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=case.precision == "16-mixed")
    forward = torch.compile(network) if case.compile else network
    if case.compile:
        forward(batches[0][0]).sum().backward()  # compilation is not timed
        optimizer.zero_grad()
    total = torch.zeros((), dtype=torch.float64, device=bench.device)
    bench.wait()
    start = time.perf_counter()
    for x, y in batches:
        with case.autocast(bench.device):
            loss = torch.nn.functional.mse_loss(forward(x), y)
        if not math.isfinite(loss.item()):
            continue
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if case.full:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            total += loss.detach()
        scaler.step(optimizer)
        scaler.update()
        if case.full:
            scheduler.step()
    bench.wait()
    return (time.perf_counter() - start) / len(batches)


class WarmUp(Callback):
    """A forward and a backward pass before the epoch is timed, as by hand: compilation is not timed."""

    def __init__(self, batch: Any):
        self.batch = batch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.plan.training_step(self.batch, 0).backward()
        pl_module.zero_grad()


def step_of_the_trainer(bench: Bench, case: Case, batches: list[Any]) -> float:
    """The same with the trainer."""
    watch = Stopwatch(bench)
    settings = {**bench.trainer, "precision": case.precision, "gradient_clip_val": CLIP if case.full else None}
    callbacks = [watch, WarmUp(batches[0])] if case.compile else [watch]
    trainer = Trainer(**settings, callbacks=callbacks, compile=case.compile)
    trainer.fit(Regression(bench.width, case.full), batches)
    return watch.seconds / len(batches)


class TwoLosses(torch.nn.Module):
    """ESPnet's contract with one loss for each of two named optimizers."""

    def __init__(self, width: int):
        super().__init__()
        self.generator, self.discriminator = make_network(width), make_network(width)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        losses = {
            name: torch.nn.functional.mse_loss(network(x), y)
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        return [OptimizationStep(loss, name) for name, loss in losses.items()], {}, torch.tensor(len(x))


def gan_by_hand(bench: Bench, batches: list[Any]) -> float:
    """Two optimizers, each with its loss, by hand."""
    model = TwoLosses(bench.width).to(bench.device)
    networks = [model.generator, model.discriminator]
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.01) for network in networks]
    bench.wait()
    start = time.perf_counter()
    for x, y in batches:
        steps, _, _ = model(x, y)
        if not all(map(math.isfinite, torch.stack([step.loss.detach() for step in steps]).tolist())):
            continue
        for step, network, optimizer in zip(steps, networks, optimizers, strict=True):
            optimizer.zero_grad()
            step.loss.backward(inputs=list(network.parameters()))
            optimizer.step()
    bench.wait()
    return (time.perf_counter() - start) / len(batches)


def gan_of_the_trainer(bench: Bench, batches: list[Any]) -> float:
    """The same with `ESPnetModule`."""
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.01}
    blocks = {name: {"params": name, "optimizer": optimizer} for name in ("generator", "discriminator")}
    watch = Stopwatch(bench)
    uids = [str(number) for number in range(BATCH)]
    trainer = Trainer(**bench.trainer, callbacks=[watch])
    module = ESPnetModule(TwoLosses(bench.width), {"optimizers": blocks})
    trainer.fit(module, [(uids, {"x": x, "y": y}) for x, y in batches])
    return watch.seconds / len(batches)


def steps(bench: Bench) -> None:
    """Microseconds a step, the trainer's over those by hand; medians of five interleaved rounds."""
    for case in CASES:
        batches = make_batches(bench, bench.count(300))
        sides: dict[str, Callable[[], float]] = {
            BY_HAND: lambda c=case, b=batches: step_by_hand(bench, c, b),
            "espnet3_lite": lambda c=case, b=batches: step_of_the_trainer(bench, c, b),
        }
        bench.add(f"step {case.name}", _medians(sides, rounds=2 if case.compile else 5), "us")
    batches = make_batches(bench, bench.count(200))
    sides = {BY_HAND: lambda: gan_by_hand(bench, batches), "espnet3_lite": lambda: gan_of_the_trainer(bench, batches)}
    bench.add("step of two named optimizers", _medians(sides, rounds=5), "us")


def _medians(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    samples = interleaved(sides, rounds)
    return {side: statistics.median(values) * 1e6 for side, values in samples.items()}


# ---- reads from the device -----------------------------------------------------------------------------------------


class _Reads(TorchDispatchMode):
    """Counts what is read back by ``item()``: the reads that a CPU can count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_reads(device: torch.device) -> Iterator[Callable[[], int]]:
    """How often the host waited for the device in the block. On CUDA torch itself tells, by a warning."""
    if device.type != "cuda":
        with _Reads() as mode:
            yield lambda: mode.count
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lambda: sum("synchroniz" in str(warning.message) for warning in caught)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class CountReads(Callback):
    """Reads of the batches from the second on: those of the first are set-up's."""

    def __init__(self, bench: Bench):
        self.bench, self.stack = bench, contextlib.ExitStack()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.reads = self.stack.enter_context(counted_reads(self.bench.device))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.each = self.reads() / batch_idx
            self.stack.close()


def reads(bench: Bench) -> None:
    """Reads a step of each kind: one (the vote's), and one more where gradients are clipped, checked or scaled."""
    for case in CASES[:-1]:
        counting = CountReads(bench)
        settings = {**bench.trainer, "precision": case.precision, "gradient_clip_val": CLIP if case.full else None}
        trainer = Trainer(**settings, callbacks=[counting])
        trainer.fit(Regression(bench.width, case.full), make_batches(bench, 20))
        bench.add(f"reads a step, {case.name}", {"espnet3_lite": counting.each}, "reads")


# ---- copies to the device ------------------------------------------------------------------------------------------


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows that a worker makes."""

    def __init__(self, count: int, width: int):
        self.count, self.width = count, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((self.width,), index / self.count), torch.zeros(1)


def copies(bench: Bench) -> None:
    """A step whose batches come from two workers, pinned or not, copied in their turn or one ahead, against one whose
    batches are on the device. Without a GPU the last three do the same.
    """
    count = bench.count(200)
    examples = Examples(count * BATCH, bench.width)
    settings = {"batch_size": BATCH, "num_workers": 2, "persistent_workers": True}
    pinned = DataLoader(examples, pin_memory=bench.device.type == "cuda", **settings)
    sides: dict[str, Callable[[], float]] = {
        "on the device": lambda: step_of_the_trainer(bench, CASES[0], make_batches(bench, count)),
        "from workers": lambda: _from(bench, DataLoader(examples, **settings), ahead=False),
        "from workers, pinned": lambda: _from(bench, pinned, ahead=False),
        "from workers, pinned, one ahead": lambda: _from(bench, pinned, ahead=True),
    }
    bench.add("a step with copies", _medians(sides, rounds=2), "us")


def _from(bench: Bench, loader: DataLoader[Any], ahead: bool) -> float:
    """Seconds a step; `ahead`: the next batch is copied while a step computes."""
    watch = Stopwatch(bench)
    Trainer(**bench.trainer, callbacks=[watch], prefetch_to_device=ahead).fit(Regression(bench.width), loader)
    return watch.seconds / len(loader)


# ---- resuming and saving -------------------------------------------------------------------------------------------


class KeepTheMiddle(Callback):
    """Saves a checkpoint in the middle of the second epoch."""

    def __init__(self, path: Path, batch_idx: int):
        self.path, self.batch_idx = path, batch_idx

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == self.batch_idx:
            trainer.save_checkpoint(self.path)


def resume(bench: Bench) -> None:
    """A run with dropout, and one that goes on from a checkpoint of its middle: how many weights differ at the end."""
    count = bench.count(40)
    batches, path = make_batches(bench, count), bench.folder / "middle.ckpt"

    def run(callbacks: list[Callback], **arguments: Any) -> list[torch.Tensor]:
        module = Regression(bench.width, full=True, dropout=0.5)
        trainer = Trainer(**{**bench.trainer, "max_epochs": 2}, callbacks=callbacks)
        trainer.fit(module, batches, **arguments)
        return [weight.detach().cpu() for weight in module.parameters()]

    whole = run([KeepTheMiddle(path, count // 2)])
    torch.manual_seed(99)
    resumed = run([], ckpt_path=path)
    different = sum(int((a != b).sum()) for a, b in zip(whole, resumed, strict=True))
    bench.add("weights that differ after a resume", {"dropout, in mid-epoch": float(different)}, "weights")


class SaveInTheMiddle(Callback):
    """How long one save keeps training waiting, while the device has nothing else to do."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.bench.wait()
            start = time.perf_counter()
            trainer.save_checkpoint(self.bench.folder / "saved.ckpt")
            self.seconds = time.perf_counter() - start


def saving(bench: Bench) -> None:
    """Milliseconds for which a save blocks training: a copy of the state, ``async_save``, and a plain save."""
    width = 4 * bench.width
    values: dict[str, float] = {}
    weights = [parameter.detach() for parameter in make_network(width).to(bench.device).parameters()]
    bench.wait()
    start = time.perf_counter()
    copied = [weight.to("cpu", copy=True) for weight in weights]
    values[f"a copy of {sum(weight.nbytes for weight in copied) / 2**20:.0f} MiB"] = time.perf_counter() - start
    for name, in_background in (("async_save", True), ("a plain save", False)):
        save = SaveInTheMiddle(bench)
        trainer = Trainer(**bench.trainer, callbacks=[save], async_save=in_background)
        generator = torch.Generator().manual_seed(0)
        batch = tuple(torch.randn(BATCH, size, generator=generator) for size in (width, 1))
        trainer.fit(Regression(width), [batch] * 4)
        values[name] = save.seconds
    bench.add("training waits for a save", {name: value * 1e3 for name, value in values.items()}, "ms")


# ---- several processes ---------------------------------------------------------------------------------------------

#: What is started, by torchrun: how many processes, over which backend, with which strategy.
GROUPS = {"gloo, two processes": (2, "gloo", "ddp"), "nccl": (1, "nccl", "ddp"), "fsdp": (1, "nccl", "fsdp")}


def groups(bench: Bench) -> None:
    """Steps of two processes on one card over gloo, of an nccl group of one, and of FSDP of one."""
    for name, (processes, backend, strategy) in GROUPS.items():
        found = bench.folder / "group.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m",
            "benchmarks.gpu", "--device", bench.device.type, "--scale", str(bench.scale), "--json", str(found),
            "--worker", backend if bench.device.type == "cuda" else "gloo", strategy,
        ]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ended.returncode:
            raise RuntimeError(f"{name} ended with {ended.returncode}: {ended.stderr[-2000:]}")
        result = json.loads(found.read_text())
        bench.add(f"a step, {name}", {strategy: result["seconds"] * 1e6}, "us")
        if processes > 1:
            bench.add("weights that differ between ranks", {name: float(result["different"])}, "weights")


def worker(bench: Bench, backend: str, strategy: str, output: Path) -> None:
    """One rank: trains, and compares its weights with rank 0's."""
    import torch.distributed as dist

    os.environ["LOCAL_RANK"] = "0"  # there is one card, also for the second process
    if bench.device.type == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend)
    world_size = dist.get_world_size()
    watch, module = Stopwatch(bench), Regression(bench.width, full=True)
    settings = {**bench.trainer, "devices": world_size, "strategy": strategy, "gradient_clip_val": CLIP}
    batches = make_batches(bench, bench.count(100))
    Trainer(**settings, callbacks=[watch]).fit(module, batches)
    different = 0
    if strategy == "ddp":
        for parameter in module.parameters():
            first = parameter.detach().clone()
            dist.broadcast(first, 0)
            different += int((first != parameter).sum())
    counts = torch.tensor(different, device=bench.device)
    dist.all_reduce(counts)
    if dist.get_rank() == 0:
        output.write_text(json.dumps({"seconds": watch.seconds / len(batches), "different": counts.item()}))
    dist.barrier()
    dist.destroy_process_group()


# ---- the command ---------------------------------------------------------------------------------------------------

PARTS = {"steps": steps, "reads": reads, "copies": copies, "resume": resume, "saving": saving, "groups": groups}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all by default: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="a file for the same figures")
    parser.add_argument("--scale", type=float, default=1.0, help="the work, as a fraction of the usual one")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; `--device cpu` tries the script out without one")
    with tempfile.TemporaryDirectory(prefix="benchmarks.") as folder, quiet():
        bench = Bench(torch.device(parsed.device), parsed.scale, Path(folder))
        if parsed.worker:
            worker(bench, *parsed.worker, output=parsed.json)
            return
        card = torch.cuda.get_device_name() if parsed.device == "cuda" else platform.machine()
        print(f"{card}; Python {platform.python_version()}, torch {torch.__version__}; {parsed.scale:g} of the work\n")
        print("| row | side | figure | ratio |\n|---|---|---|---|", flush=True)
        for name in parsed.parts or PARTS:
            PARTS[name](bench)
        if parsed.json is not None:
            head = {"device": card, "torch": torch.__version__, "scale": parsed.scale}
            parsed.json.write_text(json.dumps({**head, "rows": bench.rows}, indent=1))


if __name__ == "__main__":
    main()
