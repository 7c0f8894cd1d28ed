"""LBFGS and a module's own `optimizer_step`, with windows of several batches and with skipped ones."""

import math

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, MisconfigurationException

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
    trainer = quiet_trainer(max_epochs=1, **settings)
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
    with pytest.warns(UserWarning, match="batch 1: LBFGS takes no step for the window"):
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
    with pytest.raises(MisconfigurationException, match="LBFGS with precision='16-mixed' evaluates its"):
        fit(Line(lbfgs), precision="16-mixed")


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is mostly written: it looks at a neighbouring point before it steps."""

    def __init__(self, parameters, lr=0.1, rho=0.05, clear=True):
        super().__init__(parameters, {"lr": lr, "rho": rho})
        self.clear = clear

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM requires closure"
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        before = [p.clone() for p in parameters]
        for p in parameters:
            p.add_(p.grad * (self.defaults["rho"] / norm))
        if self.clear:
            self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old).sub_(p.grad, alpha=self.defaults["lr"])
        return loss


class Demanding(torch.optim.SGD):
    """Its closure has no default."""

    def step(self, closure):
        return super().step(closure)


class Ignoring(torch.optim.Optimizer):
    """It may be given a closure, and never calls it."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)


class Knowing(Ignoring):
    """It knows no closure."""

    def step(self):
        super().step()


class Wraps(Ignoring):
    """It has an optimizer of its own, as Lookahead and what accelerate prepares."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.optimizer = torch.optim.SGD(self.param_groups[0]["params"], lr=0.1)

    def step(self, closure=None):
        self.optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("clear", [True, False])
def test_an_optimizer_that_looks_around_evaluates_the_loss_there(clear, clip):
    module, hand = Line(lambda parameters: SAM(parameters, clear=clear)), Line(SAM)
    trainer = fit(module, gradient_clip_val=clip)
    optimizer = hand.configure_optimizers()

    def backward(row):
        optimizer.zero_grad()
        loss = hand.loss(row)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(hand.parameters(), clip)
        return loss

    for row in X.split(1):
        backward(row)
        optimizer.step(lambda row=row: backward(row))
    assert trainer.global_step == 4
    assert values(module) == pytest.approx(values(hand), abs=1e-12)


@pytest.mark.parametrize("kind", [Demanding, Ignoring, Knowing, Wraps])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_other_optimizers_of_ones_own_step_once(kind, accumulate):
    def make(parameters):
        return kind(parameters, lr=0.1) if kind is Demanding else kind(parameters)

    counted = []

    class Counts(Line):
        def training_step(self, batch, batch_idx):
            counted.append(batch_idx)
            return super().training_step(batch, batch_idx)

    module, plain = Counts(make), Line(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for line in (module, plain):
        trainer = fit(line, gradient_clip_val=0.5, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 4 // accumulate
    assert counted == [0, 1, 2, 3]
    assert values(module) == pytest.approx(values(plain), abs=1e-12)


def test_looking_around_goes_with_windows_of_one_batch_alone():
    with pytest.raises(MisconfigurationException, match="SAM evaluates the loss several.*accumulate_grad_batches=1"):
        fit(Line(SAM), accumulate_grad_batches=2)


def test_what_demands_a_closure_cannot_be_scaled():
    with pytest.raises(MisconfigurationException, match="Demanding with precision='16-mixed' evaluate"):
        fit(Line(lambda parameters: Demanding(parameters, lr=0.1)), precision="16-mixed")


@pytest.mark.parametrize("steps", [True, False])
def test_an_own_optimizer_step_that_never_calls_its_closure_is_an_error(steps):
    class Own(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if steps:
                optimizer.step()

    with pytest.raises(MisconfigurationException, match="Own.optimizer_step has not called its closure"):
        fit(Own(lambda parameters: torch.optim.SGD(parameters, lr=0.1)))


def test_an_own_optimizer_step_may_call_its_closure_and_not_step():
    class Own(Line):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure) if batch_idx % 2 else optimizer_closure()

    module, hand = Own(lambda parameters: torch.optim.SGD(parameters, lr=0.1)), Line(None)
    fit(module)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for row in (X[1:2], X[3:]):
        optimizer.zero_grad()
        hand.loss(row).backward()
        optimizer.step()
    assert values(module) == pytest.approx(values(hand), abs=1e-12)


def test_a_later_evaluation_without_a_loss_is_told():
    class Forgetful(Line):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            return self.loss(batch) if self.calls == 1 else None

    with pytest.raises(MisconfigurationException, match="LBFGS evaluates the loss .* returned None .* of batch 0"):
        fit(Forgetful(lbfgs))
