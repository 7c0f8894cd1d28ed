"""Several named optimizers: whose gradients a loss reaches, what fails, and what is said where nothing is trained."""

import math

import pytest
import torch
from quiet import QUIET
from torch.utils.checkpoint import checkpoint
from two_optimizers_lab import BLOCK, DISCRIMINATOR, GENERATOR, TWO, Returns

from espnet3_lite import ESPnetModule, ESPnetTrainer, MisconfigurationException, OptimizationStep

X = torch.tensor([[2.0], [1.0]])


class Gan(torch.nn.Module):
    """Weights of one number each; `in_forward` may change the model in batch `calls`, counted from 1."""

    def __init__(self, in_forward=None, order=(GENERATOR, DISCRIMINATOR)):
        super().__init__()
        self.generator, self.discriminator = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        for parameter, value in zip(self.parameters(), (0.5, 0.25, -0.5, 0.125), strict=True):
            torch.nn.init.constant_(parameter, value)
        self.in_forward, self.order, self.calls = in_forward, order, 0

    def forward(self, x):
        self.calls += 1
        fake = self.generator(x)
        losses = {
            GENERATOR: -self.discriminator(fake).mean(),
            DISCRIMINATOR: self.discriminator(fake.detach()).square().mean(),
        }
        if self.in_forward is not None:
            self.in_forward(self)
        return [OptimizationStep(losses[name], name) for name in self.order], {}, None


def fit(model, tmp_path, config=TWO, batches=1, **settings):
    quiet = {"max_epochs": 1, **QUIET}
    trainer = ESPnetTrainer(ESPnetModule(model, config), tmp_path, {**quiet, "accelerator": "cpu", **settings})
    trainer.fit([(["a", "b"], {"x": X})] * batches)
    return trainer.trainer


def numbers(model):
    return [float(parameter) for parameter in model.parameters()]


# ---- what a loss reaches -------------------------------------------------------------------------------------------


def test_a_loss_under_another_optimizers_name_is_an_error(tmp_path):
    model = Returns(lambda g, d: [OptimizationStep(g, DISCRIMINATOR), OptimizationStep(d, GENERATOR)])
    with pytest.raises(MisconfigurationException, match="the loss of 'discriminator' reaches none of this optimizer's"):
        fit(model, tmp_path)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(tmp_path, reentrant):
    """The reentrant kind hides the parameters from a backward pass that names them."""

    class Checkpointed(Gan):
        def forward(self, x):
            (g, d), stats, weight = super().forward(x)
            loss = -self.discriminator(checkpoint(self.generator, x.requires_grad_(), use_reentrant=reentrant)).mean()
            return [OptimizationStep(loss, GENERATOR), d], stats, weight

    plain, model = Gan(), Checkpointed()
    if reentrant:
        with pytest.raises((MisconfigurationException, RuntimeError), match="use_reentrant"):
            fit(model, tmp_path)
        return
    fit(plain, tmp_path)
    fit(model, tmp_path)
    assert numbers(model) == numbers(plain)


def test_a_parameter_frozen_in_the_run_stays_and_the_others_train_on(tmp_path):
    def freeze(model):
        if model.calls == 2:
            model.generator.bias.requires_grad_(False)  # after the forward pass of this batch: it still steps

    model = Gan(freeze)
    fit(model, tmp_path, batches=2)
    two = numbers(model)
    model = Gan(freeze)
    fit(model, tmp_path, batches=4)
    assert numbers(model)[1] == two[1] and not model.generator.bias.requires_grad
    assert all(now != before for now, before in zip(numbers(model)[2:], two[2:], strict=True))
    assert numbers(model)[0] != two[0]


def test_a_discriminator_left_frozen_after_the_generators_forward_is_trained(tmp_path):
    """Its own graph was made before; so ESPnet3's users write it."""
    plain, left = Gan(), Gan(lambda model: model.discriminator.requires_grad_(False))
    fit(plain, tmp_path)
    fit(left, tmp_path)
    assert numbers(left) == numbers(plain)


# ---- gradients that are not finite ---------------------------------------------------------------------------------


class Spoilt(torch.autograd.Function):
    """The loss as it is, its gradient NaN."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class SpoiltGan(Gan):
    """From batch `since` on the gradients of `names` are NaN."""

    def __init__(self, since, names, order=(GENERATOR, DISCRIMINATOR)):
        super().__init__(order=order)
        self.since, self.names = since, names

    def forward(self, x):
        steps, stats, weight = super().forward(x)
        bad = self.names if self.calls >= self.since else ()
        return [OptimizationStep(Spoilt.apply(s.loss), s.name) if s.name in bad else s for s in steps], stats, weight


@pytest.mark.parametrize("order", [(GENERATOR, DISCRIMINATOR), (DISCRIMINATOR, GENERATOR)])
def test_one_optimizers_failure_takes_back_its_own_update_alone(tmp_path, order):
    model = SpoiltGan(2, [GENERATOR], order)
    with pytest.warns(UserWarning, match="batch 2: the gradient norm of 'generator' is nan; this step is skipped"):
        trainer = fit(model, tmp_path, batches=4, check_grad_finite=True)
    logged = trainer.callback_metrics
    assert {name: slot.update_step for name, slot in trainer.plan.slots.items()} == {GENERATOR: 1, DISCRIMINATOR: 4}
    assert (logged["train/generator/update_step"], logged["train/discriminator/update_step"]) == (1.0, 4.0)
    assert (trainer.global_step, trainer.fit_loop.consecutive_skips) == (4, 0)


def test_a_batch_in_which_all_fail_counts_once(tmp_path):
    model = SpoiltGan(1, [GENERATOR, DISCRIMINATOR])
    with pytest.warns(UserWarning, match="norm of 'generator' is nan and the gradient norm of 'discriminator' is nan"):
        with pytest.raises(RuntimeError, match="all 100 batches were skipped"):  # not 200: one for both optimizers
            fit(model, tmp_path, batches=100, check_grad_finite=True)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"101 batches in a row .* batch 100"):
        fit(SpoiltGan(1, [GENERATOR, DISCRIMINATOR]), tmp_path, batches=110, check_grad_finite=True)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_with_clipping_a_bad_gradient_is_not_stepped(tmp_path, algorithm):
    clipped = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    config = {"optimizers": {name: {**block, **clipped} for name, block in TWO["optimizers"].items()}}
    model = SpoiltGan(1, [GENERATOR])
    with pytest.warns(UserWarning, match="norm of 'generator' is nan"):
        trainer = fit(model, tmp_path, config)
    assert numbers(model)[:2] == [0.5, 0.25] and trainer.plan.slots[DISCRIMINATOR].update_step == 1


# ---- misuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda g: None, "got None"),
        (lambda g: 1.5, "got 1.5"),
        (lambda g: g.detach(), r"got a tensor of shape \(\) and torch.float32 without a graph \(detached"),
        (lambda g: g.expand(2), r"got a tensor of shape \(2,\)"),
    ],
)
def test_a_loss_that_cannot_be_trained_names_its_optimizer(tmp_path, loss, said):
    model = Returns(lambda g, d: [OptimizationStep(d, DISCRIMINATOR), OptimizationStep(loss(g), GENERATOR)])
    with pytest.raises((MisconfigurationException, ValueError), match=rf"generator.*({said}|single element)"):
        fit(model, tmp_path)


def test_a_parameter_with_two_names_belongs_to_one_optimizer(tmp_path):
    model = Gan()
    model.discriminator.weight = model.generator.weight
    message = "selects 'model.discriminator.weight', and so does optimizers.generator.params 'generator' under its"
    with pytest.raises(MisconfigurationException, match=message) as caught:
        fit(model, tmp_path)
    assert "1 error" in str(caught.value)


def test_a_shared_parameter_goes_to_the_optimizer_that_selects_one_of_its_names(tmp_path):
    model = Gan()
    generator = model.generator
    del model.generator
    model.tied = torch.nn.ParameterList([generator.weight])  # its first name, which nobody selects
    model.generator = generator
    assert fit(model, tmp_path).plan.slots[GENERATOR].parameters[0] is generator.weight


def test_what_named_optimizers_cannot_do_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches=4: with several optimizers set"):
        fit(Gan(), tmp_path, accumulate_grad_batches=4)
    lbfgs = {"optimizer": {"_target_": "torch.optim.LBFGS"}, "params": GENERATOR}
    config = {"optimizers": {GENERATOR: lbfgs, DISCRIMINATOR: {**BLOCK, "params": DISCRIMINATOR}}}
    with pytest.raises(MisconfigurationException, match="LBFGS among the other optimizers, as optimizers.gen"):
        fit(Gan(), tmp_path, config)
