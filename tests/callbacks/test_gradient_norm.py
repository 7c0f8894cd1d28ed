"""`GradientNorm`: the norm before clipping, of what is stepped; a step that is left out logs none."""

import math

import pytest
import torch
from quiet import QUIET

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import GradientNorm
from espnet3_lite.exceptions import MisconfigurationException


class Known(LiteModule):
    """Its gradient is the batch's mean, twice: of norm ``sqrt(2) * mean``."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return (self.weights * batch.mean()).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        value = self.trainer.callback_metrics.get("grad_norm")
        self.seen.append(None if value is None else float(value))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(values, **settings):
    module = Known()
    trainer = Trainer(max_epochs=1, **QUIET, **settings)
    trainer.fit(module, [torch.full((2,), value) for value in values])
    return module, trainer


def test_it_is_the_norm_before_clipping():
    module, _ = fit([3.0, 4.0], log_grad_norm=True, gradient_clip_val=1.0)
    assert module.seen == pytest.approx([3 * math.sqrt(2), 4 * math.sqrt(2)])
    assert module.weights.norm().item() == pytest.approx(2.0)  # two clipped steps of length 1


def test_of_a_window_it_is_the_sum_that_is_stepped():
    module, _ = fit([1.0, 3.0], log_grad_norm=True, accumulate_grad_batches=2)
    assert module.seen == [None, pytest.approx(2 * math.sqrt(2))]


def test_a_step_that_is_left_out_logs_none():
    module, trainer = fit([1.0, math.inf, 2.0], log_grad_norm=True, check_grad_finite=True)
    assert all(value is None or math.isfinite(value) for value in module.seen)
    assert module.seen[-1] == pytest.approx(2 * math.sqrt(2))


def test_it_is_off_by_default_and_there_once():
    assert not any(isinstance(c, GradientNorm) for c in fit([1.0])[1].callbacks)
    _, trainer = fit([1.0], log_grad_norm=True, callbacks=[GradientNorm()])
    assert sum(isinstance(c, GradientNorm) for c in trainer.callbacks) == 1
    with pytest.raises(MisconfigurationException, match="log_grad_norm"):
        Trainer(log_grad_norm="yes")
