"""The order of every hook call equals Lightning's, call by call, in 13 recorded runs."""

import json
from pathlib import Path

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule
from espnet3_lite.callbacks.base import HOOKS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hooks.json").read_text())["scenarios"]
STAGED = ("setup", "teardown")
INDEXED = tuple(hook for hook in HOOKS if "_batch_" in hook)


def recording_method(owner, name, calls):
    """A hook that notes its call as the golden file does."""
    original = getattr(owner, name)

    def record(*args, **kwargs):
        text = f"{owner.kind}.{name}"
        if owner.kind == "callback" and name in INDEXED:
            text += f"[{args[-1]}]"
        if owner.kind == "callback" and name in STAGED:
            text += f":{args[-1]}"
        calls.append(text)
        return original(*args, **kwargs)

    return record


class Recorder(Callback):
    kind = "callback"

    def __init__(self, calls):
        for name in (*HOOKS, "state_dict", "load_state_dict"):
            if name != "on_stop_training_error":
                setattr(self, name, recording_method(self, name, calls))


class Boom(Callback):
    def __init__(self, batch_idx):
        self.batch_idx = batch_idx

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            raise ValueError("boom")


class Module(LiteModule):
    kind = "module"

    def __init__(self, args):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.args = args
        self.automatic_optimization = not args["manual"]

    def loss(self, batch):
        return self.layer(batch).square().mean()

    def training_step(self, batch, batch_idx):
        if batch_idx in self.args["skip"]:
            return None
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.loss(batch)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.layer(batch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.args["sched"]}}

    def _loader(self, count):
        return DataLoader(torch.ones(count, 4), batch_size=1)

    def train_dataloader(self):
        return self._loader(self.args["n_train"])

    def val_dataloader(self):
        return self._loader(self.args["n_val"])


def record(args, tmp_path):
    """Run one scenario; gives the calls, the trainer and the error's text."""
    calls = []
    module = Module(args)
    names = {
        call.split(".")[1].split("[")[0] for s in GOLDEN.values() for call in s["calls"] if call.startswith("module")
    }
    for name in names:
        object.__setattr__(module, name, recording_method(module, name, calls))
    callbacks = [Recorder(calls)] + ([Boom(args["raise_at"])] if args["raise_at"] is not None else [])
    known = ("max_epochs", "num_sanity_val_steps", "accumulate_grad_batches", "gradient_clip_val", "limit_val_batches")
    settings = {name: args[name] for name in known if name in args}
    trainer = quiet_trainer(callbacks=callbacks, default_root_dir=tmp_path, **settings)
    method, error = args["method"].removesuffix("_save"), None
    loaders = {} if method in ("fit", "validate") else {"dataloaders": module._loader(args["n_val"])}
    try:
        getattr(trainer, method)(module, **loaders)
    except ValueError as raised:
        error = str(raised)
    if args["method"] == "fit_save":
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return calls, trainer, error


@pytest.mark.parametrize("name", GOLDEN)
def test_order_equals_lightning(name, tmp_path):
    golden = GOLDEN[name]
    calls, trainer, error = record(golden["args"], tmp_path)
    assert calls == golden["calls"]
    assert (trainer.global_step, trainer.current_epoch) == (golden["global_step"], golden["current_epoch"])
    assert error == golden["error"]
