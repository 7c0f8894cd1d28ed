"""What differs between the ranks, or what one of them does alone: each case ends by one message on both.

`rank_launch` runs them on two ranks.
"""

from pathlib import Path

import torch
from rank_alone_cases import Line, error_of, fit
from rank_cases import rank_and_size
from rank_lab import loader_of, trainer_of, write_results

from espnet3_lite import Callback
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

RANK = rank_and_size()[0]


def settings():
    """One setting at a time is another one on rank 1."""
    pairs = {
        "max_epochs": (2, 3), "accumulate_grad_batches": (1, 2), "limit_train_batches": (3, 2),
        "limit_val_batches": (1.0, 0), "val_check_interval": (2, 1), "gradient_clip_val": (None, 0.1),
        "check_grad_finite": (False, True), "max_steps": (-1, 3), "max_time": (None, "00:00:10:00"),
        "precision": ("64-true", "bf16-mixed"),
    }  # fmt: skip
    return {name: error_of(lambda: fit(Line(), **{name: pair[RANK]})) for name, pair in pairs.items()}  # noqa: B023


def callbacks():
    def stopping(patience=3):
        return EarlyStopping("x", patience=patience)

    def saving(**arguments):
        return ModelCheckpoint(Path(FOLDER, f"saved-by-{RANK}"), **arguments)

    lists = {
        "one more": [[], [stopping()]],
        "one less": [[saving()], []],
        "another argument": [[stopping(2)], [stopping(3)]],
        "another moment": [[saving(every_n_train_steps=2)], [saving(every_n_train_steps=1)]],
    }
    found = {name: error_of(lambda: fit(Line(), both[RANK])) for name, both in lists.items()}  # noqa: B023
    bars = [TQDMProgressBar()] if RANK == 0 else []
    found["a bar on rank 0 alone"] = error_of(lambda: fit(Line(), bars, enable_progress_bar=RANK == 0))
    return found


class Optimized(Line):
    """Its rate, schedule, width and what is frozen may be rank 1's own."""

    def __init__(self, differs):
        super().__init__()
        self.differs = differs if RANK == 1 else None
        if self.differs == "width":
            self.more = torch.nn.Linear(2, 2)
        if self.differs == "frozen":
            self.layer.bias.requires_grad_(False)

    def configure_optimizers(self):
        rate = 0.5 if self.differs == "lr" else 0.05
        kind = torch.optim.Adam if self.differs == "kind" else torch.optim.SGD
        optimizer = kind(self.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5 if self.differs == "gamma" else 0.9)
        return [optimizer], [schedule]


class ByHand(Line):
    """Rank 1 has an optimizer more."""

    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in list(self.parameters())[: 1 + RANK]]


def modules():
    names = ("lr", "kind", "gamma", "width", "frozen")
    found = {name: error_of(lambda: fit(Optimized(name))) for name in names}  # noqa: B023
    return {**found, "count": error_of(lambda: fit(ByHand()))}


def calls():
    """Rank 1 has no validation data; then it validates while rank 0 trains."""
    loaders = [loader_of(8, 1, False), loader_of(4, 1, False)]

    def without():
        trainer_of().fit(Line(), loaders[0], loaders[1] if RANK == 0 else None)

    def other_call():
        trainer_of().fit(Line(), *loaders) if RANK == 0 else trainer_of().validate(Line(), loaders[1])

    return {"loaders": error_of(without), "call": error_of(other_call)}


class SavesIn(Callback):
    """On rank 0 alone; a hook of a batch in the second one."""

    def __init__(self, hook):
        self.batches = 0

        def save(trainer, module, *args):
            self.batches += "_batch_" in hook
            if RANK == 0 and self.batches in (0, 2):
                trainer.save_checkpoint(Path(FOLDER, "alone.ckpt"))

        setattr(self, hook, save)


SAVING_HOOKS = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
    "on_train_epoch_end", "on_train_end",
)  # fmt: skip


def saving_alone():
    """Rank 0 saves, in one hook after the other."""
    return {hook: error_of(lambda: fit(Line(), [SavesIn(hook)])) for hook in SAVING_HOOKS}  # noqa: B023


def logging_alone():
    """With `sync_dist`, on rank 1 alone."""

    def log(module):
        if RANK == 1:
            module.log("x", 1.0, sync_dist=True, on_step=True)

    return error_of(lambda: fit(Line(training_step=log)))


FOLDER = "."  # where cases write


def main(folder, *names):
    global FOLDER
    FOLDER = folder
    write_results(folder, {name: globals()[name]() for name in names})
