"""Cases of runs that are cut and resumed, and what is noted of them; the trainer's classes are arguments.

`make_espnet3_checkpoints.py` runs them with ESPnet3 and Lightning, ``test_lightning_checkpoints.py`` with
espnet3_lite, and `check_lightning_reads_ours.py` with both. Nothing here imports any of them.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader

HERE = Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("scenarios", HERE / "espnet3" / "scenarios.py")
scenarios = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenarios)

_SINGLE, _GAN = "f1_resume_single_steplr", "c6_gan_plain"
_WARMUP = {"_target_": "espnet2.schedulers.warmup_lr.WarmupLR", "warmup_steps": 5}
_LINEAR = {"_target_": "torch.optim.lr_scheduler.LinearLR", "start_factor": 1.0, "end_factor": 0.2, "total_iters": 30}
_STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "valid/loss", "patience": 3}
_SAVE = {
    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "EXP", "filename": "at{step}",
    "save_top_k": -1, "auto_insert_metric_name": False,
}  # fmt: skip
_EACH_BATCH = {**_SAVE, "every_n_train_steps": 1}
_EACH_VALIDATION = {**_SAVE, "monitor": "valid/acc", "save_on_train_epoch_end": False}

#: Of each case: the scenario whose model, data and configuration it takes, or "module" (`plain_module`); changes to its
#: configuration, to the trainer's block, to its data; and the file from which it is resumed: one of those it saves. (It
#: bears ESPnet3's count of each optimizer's updates; `our_file` our count of the batches that stepped.)
CASES: dict[str, dict[str, Any]] = {
    "warmup": {"base": _SINGLE, "config": {"scheduler": _WARMUP}, "file": "step6.ckpt"},
    "accumulate": {"base": "a2_single_accum_clip", "file": "step4.ckpt"},
    "plateau": {"base": "b1_single_plateau_epoch", "file": "step9.ckpt"},
    "criteria": {"base": "g1_callbacks_two_criteria", "file": "step12.ckpt"},
    "early_stopping": {
        "base": "b1_single_plateau_epoch", "file": "step18.ckpt", "trainer": {"callbacks": [_STOP], "max_epochs": 30},
        "config": {"scheduler": _WARMUP, "scheduler_interval": "step", "scheduler_monitor": None},
    },
    "scaler": {"base": _SINGLE, "precision": "16-mixed", "file": "step6.ckpt"},
    "batch_end": {"base": _SINGLE, "trainer": {"callbacks": [_EACH_BATCH]}, "file": "at5.ckpt"},
    "last_batch_end": {"base": _SINGLE, "trainer": {"callbacks": [_EACH_BATCH]}, "file": "at6.ckpt"},
    "validation_end": {
        "base": _SINGLE, "data": {"n_train": 20}, "file": "at7.ckpt",
        "trainer": {"callbacks": [_EACH_VALIDATION], "val_check_interval": 2},
    },
    "last_validation_end": {"base": _SINGLE, "trainer": {"callbacks": [_EACH_VALIDATION]}, "file": "at6.ckpt"},
    "fit_end": {"base": _SINGLE, "max_epochs_first": 2, "file": "after.ckpt"},
    "gan": {"base": _GAN, "file": "step12.ckpt", "our_file": "step6.ckpt"},
    "gan_order": {
        "base": _GAN, "file": "step12.ckpt", "our_file": "step6.ckpt",
        "config": {"schedulers": {
            "discriminator": {"scheduler": {**_LINEAR, "end_factor": 0.5}, "interval": "step"},
            "generator": {"scheduler": _LINEAR, "interval": "step"},
        }},
    },
    "gan_open_window": {"base": "d1_gan_partial", "trainer": {"max_epochs": 4}, "file": "step4.ckpt"},
    "gan_mid_epoch": {
        "base": _GAN, "data": {"n_train": 20}, "file": "at14.ckpt", "our_file": "at7.ckpt",
        "trainer": {"callbacks": [{**_EACH_VALIDATION, "monitor": "valid/g_loss"}], "val_check_interval": 2},
    },
    "module": {"base": "module", "file": "at6.ckpt"},
    "module_mid_epoch": {"base": "module", "file": "at5.ckpt", "every_n_train_steps": 1},
    "module_manual": {"base": "module", "file": "at10.ckpt", "manual": True},
}  # fmt: skip


class NoData:
    """Stands for ESPnet3's data organizer: the loaders are passed to `fit`."""

    train = valid = test = None

    def log_summary(self, logger):
        """Nothing to tell."""


class ResumableLoader(DataLoader):
    """Knows how many batches of its epoch are over, so that Lightning too goes on with the next one."""

    done = first = 0

    def __iter__(self):
        first, self.first = self.first, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= first:
                self.done = index + 1
                yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.first = state["done"] % len(self)  # at its end: the next epoch's first


def config_of(case: dict[str, Any], exp_dir: Path) -> dict[str, Any]:
    """The case's ESPnet3 configuration, as plain values."""
    config = copy.deepcopy(scenarios.CONFIGS[case["base"]])
    config.update(copy.deepcopy(case.get("config", {})))
    config["trainer"].update(copy.deepcopy(case.get("trainer", {})))
    for callback in config["trainer"].get("callbacks", ()):
        if callback.get("dirpath") == "EXP":
            callback["dirpath"] = str(exp_dir)
    config["best_model_criterion"] = [list(item) for item in config["best_model_criterion"]]
    return {key: value for key, value in config.items() if value is not None}


def loaders_of(case: dict[str, Any]) -> tuple[DataLoader, DataLoader]:
    """A training loader that can resume, and a validation loader."""
    data = {**scenarios.DATA.get(case["base"], scenarios.DATA[_SINGLE]), **case.get("data", {})}
    turns = data["turns"]
    train = scenarios.ToyDataset(data["n_train"], 11, turns=turns)
    valid = scenarios.ToyDataset(data["n_valid"], 22)
    size, collate = data["batch_size"], scenarios.collate
    return ResumableLoader(train, size, collate_fn=collate), DataLoader(valid, size, collate_fn=collate)


def plain_module(base: type, manual: bool = False, width: int = 6, rate: float = 0.02) -> Any:
    """A LightningModule or LiteModule without ESPnet: hyper-parameters, AdamW with OneCycleLR; or two by hand."""

    class Plain(base):
        def __init__(self, width: int, rate: float):
            super().__init__()
            self.save_hyperparameters()
            self.first, self.second = torch.nn.Linear(4, width), torch.nn.Linear(width, 1)
            scenarios.init_params(self.double(), seed=7)
            self.automatic_optimization = not manual

        def loss(self, batch):
            prediction = self.second(torch.tanh(self.first(batch[1]["x"])))
            return torch.nn.functional.mse_loss(prediction, batch[1]["y"])

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if not manual:
                return loss
            optimizers, schedulers = self.optimizers(), self.lr_schedulers()
            chosen = [0, 1] if batch_idx != 1 else [0]
            for index in chosen:
                optimizers[index].zero_grad()
            self.manual_backward(loss)
            for index in chosen:
                optimizers[index].step()
                schedulers[index].step()

        def validation_step(self, batch, batch_idx):
            self.log("valid/loss", self.loss(batch), batch_size=len(batch[0]))

        def configure_optimizers(self):
            rate = self.hparams["rate"]
            if manual:
                optimizers = [torch.optim.Adam(part.parameters(), lr=rate) for part in (self.first, self.second)]
                return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5) for optimizer in optimizers]
            optimizer = torch.optim.AdamW(self.parameters(), lr=rate)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=30)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Plain(width, rate)


def make_recorder(base: type) -> Any:
    """A callback that notes parameters, rates and counts after each batch, and the values of each validation."""

    class Recorder(base):
        def __init__(self):
            super().__init__()
            self.batches, self.validations, self.epochs = [], [], []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            parameters = flat_parameters(pl_module)
            self.batches.append(
                {
                    "epoch": trainer.current_epoch, "batch_idx": batch_idx, "global_step": trainer.global_step,
                    "parameters": [float(parameters.sum()), float(parameters.norm())],
                    "rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
                }
            )  # fmt: skip

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                values = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("valid/")}
                self.validations.append({"epoch": trainer.current_epoch, "metrics": values})

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs.append(trainer.current_epoch)

    return Recorder()


def flat_parameters(module: torch.nn.Module) -> torch.Tensor:
    """All parameters in their order, ``(count,)``; without the bias that a BatchNorm takes off again.

    Its gradient is rounding noise alone, which Adam makes large.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if not name.endswith("fc1.bias")]
    return torch.cat([parameter.detach().double().flatten() for _, parameter in named])


def keep_a_copy(trainer: Any, name: str, copy_to: Path) -> None:
    """Copy the folder of the file `name` when the trainer saves it: as if the run had been killed then."""
    save = trainer.save_checkpoint

    def save_and_copy(path, *args, **kwargs):
        save(path, *args, **kwargs)
        if Path(path).name == name:
            shutil.copytree(Path(path).parent, copy_to)

    trainer.save_checkpoint = save_and_copy


def file_of(name: str, library: SimpleNamespace) -> str:
    """The name of the file from which a case is resumed, as a library writes it."""
    return CASES[name].get("our_file", CASES[name]["file"]) if library.ours else CASES[name]["file"]


def run_case(
    library: SimpleNamespace, name: str, exp_dir: Path, resume: Path | None = None, keep: Path | None = None,
    max_epochs: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a case from its start, or from a checkpoint, and tell what happened.

    Args:
        library: `make(case, exp_dir)` gives (trainer, fit), `recorder()` a callback; `ours` says which it is.
        name: A key of `CASES`.
        exp_dir: The run's folder.
        resume: A checkpoint to go on from.
        keep: Where to copy the folder to, as it is when the case's file is saved.
        max_epochs: End sooner.
    """
    case = copy.deepcopy(CASES[name])
    if max_epochs is None and keep is not None and "max_epochs_first" in case:
        max_epochs = case["max_epochs_first"]
    if max_epochs is not None:
        case.setdefault("trainer", {})["max_epochs"] = max_epochs
    torch.manual_seed(0)
    trainer, fit = library.make(case, exp_dir)
    recorder = library.recorder()
    trainer.callback_handler.add_callback(recorder) if library.ours else trainer.callbacks.append(recorder)
    file = file_of(name, library)
    if keep is not None:
        keep_a_copy(trainer, file, keep)
    train, valid = loaders_of(case)
    fit(train_dataloaders=train, val_dataloaders=valid, ckpt_path=resume)
    if "max_epochs_first" in case and keep is not None:
        trainer.save_checkpoint(exp_dir / file)
    return {
        "batches": recorder.batches, "validations": recorder.validations, "epochs": recorder.epochs,
        "epoch": trainer.current_epoch, "global_step": trainer.global_step,
        "parameters": flat_parameters(trainer.lightning_module).tolist(),
        "best": {
            callback.monitor: {Path(path).name: float(score) for path, score in callback.best_k_models.items()}
            for callback in trainer.checkpoint_callbacks if callback.monitor is not None
        },
        "stopping": [
            [callback.wait_count, callback.stopped_epoch, float(callback.best_score)]
            for callback in trainer.early_stopping_callbacks
        ],
    }  # fmt: skip
