"""Optimizers whose weights in training are not those to use: who switches them, and what is validated and saved."""

import pytest
import torch
from quiet import quiet_trainer
from schedule_free import ScheduleFreeSGD
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import Callback, LiteModule
from espnet3_lite.callbacks import (
    EMACallback,
    EMAWeightAveraging,
    ModelCheckpoint,
    OptimizerModes,
    StochasticWeightAveraging,
)
from espnet3_lite.exceptions import MisconfigurationException


class Line(LiteModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1).double()
        self.validated = []

    def loss(self, batch):
        return (self.layer(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.layer.weight.detach().clone())
        self.log("valid", self.loss(batch))

    def configure_optimizers(self):
        return ScheduleFreeSGD(self.parameters())


def data():
    samples = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(samples), batch_size=3)


def by_hand(epochs):
    """x after each epoch."""
    module, means = Line(), []
    optimizer = ScheduleFreeSGD(module.parameters())
    for _ in range(epochs):
        optimizer.train()
        for batch in data():
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
        optimizer.eval()
        means.append(module.layer.weight.detach().clone())
    return means


def fit(*callbacks, ckpt_path=None, saves=False):
    module = Line()
    trainer = quiet_trainer(callbacks=list(callbacks), num_sanity_val_steps=1, max_epochs=3, enable_checkpointing=saves)
    trainer.fit(module, data(), data(), ckpt_path=ckpt_path)
    return trainer, module


def test_what_is_validated_saved_and_left_is_the_mean(tmp_path):
    means = by_hand(3)
    full = ModelCheckpoint(tmp_path / "full", "{epoch}", save_top_k=-1)
    alone = ModelCheckpoint(tmp_path / "alone", "{epoch}", save_top_k=-1, save_weights_only=True)
    _, module = fit(OptimizerModes(), full, saves=True)
    assert all(torch.equal(one, other) for one, other in zip(module.validated[1::4], means, strict=True))
    assert torch.equal(module.layer.weight, means[-1])
    fit(OptimizerModes(), alone, saves=True)
    for epoch, mean in enumerate(means):
        for folder in ("full", "alone"):
            saved = torch.load(tmp_path / folder / f"epoch={epoch}.ckpt", weights_only=True)
            torch.testing.assert_close(saved["state_dict"]["layer.weight"], mean, rtol=1e-14, atol=1e-14)
            assert ("weights_in_training" in saved) is (folder == "full")


@pytest.mark.parametrize("batches", [2, 4, 6])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, batches):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    _, whole = fit(OptimizerModes(), Save())
    _, resumed = fit(OptimizerModes(), ckpt_path=tmp_path / f"{batches}.ckpt")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert torch.equal(resumed.validated[-1], whole.validated[-1])
    trainer = quiet_trainer(callbacks=[OptimizerModes()])
    trainer.validate(tested := Line(), data(), ckpt_path=tmp_path / f"{batches}.ckpt", verbose=False)
    saved = torch.load(tmp_path / f"{batches}.ckpt", weights_only=True)
    assert torch.equal(tested.validated[0], saved["state_dict"]["layer.weight"])


@pytest.mark.parametrize(
    "averaging", [EMACallback(), EMAWeightAveraging(), StochasticWeightAveraging(0.1)], ids=lambda c: type(c).__name__
)
def test_a_second_average_is_refused(averaging):
    """Each would exchange the other's weights: the module ended with neither average."""
    for callbacks in ([OptimizerModes(), averaging], [averaging, OptimizerModes()]):
        told = f"{type(averaging).__name__} with OptimizerModes: the eval\\(\\) of ScheduleFreeSGD gives an average"
        with pytest.raises(MisconfigurationException, match=told):
            fit(*callbacks)


def test_a_second_average_is_taken_where_there_is_no_first():
    class Plain(Line):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Plain()
    quiet_trainer(callbacks=[OptimizerModes(), EMAWeightAveraging(decay=0.5)], max_epochs=1).fit(module, data(), data())
    assert torch.equal(module.layer.weight, module.validated[-1])


def test_one_that_nobody_switches_is_told_of():
    with pytest.warns(UserWarning, match=r"ScheduleFreeSGD has train\(\) and eval\(\).*OptimizerModes\(\)"):
        with pytest.raises(AssertionError, match="not in train mode"):
            fit()
