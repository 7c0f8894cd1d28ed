"""The same run with `Trainer`: the same numbers, to the last bit.

python examples/tour/02_with_trainer.py
"""

import torch

from espnet3_lite import LiteModule, Trainer


class Line(LiteModule):
    """What one step computes, and what trains it. The loop is the trainer's."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

    def on_train_epoch_end(self):
        val_loss, rate = self.trainer.callback_metrics["val_loss"], self.lr_schedulers().get_last_lr()[0]
        print(f"epoch {self.current_epoch}: val_loss {val_loss:.6f}, lr {rate}")


torch.manual_seed(0)
x = torch.randn(64, 2, dtype=torch.float64)
y = x.sum(dim=1, keepdim=True)
batches = [(x[start : start + 8], y[start : start + 8]) for start in range(0, 64, 8)]

trainer = Trainer(
    max_epochs=3,
    gradient_clip_val=1.0,
    accelerator="cpu",
    num_sanity_val_steps=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Line(), batches, [(x, y)])
print("global_step", trainer.global_step)
