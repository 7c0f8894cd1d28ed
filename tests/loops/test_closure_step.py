"""LBFGS and a module's own `optimizer_step`, with windows of several batches and with skipped ones."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, MisconfigurationException, Trainer

X = torch.tensor([[1.0, 0.5], [0.25, -1.0], [-0.5, 0.75], [1.5, 1.0]], dtype=torch.float64)


class Line(LiteModule):
    def __init__(self, optimizer, bad=()):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, dtype=torch.float64)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.constant_(self.layer.bias, -0.25)
        self.optimizer, self.bad = optimizer, bad

    def loss(self, row):
        return (self.layer(row) - row.sum()).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (math.nan if batch_idx in self.bad else 1.0)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def fit(module, **settings):
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(X, batch_size=1))
    return trainer


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def values(module):
    return [*module.layer.weight.flatten().tolist(), module.layer.bias.item()]


def test_lbfgs_with_windows_adds_each_evaluation_to_them_as_lightning_does():
    """A window's gradients are cleared at its first batch alone; each evaluation of its last batch adds to them."""
    module, hand = Line(lbfgs), Line(lbfgs)
    trainer = fit(module, accumulate_grad_batches=2)
    optimizer = hand.configure_optimizers()
    for first, last in (X[:2, None], X[2:, None]):

        def closure(last=last):
            loss = hand.loss(last) / 2
            loss.backward()
            return loss

        optimizer.zero_grad()
        (hand.loss(first) / 2).backward()
        optimizer.step(closure)
    assert trainer.global_step == 2
    assert values(module) == pytest.approx(values(hand), abs=1e-12)


def test_lbfgs_drops_a_window_that_a_skipped_batch_closes():
    module, hand = Line(lbfgs, bad=(1,)), Line(lbfgs)
    with pytest.warns(UserWarning, match="batch 1: LBFGS drops the window"):
        trainer = fit(module, accumulate_grad_batches=2)
    assert trainer.global_step == 1
    optimizer = hand.configure_optimizers()
    optimizer.zero_grad()
    (hand.loss(X[2:3]) / 2).backward()

    def closure():
        loss = hand.loss(X[3:4]) / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert values(module) == pytest.approx(values(hand), abs=1e-12)


def test_an_own_optimizer_step_is_asked_for_a_window_that_a_skipped_batch_closes():
    given = []

    class Own(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=lambda: given.append((batch_idx, optimizer_closure())))

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    module, hand = Own(sgd, bad=(1,)), Line(sgd)
    with pytest.warns(UserWarning, match="skipped on all workers"):
        assert fit(module, accumulate_grad_batches=2).global_step == 2
    assert [(index, loss is None) for index, loss in given] == [(1, True), (3, False)]
    optimizer = hand.configure_optimizers()
    for rows in (X[:1], X[2:]):
        optimizer.zero_grad()
        sum(hand.loss(row[None]) / 2 for row in rows).backward()
        optimizer.step()
    assert values(module) == pytest.approx(values(hand), abs=1e-12)


def test_lbfgs_cannot_be_scaled():
    with pytest.raises(MisconfigurationException, match="LBFGS with precision='16-mixed'.*not compatible"):
        fit(Line(lbfgs), precision="16-mixed")
