"""A quiet trainer, and runs that are saved after each batch and resumed at any of them, for the tests of loaders."""

import random

import numpy as np
import torch
from quiet import QUIET

from espnet3_lite import Callback, Trainer


def quiet(**settings):
    """A trainer for the CPU that writes and prints nothing."""
    silent = {**QUIET, "num_sanity_val_steps": 0}
    return Trainer(**{**silent, **settings})


class Save(Callback):
    """Saves after each batch: ``<folder>/<epoch>-<batch index>.ckpt``."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")


def seed(number):
    """All three generators of this process."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def fit(make_module, make_loader, folder=None, path=None, val=None, **settings):
    """Train from the beginning, saving after each batch into `folder`; or on from `path`. Returns the module."""
    module = make_module()
    seed(7 if path is None else 99)  # the checkpoint's random state counts, not this
    callbacks = [Save(folder)] if folder is not None else []
    quiet(**{"max_epochs": 2, "callbacks": callbacks, **settings}).fit(
        module, make_loader(), None if val is None else val(), ckpt_path=path
    )
    return module


def check_resumed(make_module, make_loader, folder, points, **settings):
    """A run that is resumed at each of `points`, (epoch, batch index), sees and learns what a whole one does.

    Args:
        make_module: Its `seen` begins with ``(epoch, batch index)`` for each training batch.
        make_loader: The training loader.
        folder: For checkpoints.
        points: Batches after which to go on.
        settings: The trainer's, and `val`.

    Returns:
        The whole run's module.
    """
    whole = fit(make_module, make_loader, folder, **settings)
    by_place = {tuple(place[:2]): index for index, place in enumerate(whole.seen)}
    for point in points:
        rest = fit(make_module, make_loader, path=folder / f"{point[0]}-{point[1]}.ckpt", **settings)
        assert rest.seen == whole.seen[by_place[point] + 1 :], point
        for name, value in whole.state_dict().items():
            assert torch.equal(rest.state_dict()[name], value), (point, name)
    return whole
