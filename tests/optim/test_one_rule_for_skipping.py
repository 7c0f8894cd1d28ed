"""Mixed precision by hand and otherwise: what is skipped is skipped everywhere and counted once; else nowhere."""

import math

import pytest
import torch
from weights_parts import trainer_of

from espnet3_lite import LiteModule, MisconfigurationException

BATCHES = [torch.ones(1)] * 8


class Bad(torch.autograd.Function):
    """A finite loss whose gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class ByHand(LiteModule):
    """Two parameters with an optimizer each; `play` is the training step."""

    def __init__(self, play):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        self.play, self.seen = play, []

    def training_step(self, batch, batch_idx):
        return self.play(self, batch_idx, *self.optimizers())

    def configure_optimizers(self):
        return [torch.optim.SGD([self.a], lr=0.125), torch.optim.SGD([self.b], lr=0.125)]


def run(play, batches=3, **settings):
    module = ByHand(play)
    trainer = trainer_of(max_epochs=1, precision="16-mixed", **settings)
    trainer.fit(module, BATCHES[:batches])
    return module, trainer


def test_an_overflow_of_one_optimizer_leaves_the_others_gradient_alone():
    def play(module, i, a, b):
        a.zero_grad(), b.zero_grad()
        module.manual_backward((module.a * (math.inf if i == 1 else 1.0)).sum())
        module.manual_backward((module.b * 3.0).sum())
        a.step(), b.step()
        module.seen.append((float(module.a.grad), float(module.b.grad)))

    module, trainer = run(play)
    assert module.seen == [(1.0, 3.0), (math.inf, 3.0), (1.0, 3.0)]
    assert (float(module.a), float(module.b)) == (1.0 - 2 * 0.125, 1.0 - 3 * 0.375)
    assert trainer.global_step == 5
    assert [slot.update_step for slot in trainer.plan.slots.values()] == [2, 3]
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**15


def test_one_optimizer_that_steps_twice_a_batch_beside_one_that_waits():
    def play(module, i, a, b):
        module.manual_backward((module.b * 3.0).sum())  # b gathers all three batches
        for k in range(2):
            a.zero_grad()
            module.manual_backward((module.a * (math.inf if (i, k) == (1, 0) else 1.0)).sum())
            a.step()
        if i == 2:
            b.step()
            module.seen.append(float(module.b.grad))

    module, trainer = run(play)
    assert module.seen == [9.0]
    assert float(module.a) == 1.0 - 5 * 0.125
    assert trainer.global_step == 6


def test_check_grad_finite_counts_by_hand_too():
    def play(module, i, a, b):
        a.zero_grad(), b.zero_grad()
        module.manual_backward((module.a * (math.inf if i == 1 else 1.0) + module.b).sum())
        a.step(), b.step()

    module = ByHand(play)
    trainer = trainer_of(max_epochs=1, check_grad_finite=True)
    with pytest.warns(UserWarning, match="epoch 0, batch 1: the gradient norm is inf; this step is skipped on all"):
        trainer.fit(module, BATCHES[:3])
    assert float(module.a) == 1.0 - 2 * 0.125 and float(module.b) == 1.0 - 3 * 0.125
    assert [slot.update_step for slot in trainer.plan.slots.values()] == [2, 3] and trainer.global_step == 5


@pytest.mark.parametrize("algorithm, expected", [("norm", 1.0), ("value", 1.0)])
def test_clipping_by_hand_clips_true_gradients(algorithm, expected):
    def play(module, i, a, b):
        a.zero_grad()
        module.manual_backward((module.a * 3.0).sum())
        module.clip_gradients(a, gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
        module.seen.append(float(module.a.grad))
        a.step()

    module, _ = run(play)
    assert module.seen == pytest.approx([expected] * 3, rel=1e-6)


def test_clipped_in_one_batch_and_stepped_in_another():
    def play(module, i, a, b):
        module.manual_backward((module.b * (math.inf if i == 0 else 1.0)).sum())
        b.step(), b.zero_grad()  # its overflow changes the scale at the batch's end
        if i == 0:
            module.manual_backward((module.a * 3.0).sum())
            module.clip_gradients(a, 1.0)
        else:
            a.step()
            module.seen.append(float(module.a.grad))
            a.zero_grad()

    module, _ = run(play, batches=2)
    assert module.seen == pytest.approx([1.0], rel=1e-6)


def test_an_optimizer_without_gradients_may_step():
    def play(module, i, a, b):
        a.step()

    module, trainer = run(play)
    assert trainer.global_step == 3 and float(module.a) == 1.0


@pytest.mark.parametrize("where", ["by hand", "automatic", "clipped", "value", "own step"])
def test_a_gradient_that_is_always_nan_ends_at_the_101st_batch(where):
    class Automatic(LiteModule):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch, batch_idx):
            return Bad.apply(self.a).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class OwnStep(Automatic):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    def play(module, i, a, b):
        a.zero_grad()
        module.manual_backward(Bad.apply(module.a).sum())
        a.step()

    module = {"by hand": lambda: ByHand(play), "own step": OwnStep}.get(where, Automatic)()
    settings = {
        "clipped": {"gradient_clip_val": 1.0}, "value": {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
    }.get(where, {})  # fmt: skip
    trainer = trainer_of(max_epochs=1, precision="16-mixed", **settings)
    with pytest.raises(RuntimeError, match=r"101 batches in a row were skipped \(epoch 0, batch 100\)"):
        trainer.fit(module, [torch.ones(1)] * 200)
    assert trainer.global_step == 0 and float(module.a) == 1.0


def test_gradients_that_fail_every_second_time_do_not_use_the_scale_up():
    def play(module, i, a, b):
        a.zero_grad()
        module.manual_backward((module.a * (math.inf if i % 2 else 1.0)).sum())
        a.step()

    module = ByHand(play)
    trainer = trainer_of(max_epochs=1, precision="16-mixed")
    trainer.fit(module, [torch.ones(1)] * 400)
    assert trainer.global_step == 200 and float(module.a) == 1.0 - 200 * 0.125
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**-24


class Large(LiteModule):
    """Its gradients are finite, the norm of them overflows in float32."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(4))
        self.moved = []

    def training_step(self, batch, batch_idx):
        return (self.a * (3e19 if batch_idx == 1 else 1.0) * batch).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.moved.append(float(self.a[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=2.0**-70, momentum=0.5)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("settings, steps", [
    ({}, 3), ({"check_grad_finite": True}, 3), ({"gradient_clip_val": 1e30, "gradient_clip_algorithm": "value"}, 3),
    ({"gradient_clip_val": 1.0}, 2),
])  # fmt: skip
def test_a_norm_that_overflows(precision, settings, steps):
    module = Large()
    trainer = trainer_of(max_epochs=1, precision=precision, **settings)
    if precision == "16-mixed":
        trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.fit(module, BATCHES[:3])
    assert trainer.global_step == steps
    still = module.moved[1] == module.moved[0]
    assert still == (steps == 2)


def test_a_hook_that_mends_a_gradient_is_heeded():
    class Mends(Large):
        def training_step(self, batch, batch_idx):
            return (self.a * math.inf).sum().nan_to_num() if batch_idx == 1 else self.a.sum()

        def on_before_optimizer_step(self, optimizer):
            self.a.grad = torch.nan_to_num(self.a.grad, nan=1.0, posinf=1.0)

    module = Mends()
    trainer = trainer_of(max_epochs=1, precision="16-mixed")
    trainer.fit(module, BATCHES[:3])
    assert trainer.global_step == 3 and trainer.plan.slots[None].update_step == 3


@pytest.mark.parametrize("given", [{"gradient_clip_val": 2.0}, {"gradient_clip_algorithm": "value"}])
def test_clipping_that_is_said_twice_and_differently_is_an_error(given):
    class Own(Large):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, **{"gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm", **given})

    with pytest.raises(MisconfigurationException, match=r"Trainer\(.*Own calls clip_gradients\(.*only one"):
        trainer_of(max_epochs=1, gradient_clip_val=1.0, gradient_clip_algorithm="norm").fit(Own(), BATCHES[:1])


def test_clipping_without_arguments_takes_the_trainers():
    class Own(Large):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer)
            self.norm = float(self.a.grad.norm())

    module = Own()
    trainer_of(max_epochs=1, gradient_clip_val=0.25).fit(module, BATCHES[:1])
    assert module.norm == pytest.approx(0.25, rel=1e-5)
