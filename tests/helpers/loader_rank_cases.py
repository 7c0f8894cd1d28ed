"""What the ranks do in `tests/distributed/test_loaders_on_ranks.py`: each function is a case.

`rank_launch` runs them on two ranks.
"""

import os
import warnings

import torch
from loader_lab import quiet, seed
from rank_lab import write_results
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from espnet3_lite import Callback, LiteModule
from espnet3_lite.loaders.samplers import EpochSampler


def rank_and_size():
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Noisy(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.cat([torch.tensor([float(index)]), torch.rand(1)])


class Model(LiteModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.seen, self.validated = torch.nn.Linear(2, 1), [], []

    def training_step(self, batch, batch_idx):
        if not self.trainer.train_data.replaying:
            self.seen += [[self.current_epoch, *row] for row in batch.tolist()]
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated += batch.tolist()
        self.log("value", batch[:, 0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Save(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 0):
            trainer.save_checkpoint(os.path.join(FOLDER, f"{CASE}.ckpt"))


def augmented(data=None, path=None, **settings):
    """Samples with noise, loaded by workers; saved within the second epoch."""
    world_size = rank_and_size()[1]
    data = Noisy() if data is None else data
    loader = DataLoader(data, 4 // world_size, sampler=EpochSampler(data), num_workers=1)
    trainer, module = quiet(max_epochs=2, callbacks=[Save()]), Model()
    seed(3)
    val = {"one": DataLoader(data, 3, num_workers=1), "two": DataLoader(data, 3, num_workers=1)}
    trainer.fit(module, loader, val, ckpt_path=path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"seen": module.seen, "validated": module.validated, "metrics": metrics}


def augmented_corpora():
    """Two corpora; then the same goes on from within the second epoch."""
    data = ConcatDataset([Noisy(), Noisy()])
    whole = augmented(data)
    return {"whole": whole, "rest": augmented(data, os.path.join(FOLDER, f"{CASE}.ckpt"))}


class Stream(IterableDataset):
    """Batches of noise; on the second rank one less."""

    def __iter__(self):
        return iter([torch.rand(1, 2) for _ in range(4 - rank_and_size()[0])])


def noisy_stream():
    """Each rank's workers draw the same numbers in a resumed run as in a whole one, though the ranks differ."""
    results = []
    for path in (None, os.path.join(FOLDER, f"{CASE}.ckpt")):
        trainer, module = quiet(max_epochs=2, callbacks=[Save()] if path is None else []), Model()
        seed(10 + rank_and_size()[0])
        loader = DataLoader(Stream(), batch_size=None, num_workers=1, persistent_workers=True)
        trainer.fit(module, loader, ckpt_path=path)
        results.append(module.seen)
    return results


class InPlace(Sampler):
    """Shuffles a list of its own, by a generator of its own, which differ from rank to rank."""

    def __init__(self):
        self.order, self.generator = list(range(12)), torch.Generator().manual_seed(5 + rank_and_size()[0])

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        self.order[:] = [self.order[i] for i in torch.randperm(12, generator=self.generator)]
        return iter(self.order)


def orders_of_their_own():
    """What each rank deals out to itself goes on in its own order; as a whole run, then from the second epoch."""
    results, data = [], torch.ones(12, 2) * torch.arange(12)[:, None]
    for path in (None, os.path.join(FOLDER, f"{CASE}.ckpt")):
        trainer, module = quiet(max_epochs=2, use_distributed_sampler=False, callbacks=[Save()]), Model()
        trainer.fit(module, DataLoader(data, 4, sampler=InPlace()), ckpt_path=path)
        results.append([int(row[1]) for row in module.seen])
    return results


def used_up_on_one_rank():
    """The second rank's loader gives nothing in the second epoch."""

    def batches():
        yield from torch.ones(3, 1, 2)

    loader = list(torch.ones(3, 1, 2)) if rank_and_size()[0] == 0 else batches()
    try:
        quiet(max_epochs=2, use_distributed_sampler=False).fit(Model(), Own(loader))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Own:
    """An iterable of each rank's own."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def shorter_than_it_says():
    """Streams of 3 and 4 batches that say 9."""

    class Sized(IterableDataset):
        def __len__(self):
            return 9

        def __iter__(self):
            return iter(torch.ones(3 + rank_and_size()[0], 2))

    class Ends(Callback):
        epochs = validations = 0

        def on_validation_end(self, trainer, pl_module):
            Ends.validations += 1

        def on_train_epoch_end(self, trainer, pl_module):
            Ends.epochs += 1

    trainer, module = quiet(max_epochs=2, accumulate_grad_batches=3, callbacks=[Ends()]), Model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(Sized(), 1), list(torch.ones(2, 1, 2)))
    said = [str(each.message) for each in caught if "its length says" in str(each.message)]
    return {"steps": trainer.global_step, "ends": [Ends.epochs, Ends.validations], "said": said}


FOLDER = CASE = "."


def main(folder, *names):
    global FOLDER, CASE
    results = {}
    FOLDER = folder
    for CASE in names:
        results[CASE] = globals()[CASE]()
    write_results(folder, results)
