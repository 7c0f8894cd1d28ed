"""`BasePredictionWriter`: what it is handed, and when."""

import pytest
import torch
from quiet import QUIET

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import BasePredictionWriter
from espnet3_lite.exceptions import MisconfigurationException


class Doubling(LiteModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return 2 * batch


class Writer(BasePredictionWriter):
    def __init__(self, interval="batch"):
        super().__init__(interval)
        self.batches, self.epochs = [], []

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.batches.append((prediction.tolist(), batch_indices, batch.tolist(), batch_idx, dataloader_idx))

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.epochs.append((predictions, batch_indices))


def loader(*values, **arguments):
    return torch.utils.data.DataLoader(torch.tensor(values), batch_size=2, **arguments)


def predict(writer, loaders):
    return Trainer(callbacks=[writer], **QUIET).predict(Doubling(), loaders, return_predictions=False)


def test_each_batch_is_written_with_its_samples():
    writer = Writer()
    assert predict(writer, loader(1, 2, 3)) is None
    assert writer.batches == [([2, 4], [0, 1], [1, 2], 0, 0), ([6], [2], [3], 1, 0)] and writer.epochs == []


def test_where_the_order_is_another_the_samples_are_not_known():
    writer = Writer()
    predict(writer, loader(1, 2, 3, sampler=torch.utils.data.SubsetRandomSampler([2, 0])))
    assert [indices for _, indices, *_ in writer.batches] == [None]


def test_all_predictions_at_the_end():
    writer = Writer("epoch")
    predict(writer, loader(1, 2, 3))
    ((predictions, indices),) = writer.epochs
    assert writer.batches == [] and [p.tolist() for p in predictions] == [[2, 4], [6]] and indices == [[[0, 1], [2]]]
    both = Writer("batch_and_epoch")
    predict(both, [loader(1), loader(2, 3)])
    ((predictions, indices),) = both.epochs
    assert [[p.tolist() for p in one] for one in predictions] == [[[2]], [[4, 6]]] and indices == [[[0]], [[0, 1]]]
    assert [batch[-2:] for batch in both.batches] == [(0, 0), (0, 1)]


def test_another_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="write_interval='bach'.*did you mean 'batch'"):
        Writer("bach")
