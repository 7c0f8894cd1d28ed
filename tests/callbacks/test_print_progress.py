"""The lines of a run."""

import torch
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import PrintProgressCallback


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lines(capsys):
    trainer = Trainer(
        max_epochs=2, callbacks=PrintProgressCallback(), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(torch.ones(1, 1))
    trainer.fit(Module(), loader, loader)
    assert capsys.readouterr().out == (
        "\nStarting training run\n\nStarting epoch 1\n\nStarting epoch 2\nFinishing training run\n"
    )
    trainer.validate(Module(), loader, verbose=False)
    assert capsys.readouterr().out == "\nStarting evaluation run\nFinishing evaluation run\n"
