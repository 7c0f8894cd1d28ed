"""What accumulation and clipping do to the gradient, seen right before the step.

Accumulation over two batches gives the gradient of one batch twice as large. Clipping by norm shortens the gradient and
keeps its direction; it happens once a step, on the whole window's gradient.

    python examples/tour/06_accumulation_and_clipping.py
"""

import torch

from espnet3_lite import LiteModule, Trainer


class SeenOptimizer(torch.optim.SGD):
    """An SGD that shows the gradient with which it steps."""

    def step(self, closure=None):
        if closure is not None:
            closure()
        self.seen = [round(value, 6) for value in self.param_groups[0]["params"][0].grad.tolist()]
        return super().step()


class Line(LiteModule):
    """Two weights; the gradient of a batch is its mean."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return (batch @ self.weight).mean()

    def configure_optimizers(self):
        return SeenOptimizer(self.parameters(), lr=1.0)


def gradient_of(batches, **settings):
    """The gradient of the one step that these batches make."""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(Line(), batches)
    assert trainer.global_step == 1
    return trainer.optimizers[0].seen


samples = torch.tensor([[3.0, 0.0], [9.0, 0.0], [0.0, 4.0], [0.0, 12.0]], dtype=torch.float64)
print("one batch of four:       ", gradient_of([samples]))
print("two batches of two:      ", gradient_of([samples[:2], samples[2:]], accumulate_grad_batches=2))
print("clipped to a norm of 1:  ", gradient_of([samples], gradient_clip_val=1.0))  # the norm is 5
print("both:                    ",
      gradient_of([samples[:2], samples[2:]], accumulate_grad_batches=2, gradient_clip_val=1.0))  # fmt: skip
print("each value at most 3.5:  ", gradient_of([samples], gradient_clip_val=3.5, gradient_clip_algorithm="value"))
