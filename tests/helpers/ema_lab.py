"""One run with an `EMACallback`, for ESPnet3 under Lightning and for us: 20 epochs of 10 steps in float64."""

import torch

ARGUMENTS = {"decay": 0.95, "update_after_step": 20, "update_every": 3, "inv_gamma": 2.0, "power": 0.75}
SEEN_AT = (1, 3, 5, 10, 15, 20)
EPOCHS = 20


class Net(torch.nn.Module):
    """Parameters, averaged buffers and a counter."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.inner, self.norm, self.outer = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        self.double()

    def forward(self, x):
        return self.outer(torch.tanh(self.norm(self.inner(x))))


def make_module(base):
    class Module(base):
        def __init__(self):
            super().__init__()
            self.model = Net()
            self.validated = []

        def training_step(self, batch, batch_idx):
            x, y = batch
            return (self.model(x) - y).square().mean()

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.validated.append((self.model(x) - y).square().mean().item())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return Module()


def loader(batch_size=4):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch_size)


def average_in(checkpoint):
    """The average's floating values in a checkpoint, as lists."""
    state = checkpoint["ema_model_state_dict"]
    return {key: value.tolist() for key, value in state.items() if value.is_floating_point()}


def run(library, folder, epochs=EPOCHS, ckpt_path=None):
    """Train; what was seen: the average at `SEEN_AT` epochs, each validation's loss, the weights at the end.

    Args:
        library: `Trainer`, `Module` (the base class), `Callback` and `EMACallback`, of the one or the other.
        folder: Where ``epoch{n}.ckpt`` are written.
    """
    seen = {}

    class Look(library.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            epoch = trainer.current_epoch + 1
            if epoch in SEEN_AT:
                checkpoint = {"state_dict": pl_module.state_dict()}
                ema.on_save_checkpoint(trainer, pl_module, checkpoint)
                seen[str(epoch)] = average_in(checkpoint)

    ema = library.EMACallback(**ARGUMENTS)
    module = make_module(library.Module)
    trainer = library.Trainer(
        max_epochs=epochs, callbacks=[ema, Look()], logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, check_val_every_n_epoch=5,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, loader(), loader(20), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"epoch{epochs}.ckpt")
    weights = {name: value.tolist() for name, value in module.model.state_dict().items() if value.is_floating_point()}
    return {"averages": seen, "validated": module.validated, "weights": weights}
