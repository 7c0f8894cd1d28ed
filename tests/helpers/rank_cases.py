"""What the ranks do in the tests of `tests/distributed`: each function is a case, for one process and for several.

    torchrun --nproc-per-node 2 rank_cases.py FOLDER CASE [CASE ...]

Each rank writes ``FOLDER/rank<R>.json``: case to result.
"""

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from rank_lab import SINGLE, Model, Module, Note, loader_of, report, several, trainer_of, whole, write_results
from torch.utils.data import DataLoader, IterableDataset

from espnet3_lite import Callback, LiteModule, get_default_callbacks
from espnet3_lite.callbacks import (
    AverageCheckpointsCallback,
    ModelCheckpoint,
    ModelPruning,
    OptimizerModes,
    StochasticWeightAveraging,
)  # fmt: skip
from espnet3_lite.checkpoint.files import damage
from espnet3_lite.strategies import FSDPStrategy


def rank_and_size():
    """This process's number and how many there are, before a trainer has joined the group."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def share(batch_size):
    """A process's part of a batch that all processes share."""
    return batch_size // rank_and_size()[1]


def fit(module, count=25, batch_size=8, loader=None, val_count=0, bad=(), shuffle=True, **settings):
    trainer = trainer_of(**settings)
    loader = loader_of(count, share(batch_size), shuffle, bad) if loader is None else loader
    trainer.fit(module, loader, loader_of(val_count, share(6), False) if val_count else None)
    return report(trainer, module)


# ---- equal to one process ------------------------------------------------------------------------------------------


def single():
    return fit(Module(Model(), SINGLE), val_count=13)


def single_float32():
    return fit(Module(Model().float(), SINGLE), precision="32-true")


def single_accumulating():
    return fit(Module(Model(), SINGLE), count=27, accumulate_grad_batches=3, gradient_clip_val=0.05)


def single_unused():
    return fit(Module(Model(), SINGLE), count=27, strategy="ddp_find_unused_parameters_true")


def named():
    return fit(Module(Model([["second", "first"]]), several()))


def named_float32():
    return fit(Module(Model([["second", "first"]]).float(), several()), precision="32-true")


def named_accumulating():
    """Partial lists, one optimizer that accumulates over epochs' ends and clips, one that never gets a loss."""
    model = Model([["first", "second"], ["second"], ["first"], ["second", "first"]])
    return fit(Module(model, several(accum_grad_steps=3, gradient_clip_val=0.05)), count=27, max_epochs=3)


def named_other_order():
    """The ranks' models list the optimizers in different orders."""
    order = ["second", "first"] if rank_and_size()[0] == 0 else ["first", "second"]
    return fit(Module(Model([order]), several()))


class Plain(LiteModule):
    """A module without ESPnet's weights: its losses are averaged as they are."""

    def __init__(self):
        super().__init__()
        self.model = Model()
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch[0])
        loss, _, _ = self.model(**batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class SyncedAtOnce(Plain):
    """Each rank logs its own number and weight, reduced over the ranks in the step and over the epoch."""

    def training_step(self, batch, batch_idx):
        rank, _ = rank_and_size()
        for reduce_fx in ("mean", "sum", "min"):
            both = {"on_step": True, "on_epoch": True, "sync_dist": True, "batch_size": 1 + 2 * rank}
            self.log(reduce_fx, 10.0 * rank + batch_idx, reduce_fx=reduce_fx, **both)
        self.log("zero", 5.0 + rank, on_step=True, on_epoch=True, sync_dist=True, rank_zero_only=True)
        return super().training_step(batch, batch_idx)


class Manual(Plain):
    """Two optimizers, stepped by the module itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.trained.append(batch[0])
        for optimizer in self.optimizers():
            loss, _, _ = self.model(**batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.model.first, self.model.second)]


class Thaw(Callback):
    """Freezes the first part, and trains it from the second epoch on."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.model.first.requires_grad_(False)

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.model.first.requires_grad_(trainer.current_epoch > 0)


class ThawByBatch(Callback):
    """Freezes the first part in every third batch, whichever of a window that is."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.model.first.requires_grad_(batch_idx % 3 != 1)


class ThawsItself(Module):
    """The same, within the step itself, before the forward pass."""

    def training_step(self, batch, batch_idx):
        self.model.first.requires_grad_(batch_idx % 3 != 1)
        return super().training_step(batch, batch_idx)


def plain():
    return fit(Plain(), count=24)


def synced_at_once():
    return fit(SyncedAtOnce(), count=24, max_epochs=1)


def manual():
    return fit(Manual(), count=24)


def thawed():
    return fit(Module(Model(), SINGLE), count=24, callbacks=[Thaw()])


def thawed_by_batch():
    return fit(Module(Model(), SINGLE), count=48, callbacks=[ThawByBatch()])


def thawed_in_windows():
    return fit(Module(Model(), SINGLE), count=48, callbacks=[ThawByBatch()], accumulate_grad_batches=2)


def thaws_itself():
    return fit(ThawsItself(Model(), SINGLE), count=48)


def thaws_itself_unused():
    return fit(ThawsItself(Model(), SINGLE), count=48, strategy="ddp_find_unused_parameters_true")


def thaws_itself_named():
    return fit(ThawsItself(Model([["second", "first"]]), several()), count=48)


# ---- batches that are skipped --------------------------------------------------------------------------------------


def with_warnings(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return {**result, "warnings": [str(w.message) for w in caught if "skipped" in str(w.message)]}


def nan_single():
    """Sample 12 is the second rank's alone: samples 8 to 11 are the first one's."""
    return with_warnings(lambda: fit(Module(Model(), SINGLE), shuffle=False, bad=[12]))


def nan_accumulating():
    """The skipped batch is the one that closes a window."""
    return with_warnings(lambda: fit(Module(Model(), SINGLE), shuffle=False, bad=[12], accumulate_grad_batches=2))


def nan_named():
    return with_warnings(lambda: fit(Module(Model([["second", "first"]]), several()), shuffle=False, bad=[12]))


def different_optimizers():
    """The second rank's model returns another list in its second batch."""
    names = [["second", "first"], ["second"] if rank_and_size()[0] else ["second", "first"]]
    try:
        fit(Module(Model(names), several()))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def batch_of_none():
    """The second rank's second batch is None, as where its `collate_fn` drops a sample."""

    class Silent(Plain):
        def training_step(self, batch, batch_idx):
            return self.model(**batch[1])[0]

    loader = loader_of(25, share(8), True, ())
    collate, numbers = loader.collate_fn, iter(range(1000))
    loader.collate_fn = lambda samples: None if next(numbers) == 1 and rank_and_size()[0] else collate(samples)
    try:
        fit(Silent(), loader=loader)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


# ---- uneven data ---------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Batches of one sample; each rank has as many as `counts` says, with numbers of its own."""

    def __init__(self, counts, sized):
        rank, world_size = rank_and_size()
        each = [range(sum(counts[:r]), sum(counts[: r + 1])) for r in range(len(counts))]
        self.numbers = each[rank] if world_size > 1 else range(sum(counts))
        if sized:
            self.__class__ = SizedStream

    def __iter__(self):
        data = loader_of(40, 1, False).dataset
        return (data[number] for number in self.numbers)


class SizedStream(Stream):
    def __len__(self):
        return len(self.numbers)


def uneven(counts, sized=False, **settings):
    from rank_lab import collate

    model = Model()
    loader = DataLoader(Stream(counts, sized), batch_size=1, collate_fn=collate)
    return fit(Module(model, SINGLE), loader=loader, max_epochs=2, **settings)


def stream_7_and_5():
    return uneven([7, 5])


class Normed(Plain):
    """Has a BatchNorm, whose statistics stochastic weight averaging computes anew in an epoch without steps."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def training_step(self, batch, batch_idx):
        return self.model(self.norm(batch[1]["x"]), batch[1]["y"])[0]


def swa_of_seven_batches():
    """Seven batches for two ranks: in the last step one has none, also in the epoch that trains nothing."""
    from rank_lab import collate

    batches = [[2 * index, 2 * index + 1] for index in range(7)]
    loader = DataLoader(loader_of(14, 1).dataset, batch_sampler=batches, collate_fn=collate)
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    return fit(Normed(), loader=loader, max_epochs=2, callbacks=[averaging])


def nan_weight():
    """A weight that is no number on one rank, and later a negative one: a mean with it would be none either."""

    class Weightless(Model):
        def forward(self, x, y):
            loss, stats, weight = super().forward(x, y)
            bad = {2: float("nan"), 4: -1.0} if rank_and_size()[0] == 1 and self.training else {}
            return loss, stats, weight * bad.get(int(self.forwards), 1.0)

    return with_warnings(lambda: fit(Module(Weightless(), SINGLE), count=24))


def evaluated_streams():
    """Validation of iterable data of different lengths: 7 samples here, 5 there."""
    from rank_lab import collate

    loader = DataLoader(Stream([7, 5], False), batch_size=1, collate_fn=collate)
    trainer, module = trainer_of(), Module(Model(), SINGLE)
    results = trainer.validate(module, loader, verbose=False)
    return {"results": results, "validated": module.validated}


def stream_7_and_5_accumulating():
    return uneven([7, 5], accumulate_grad_batches=2)


def stream_sized():
    return uneven([5, 7], sized=True)


def stream_3_and_0():
    return uneven([3, 0])


def dealt_by_user():
    """Map-style loaders of the user's own, 7 and 5 batches long, two optimizers."""
    rank, world_size = rank_and_size()
    ids = range(12) if world_size == 1 else [range(7), range(7, 12)][rank]
    from rank_lab import collate

    data = loader_of(12, 1).dataset
    loader = DataLoader(torch.utils.data.Subset(data, list(ids)), batch_size=1, collate_fn=collate)
    return fit(Module(Model([["second", "first"]]), several()), loader=loader, use_distributed_sampler=False)


# ---- orders --------------------------------------------------------------------------------------------------------


def orders():
    """What the ranks see of loaders of all kinds, in one epoch each."""
    from rank_lab import Samples, collate

    from espnet3_lite.espnet.data.iterators import SequenceIterFactory

    data = Samples(11)
    batches = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]
    factory = SequenceIterFactory(data, batches, shuffle=True, seed=4, collate_fn=collate)
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * 11, 11, generator=None)
    loaders = {
        "sequential": DataLoader(data, batch_size=2, collate_fn=collate),
        "shuffled": DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate),
        "drop_last": DataLoader(data, batch_size=2, drop_last=True, collate_fn=collate),
        "weighted": DataLoader(data, batch_size=2, sampler=weighted, collate_fn=collate),
        "per_gpu": factory.build_loader("per_gpu"),
        "global": factory.build_loader("global"),
        "user_batches": DataLoader(data, batch_sampler=batches, collate_fn=collate),
        "no_batches": DataLoader(data, batch_size=None, collate_fn=lambda sample: collate([sample])),
        "list": [collate([data[i] for i in batch]) for batch in batches],
        "workers": DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate, num_workers=1),
    }
    seen = {}
    for name, loader in loaders.items():
        module = Module(Model(), SINGLE)
        torch.manual_seed(7 + rank_and_size()[0])  # what is drawn must be rank zero's
        fit(module, loader=loader, max_epochs=1)
        seen[name] = module.trained
    return seen


# ---- values --------------------------------------------------------------------------------------------------------


def values():
    """Values that each rank has its own of, and one that they share; buffers; a wish to stop on one rank."""
    rank, _ = rank_and_size()
    module = Module(Model(), SINGLE)
    stopped = []

    def stop(trainer, _, batch_idx):
        if rank == 1 and batch_idx == 1:
            trainer.should_stop = True
        stopped.append(batch_idx)

    trainer = trainer_of(max_epochs=5, callbacks=[Note(stop)])
    trainer.fit(module, loader_of(24, share(4)))
    strategy = trainer.strategy
    third = torch.tensor(1 / 3)
    return {
        "own": float(strategy.agreed_metric(torch.tensor(float(rank)))),
        "same": torch.equal(strategy.agreed_metric(third), third),
        "reduced": [
            float(strategy.reduce(torch.tensor(rank + 1.0), reduce_op=how)) for how in ("mean", "sum", "min", "max")
        ],
        "gathered": strategy.gather_objects(rank),
        "any": [strategy.any(rank == 1), strategy.any(False)],
        "batches": stopped,
        "steps": trainer.global_step,
    }


class NormedInput(Model):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3).double()

    def forward(self, x, y):
        return super().forward(self.norm(x), y)


def statistics():
    """A BatchNorm's after a fit whose last batches no validation and no checkpoint followed."""
    module = Module(NormedInput(), SINGLE)
    trainer_of(max_epochs=1).fit(module, loader_of(24, share(4)))
    return module.model.norm.running_mean.tolist()


def written():
    """What this rank writes to disk and to its output in a run with all default callbacks, a logger, and a test."""
    paths, recording = set(), [True]

    def watch(event, args):
        if recording and event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
            paths.add(args[0])

    sys.addaudithook(watch)  # sees every open() of this process; cannot be taken off, so a flag ends it
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        callbacks = get_default_callbacks(Path(FOLDER, "exp"), log_interval=1)
        trainer = trainer_of(
            default_root_dir=FOLDER, logger=True, enable_checkpointing=True, enable_progress_bar=True,
            enable_model_summary=True, num_sanity_val_steps=1, log_every_n_steps=1, callbacks=callbacks,
        )  # fmt: skip
        module = Module(Model(), SINGLE)
        trainer.fit(module, loader_of(12, share(4)), loader_of(5, 2, False))
        results = trainer.test(module, loader_of(5, 2, False), ckpt_path="best")
    recording.clear()
    return {
        "files": sorted(os.path.relpath(path, FOLDER) for path in paths if path.startswith(str(FOLDER))),
        "output": output.getvalue(),
        "log_dir": trainer.log_dir,
        "best": trainer.ckpt_path,
        "results": results,
    }


def saved_in_background():
    """The files of a run with the default callbacks that save: training waits for them, or goes on meanwhile."""
    found = {}
    for in_background in (False, True):
        folder = Path(FOLDER, f"saved-{in_background}")
        saving = (ModelCheckpoint, AverageCheckpointsCallback)
        callbacks = [c for c in get_default_callbacks(folder, log_interval=1) if isinstance(c, saving)]
        trainer = trainer_of(
            default_root_dir=folder, enable_checkpointing=True, async_save=in_background, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(Module(Model(), SINGLE), loader_of(12, share(4)), loader_of(5, 2, False))
        states = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.*t*"))}
        found[str(in_background)] = {
            name: [value.tolist() for value in state.get("state_dict", state).values()]
            for name, state in states.items()
        }
    return found


class Counting:
    """Counts torch.distributed's functions while it is open, by name and number of elements."""

    def __init__(self):
        self.calls, self._originals = [], {}

    def __enter__(self):
        for name in ("all_reduce", "broadcast", "all_gather", "all_gather_object", "barrier", "broadcast_object_list"):
            original = self._originals[name] = getattr(dist, name)

            def counted(*args, _name=name, _original=original, **kwargs):
                size = args[0].numel() if args and isinstance(args[0], torch.Tensor) else 0
                self.calls.append([_name, size])
                return _original(*args, **kwargs)

            setattr(dist, name, counted)
        return self

    def __exit__(self, *_):
        for name, original in self._originals.items():
            setattr(dist, name, original)


def collectives():
    """All collectives between two batches of a fit: their number, as the group counts them, and those from Python.

    A profile is no count: gloo's own threads write its events, and the last one may come too late.
    """
    found = {}
    for name, module, settings in (
        ("single", Module(Model(), SINGLE), {}),
        ("accumulating", Module(Model(), SINGLE), {"accumulate_grad_batches": 4}),
        ("named", Module(Model([["second", "first"]]), several()), {}),
    ):
        counting, numbers = Counting(), []

        def window(trainer, _, batch_idx, counting=counting, numbers=numbers):
            if batch_idx == 3:  # after the first batches, in which DDP arranges its buckets
                counting.__enter__()
            elif batch_idx == 7:  # four batches later
                counting.__exit__()
            if batch_idx in (3, 7):
                numbers.append(dist.group.WORLD._get_sequence_number_for_group())

        fit(module, count=48, batch_size=4, max_epochs=1, callbacks=[Note(window)], **settings)
        found[name] = {"python": counting.calls, "all": numbers[1] - numbers[0]}
    return found


# ---- FSDP2 ---------------------------------------------------------------------------------------------------------


SCHEDULE_FREE = {"optimizer": {"_target_": "schedule_free.ScheduleFreeSGD"}}


def fsdp(module=None, reshard_after_forward=True, **settings):
    """On one process: what it is compared with."""
    strategy = FSDPStrategy(reshard_after_forward) if rank_and_size()[1] > 1 else "auto"
    module = Module(Model(), SINGLE) if module is None else module
    return fit(module, val_count=13, gradient_clip_val=0.05, strategy=strategy, **settings)


def fsdp_accumulating():
    return fsdp(count=27, accumulate_grad_batches=3)


def fsdp_nan():
    return fsdp(shuffle=False, bad=[12])


def mixed(strategy, names=None):
    """float16 with a gradient scaler, whose first scales overflow, and clipping."""
    config = SINGLE if names is None else several()
    module = Module(Model(names).float(), config)
    clip = {"gradient_clip_val": 1.0} if names is None else {}
    result = fit(module, precision="16-mixed", strategy=strategy, **clip)
    return {**result, "scale": module.trainer.precision_plugin.scaler.get_scale()}


def ddp_mixed():
    return mixed("ddp")


def fsdp_mixed():
    return mixed("fsdp")


def named_mixed():
    return mixed("ddp", [["second", "first"]])


def fsdp_stream():
    return uneven([7, 5], strategy="fsdp") if rank_and_size()[1] > 1 else uneven([7, 5])


def fsdp_refuses():
    """Several optimizers, a parameter without a dimension, steps by hand, LBFGS, pruning."""
    errors = {}
    scalar = Model()
    scalar.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    lbfgs = {"optimizer": {"_target_": "torch.optim.LBFGS"}}
    for name, module in (
        ("several", Module(Model([["second", "first"]]), several())),
        ("scalar", Module(scalar, SINGLE)),
        ("manual", Manual()),
        ("lbfgs", Module(Model(), lbfgs)),
        ("pruning", Plain()),
    ):
        callbacks = [ModelPruning("l1_unstructured")] if name == "pruning" else []
        try:
            fit(module, strategy="fsdp", callbacks=callbacks)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def fsdp_saves_late():
    """After a fit, whose saves go to the background; and in `on_exception`, where the others may be elsewhere."""

    class Fails(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise ValueError("boom")

        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(Path(FOLDER, "failed.ckpt"))

    trainer, module = trainer_of(strategy="fsdp", async_save=True, max_epochs=1), Module(Model(), SINGLE)
    trainer.fit(module, loader_of(8, share(8)))
    trainer.save_checkpoint(Path(FOLDER, "late.ckpt"))
    intact = damage(Path(FOLDER, "late.ckpt")) is None
    try:
        fit(Module(Model(), SINGLE), strategy="fsdp", callbacks=[Fails()])
    except Exception as error:
        return {**report(trainer, module), "intact": intact, "error": f"{type(error).__name__}: {error}"}


def fsdp_damaged():
    """A bit flipped in one of two ranks' files is found by whoever looks at that one, and refused by both."""
    folder = Path(FOLDER, "late.ckpt")
    if rank_and_size()[0] == 0:
        data = sorted(folder.glob("*.distcp"))[-1]
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 0x40
        data.write_bytes(content)
    dist.barrier()
    try:
        trainer_of(strategy="fsdp").fit(Module(Model(), SINGLE), loader_of(8, share(8)), ckpt_path=folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fsdp_units():
    """Layers in a list are sharded one by one; the rest, with the tied parameter, as one."""
    from torch.distributed.fsdp import FSDPModule

    class Deep(Model):
        def __init__(self):
            super().__init__()
            layers = [torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()) for _ in range(3)]
            self.layers = torch.nn.ModuleList(layers).double()
            self.layers[2][0].weight = self.layers[0][0].weight

        def forward(self, x, y):
            for layer in self.layers:
                x = layer(x)
            return super().forward(x, y)

    torch.manual_seed(0)
    module = Module(Deep(), SINGLE)
    result = fit(module, max_epochs=1, **({"strategy": "fsdp"} if rank_and_size()[1] > 1 else {}))
    result["units"] = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    return result


class Keeps(Callback):
    """Has weights of the first batch in its state."""

    kept = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.kept is None:
            self.kept = {"first.weight": pl_module.model.first.weight.detach().clone()}

    def state_dict(self):
        return {"kept": self.kept}


def modes_folder():
    return Path(FOLDER, "modes.ckpt")


def fsdp_modes():
    """A schedule-free optimizer; one process alone is what it is compared with. It saves within its second epoch."""

    def save(trainer, module, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(modes_folder())

    keeps = Keeps()
    result = fsdp(Module(Model(), SCHEDULE_FREE), callbacks=[OptimizerModes(), keeps, Note(save)])
    return {**result, "kept": whole(keeps.kept["first.weight"]).tolist()}


def fsdp_modes_gathered():
    """Whole parameters stay where they are after a forward pass, also after a validation's."""
    return fsdp(Module(Model(), SCHEDULE_FREE), callbacks=[OptimizerModes()], reshard_after_forward=False)


def fsdp_modes_resumed():
    """What `fsdp_modes` saved: the weights to use, and a run that goes on from the others."""
    tested, module = Module(Model(), SCHEDULE_FREE), Module(Model(), SCHEDULE_FREE)
    strategy = "fsdp" if rank_and_size()[1] > 1 else "auto"
    trainer = trainer_of(strategy=strategy, callbacks=[OptimizerModes()])
    (valid,) = trainer.validate(tested, loader_of(13, share(6), False), ckpt_path=modes_folder(), verbose=False)
    trainer = trainer_of(strategy=strategy, callbacks=[OptimizerModes()], gradient_clip_val=0.05)
    trainer.fit(module, loader_of(25, share(8)), loader_of(13, share(6), False), ckpt_path=modes_folder())
    return {**report(trainer, module), "saved": valid["valid/loss"]}


def sharded_folder(in_background):
    return Path(FOLDER, f"background-{in_background}.ckpt")


def fsdp_saving(in_background=False):
    """A run that saves within its second epoch, in an accumulation window, and one that goes on from there."""
    settings = {"count": 27, "accumulate_grad_batches": 3, "strategy": "fsdp", "max_epochs": 3}
    folder = sharded_folder(in_background)
    on_disk = []

    def save(trainer, module, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(folder)
            trainer.strategy.saver.when_saved(lambda: on_disk.append((folder / ".metadata").exists()))

    whole_run = fit(Module(Model(), SINGLE), callbacks=[Note(save)], async_save=in_background, **settings)
    return {"whole": whole_run, "resumed": fsdp_resumed(in_background), "on_disk": on_disk}


def fsdp_saving_in_background():
    return fsdp_saving(in_background=True)


def fsdp_resumed(in_background=False):
    """Goes on from a folder that two ranks wrote, on any number of ranks."""
    strategy = "fsdp" if rank_and_size()[1] > 1 else "auto"
    trainer = trainer_of(accumulate_grad_batches=3, strategy=strategy, max_epochs=3)
    module = Module(Model(), SINGLE)
    trainer.fit(module, loader_of(27, share(8)), ckpt_path=sharded_folder(in_background))
    return report(trainer, module)


def fsdp_from_a_file():
    """A plain file, which one process wrote, in the middle of a run."""
    trainer = trainer_of(accumulate_grad_batches=3, strategy="fsdp", max_epochs=3)
    module = Module(Model(), SINGLE)
    trainer.fit(module, loader_of(27, share(8)), ckpt_path=Path(FOLDER, "plain.ckpt"))
    return report(trainer, module)


def fsdp_from_ddp():
    """A plain file of two DDP ranks, saved within an accumulation window, whose gradients are still each rank's own."""
    file, settings = Path(FOLDER, "ddp.ckpt"), {"accumulate_grad_batches": 3, "max_epochs": 3}

    def save(trainer, module, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(file)

    whole_run = fit(Module(Model(), SINGLE), count=27, callbacks=[Note(save)], strategy="ddp", **settings)
    trainer, module = trainer_of(strategy="fsdp", **settings), Module(Model(), SINGLE)
    trainer.fit(module, loader_of(27, share(8)), ckpt_path=file)
    return {"whole": whole_run, "resumed": report(trainer, module)}


FOLDER = "."  # where cases write


def main(folder, *names):
    global FOLDER
    FOLDER = folder
    write_results(folder, {name: globals()[name]() for name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
