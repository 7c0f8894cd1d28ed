"""What a trainer carries is moved; the model is not. (The meta device stands for a GPU.)"""

import torch
from line_model import Line
from quiet import QUIET, quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from espnet3_lite import Trainer
from espnet3_lite.callbacks import MoveModulesToDeviceCallback


class Module(Line):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def validation_step(self, batch, batch_idx):
        pass


class Distilling(Trainer):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.teacher = nn.Linear(1, 1)
        self.name = "no module"

    @property
    def device(self):
        return torch.device("meta")


def test_a_fit_and_an_evaluation_move_them():
    settings = {"max_epochs": 1, **QUIET, "callbacks": MoveModulesToDeviceCallback()}
    callback, module = MoveModulesToDeviceCallback(), Module()
    trainer = Distilling(**settings)
    trainer.lightning_module = module
    assert trainer.teacher.weight.device.type == "cpu"
    callback.on_training_run_start(trainer)
    assert (trainer.teacher.weight.device.type, module.layer.weight.device.type) == ("meta", "cpu")
    trainer.teacher = nn.Linear(1, 1)
    callback.on_evaluation_run_start(trainer)
    assert trainer.teacher.weight.device.type == "meta"


def test_the_events_reach_it():
    moved = []

    class Noting(MoveModulesToDeviceCallback):
        def _move(self, trainer):
            moved.append(trainer.state.fn.value)

    trainer = quiet_trainer(max_epochs=1, callbacks=Noting())
    loader = DataLoader(torch.ones(1, 1))
    trainer.fit(Module(), loader, loader)
    trainer.validate(Module(), loader, verbose=False)
    assert moved == ["fit", "validate"]
