"""What one rank alone does or has, and all must take part in. As in `rank_cases`, each function is a case.

torchrun --nproc-per-node 2 rank_alone_cases.py FOLDER CASE [CASE ...]
"""

import itertools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from rank_cases import rank_and_size
from rank_lab import loader_of, trainer_of, write_results
from torch.utils.data import DataLoader, Sampler

from espnet3_lite import Callback, LiteModule, StopTrainingError
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint


class Line(LiteModule):
    """A linear model; `log_in` maps a hook to what is logged at its end."""

    def __init__(self, **log_in):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1).double()
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.log_in = log_in

    def loss(self, batch, hook):
        uids, tensors = batch
        error = self.layer(tensors["x"]).squeeze(1) - tensors["y"]
        self.log_in.get(hook, lambda module: None)(self)
        return error.square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch, "training_step")

    def validation_step(self, batch, batch_idx):
        return self.loss(batch, "validation_step")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def numbers(self):
        return [number for parameter in self.parameters() for number in parameter.detach().flatten().tolist()]


def fit(module, callbacks=(), train=None, count=8, val_count=4, **settings):
    """Each rank has `count` / 2 batches of one sample an epoch."""
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = trainer_of(callbacks=list(callbacks), enable_checkpointing=checkpoints, **settings)
    trainer.fit(module, loader_of(count, 1, False) if train is None else train, loader_of(val_count, 1, False))
    return trainer


def error_of(run):
    """What `run` raises, for a test to compare over the ranks."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# ---- manual optimization ---------------------------------------------------------------------------------------------


class Manual(Line):
    """Clips by hand; each process's batch is its share of 4 samples."""

    def __init__(self, algorithm):
        super().__init__()
        self.automatic_optimization = False
        self.algorithm, self.norms = algorithm, []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch, "training_step"))
        norm = self.clip_gradients(optimizer, 0.1, self.algorithm)
        self.norms.append(None if norm is None else float(norm))
        optimizer.step()


def clipped_by_hand():
    found = {}
    for algorithm in ("norm", "value"):
        module = Manual(algorithm)
        fit(module, train=loader_of(16, 4 // rank_and_size()[1], False))
        found[algorithm] = {"parameters": module.numbers(), "norms": module.norms}
    return found


# ---- a wish to stop --------------------------------------------------------------------------------------------------

STOPPING_HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end",
)  # fmt: skip


class StopsIn(Callback):
    """Raises once, on rank 1 alone; notes what came to an end."""

    def __init__(self, hook):
        self.raised, self.heard = False, []
        wait = 1 if hook.startswith(("on_train_batch", "on_before", "on_after")) else 0  # in the second batch

        def stop(trainer, *args):
            sanity = trainer.sanity_checking and hook != "on_sanity_check_start"
            if trainer.global_rank == 1 and not self.raised and not sanity and trainer.fit_loop.batches_done >= wait:
                self.raised = True
                raise StopTrainingError("enough")

        setattr(self, hook, stop)

    def on_stop_training_error(self, trainer, pl_module):
        self.heard.append("stop")

    def on_exception(self, trainer, pl_module, exception):
        self.heard.append("exception")


def stop_errors():
    found = {}
    for hook in STOPPING_HOOKS:
        callback = StopsIn(hook)
        trainer = fit(Line(), [callback], num_sanity_val_steps=1)
        found[hook] = [trainer.global_step, trainer.current_epoch, callback.heard, trainer.state.status]
    return found


# ---- loaders ---------------------------------------------------------------------------------------------------------


class Endless(Sampler):
    def __init__(self):
        pass

    def __iter__(self):
        return itertools.cycle(range(4))


def refused_loaders():
    shorter = loader_of(7 - 2 * rank_and_size()[0], 1, False)
    data = loader_of(4, 1).dataset
    endless = DataLoader(data, batch_size=2, sampler=Endless(), collate_fn=loader_of(4, 1).collate_fn)
    own = fit(Line(), train=endless, max_steps=3, max_epochs=-1, use_distributed_sampler=False)
    return {
        "training": error_of(lambda: fit(Line(), train=shorter)),
        "validation": error_of(lambda: fit(Line(), val_count=7 - 2 * rank_and_size()[0])),
        "endless": error_of(lambda: fit(Line(), train=endless)),
        "endless of each rank's own": own.global_step,
    }


# ---- values ----------------------------------------------------------------------------------------------------------


class Mean:
    """A metric that exchanges its sums when it computes, as torchmetrics' do."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, value):
        self.sums += torch.tensor([value, 1.0], dtype=torch.float64)

    def compute(self):
        sums = self.sums.clone()
        if dist.is_initialized():
            dist.all_reduce(sums)
        return sums[0] / sums[1]


def metric_objects():
    """Three validation samples: the second rank has one of them, and logs in another order. Then one sample alone."""

    class Measured(Line):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleList([torch.nn.Identity()])
            self.parts[0].mean, self.other = Mean(), Mean()

        def validation_step(self, batch, batch_idx):
            (uid,), _ = batch
            metrics = {"mean": self.parts[0].mean, "other": self.other}
            for name in sorted(metrics, reverse=self.trainer.global_rank == 1):
                metrics[name].update(int(uid.removeprefix("utt")) + (10 if name == "other" else 0))
                self.log(name, metrics[name])

    class Loose(Line):
        def validation_step(self, batch, batch_idx):
            self.log("loose", Mean())

    found = []
    for count in (3, 1):
        trainer = fit(Measured(), val_count=count, max_epochs=1)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    return {"values": found, "loose": error_of(lambda: fit(Loose(), val_count=1))}


def means_of_hooks():
    """Values of an epoch's end weigh the same on all ranks, whose last batches differ in size: 2 samples and 1."""

    class Ends(Line):
        def on_validation_epoch_end(self):
            self.log("validation", float(self.trainer.global_rank))

        def on_train_epoch_end(self):
            self.log("training", float(self.trainer.global_rank))

        def validation_step(self, batch, batch_idx):
            self.log("batch", 1.0)  # finds the batch's size

    trainer = trainer_of(max_epochs=1)
    trainer.fit(Ends(), loader_of(3, 2, False), loader_of(3, 2, False))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def only_on(rank, name="x"):
    """Log a value that falls by 1 each time, on one rank alone."""
    values = itertools.count(0, -1)

    def log(module):
        if module.trainer.global_rank == rank:
            module.log(name, float(next(values)), on_step=True, on_epoch=False)

    return log


def monitored_by_one():
    """Callbacks and a scheduler that watch what rank 1 alone logs."""

    class Scheduled(Line):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "x"}}

    stopping = EarlyStopping("x", mode="max", patience=2, check_on_train_epoch_end=True)
    saving = ModelCheckpoint(
        Path(FOLDER, "monitored"), monitor="x", mode="min", every_n_train_steps=2, save_top_k=1, filename="{step}"
    )
    module = Scheduled(training_step=only_on(1))
    trainer = fit(module, [stopping, saving], max_epochs=6)
    return {
        "epochs": trainer.current_epoch,
        "waited": stopping.wait_count,
        "best": [float(stopping.best_score), float(saving.best_model_score), Path(saving.best_model_path).name],
        "rate": trainer.optimizers[0].param_groups[0]["lr"],
    }


def monitored_in_validation():
    """A sum over the ranks that rank 0 alone logs into, and one that nobody has."""
    stopping = EarlyStopping("x", patience=1)
    trainer = fit(
        Line(validation_step=lambda module: module.trainer.is_global_zero and module.log("x", 1.0)), [stopping]
    )
    missing = fit(Line(), [EarlyStopping("y", strict=False)], max_epochs=1)
    return [trainer.current_epoch, stopping.wait_count, float(stopping.best_score), missing.current_epoch]


def agreed():
    rank, _ = rank_and_size()
    strategy = fit(Line(), max_epochs=1).strategy
    third = torch.tensor(1 / 3, dtype=torch.float64)
    one, both = strategy.agreed_metric(third if rank else None), strategy.agreed_metric(rank)
    return [float(one), str(one.dtype), both, strategy.agreed_metric(None)]


# ---- buffers ---------------------------------------------------------------------------------------------------------


def grown_buffer():
    class Grows(Line):
        def __init__(self):
            super().__init__()
            self.register_buffer("positions", torch.zeros(1))

        def training_step(self, batch, batch_idx):
            if self.trainer.global_rank == 1:
                self.positions = torch.zeros(5)
            return super().training_step(batch, batch_idx)

    return error_of(lambda: fit(Grows()))


FOLDER = "."  # where cases write


def main(folder, *names):
    global FOLDER
    FOLDER = folder
    write_results(folder, {name: globals()[name]() for name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
