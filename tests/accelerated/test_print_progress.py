"""The lines of a run."""

import torch
from line_model import Line
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite.callbacks import PrintProgressCallback


def test_lines(capsys):
    trainer = quiet_trainer(max_epochs=2, callbacks=PrintProgressCallback())
    loader = DataLoader(torch.ones(1, 1))
    trainer.fit(Line(), loader, loader)
    assert capsys.readouterr().out == (
        "\nStarting training run\n\nStarting epoch 1\n\nStarting epoch 2\nFinishing training run\n"
    )
    trainer.validate(Line(), loader, verbose=False)
    assert capsys.readouterr().out == "\nStarting evaluation run\nFinishing evaluation run\n"
