"""ESPnet3's recorded runs (`golden/espnet3`): their scenarios, a recorder of the same notes, and comparisons."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import Callback, ESPnetModule, ESPnetTrainer, OptimizationStep

FOLDER = Path(__file__).parents[1] / "golden" / "espnet3"
spec = importlib.util.spec_from_file_location("scenarios", FOLDER / "scenarios.py")
scenarios = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scenarios)


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


class Recorder(Callback):
    """Notes what the golden files hold: parameters and rates after each batch, values after batches and epochs."""

    def __init__(self):
        self.batches, self.validations, self.epochs, self.lr_at_start = [], [], [], []

    def rates(self, trainer):
        return [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def values(self, trainer):
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lr_at_start.append(self.rates(trainer))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        parameters = torch.cat([p.detach().flatten() for p in pl_module.model.parameters()])
        self.batches.append(
            {
                "epoch": trainer.current_epoch, "batch_idx": batch_idx, "global_step": trainer.global_step,
                "metrics": self.values(trainer), "param_sum_l2": [float(parameters.sum()), float(parameters.norm())],
                "lr_start": self.lr_at_start[-1], "lr_end": self.rates(trainer),
                "updates": {slot.name: [slot.pending, slot.update_step] for slot in trainer.plan.slots.values()},
            }
        )  # fmt: skip

    def on_validation_end(self, trainer, pl_module):
        self.validations.append({"sanity": trainer.sanity_checking, "metrics": self.values(trainer)})

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({"metrics": self.values(trainer), "global_step": trainer.global_step})


def loaders(name):
    size = scenarios.DATA[name]["batch_size"]
    return [
        DataLoader(scenarios.build_dataset(name, split), batch_size=size, collate_fn=scenarios.collate)
        for split in ("train", "valid")
    ]


def make_trainer(name, exp_dir, **changes):
    """An ESPnetTrainer of one scenario, and its recorder."""
    config = scenarios.CONFIGS[name]
    module = ESPnetModule(scenarios.build_model(name, OptimizationStep), config)
    settings = {**config["trainer"], "logger": False, "enable_progress_bar": False, **changes}
    trainer = ESPnetTrainer(module, exp_dir, settings, config.get("best_model_criterion"))
    recorder = Recorder()
    trainer.trainer.callback_handler.add_callback(recorder)
    return trainer, recorder


def run(name, exp_dir, **changes):
    trainer, recorder = make_trainer(name, exp_dir, **changes)
    trainer.fit(*loaders(name))
    return trainer, recorder


def final_parameters(module):
    return {name: value.double().flatten() for name, value in module.state_dict().items()}


def assert_same_parameters(module, expected, tolerance=1e-12):
    found = final_parameters(module)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], torch.tensor(value["values"], dtype=torch.float64), rtol=0, atol=tolerance, msg=name
        )


def assert_same_metrics(found, expected, leave_out=()):
    """The same names, and values to 1e-6 (both sides keep them in float32)."""
    names = {name for name in expected if not name.startswith(("lr-", *leave_out))}
    assert {name for name in found if not name.startswith(("lr-", *leave_out))} == names
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name


def best_files(trainer):
    return {
        callback.monitor: {Path(path).name: float(score) for path, score in callback.best_k_models.items()}
        for callback in trainer.trainer.checkpoint_callbacks
        if callback.monitor
    }
