"""Two named optimizers, each with its own losses, window and counter: the skeleton of a GAN.

The discriminator accumulates two batches a step; the generator steps at every batch. A backward pass for one leaves no
gradient on the other.

    python examples/tour/07_two_optimizers.py
"""

import tempfile

import torch

from espnet3_lite import ESPnetModule, ESPnetTrainer, OptimizationStep


class Gan(torch.nn.Module):
    """ESPnet3's contract with several optimizers: a list of losses with names, statistics, a weight."""

    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Linear(2, 2)
        self.discriminator = torch.nn.Linear(2, 1)

    def forward(self, real):
        fake = self.generator(torch.randn_like(real))
        d_loss = self.discriminator(fake.detach()).mean() - self.discriminator(real).mean()
        g_loss = -self.discriminator(fake).mean()  # reaches the discriminator too; its gradient is not computed
        steps = [OptimizationStep(d_loss, "discriminator"), OptimizationStep(g_loss, "generator")]
        return steps, {"gap": d_loss.detach()}, torch.tensor(len(real))


sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
config = {
    "optimizers": {
        "generator": {"optimizer": sgd, "params": "generator"},
        "discriminator": {"optimizer": sgd, "params": "discriminator", "accum_grad_steps": 2},
    }
}
batches = [(["utterance"], {"real": torch.ones(4, 2)}) for _ in range(8)]
settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
with tempfile.TemporaryDirectory() as folder:
    gan = ESPnetTrainer(ESPnetModule(Gan(), config), exp_dir=folder, config=settings)
    gan.fit(batches)

metrics = gan.trainer.callback_metrics
print("batches in which an optimizer stepped:", gan.trainer.global_step)
print("updates of the generator:", int(metrics["train/generator/update_step"]))
print("updates of the discriminator:", int(metrics["train/discriminator/update_step"]))
