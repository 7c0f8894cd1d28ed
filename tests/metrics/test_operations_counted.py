"""How many calls of torch a logged value and a validation batch cost: counted, since times differ from day to day."""

from collections import Counter

import pytest
import torch
from quiet import QUIET
from torch.utils._python_dispatch import TorchDispatchMode

from espnet3_lite import Callback, ESPnetModule, LiteModule, Trainer
from espnet3_lite.config import Config
from espnet3_lite.config import container as config_container

QUIET = {**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0, "limit_val_batches": 0}


class Counting(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.counts[name] += name != "detach"  # costs nothing on a device, and torch 2.6 counts it twice
        return function(*args, **(kwargs or {}))


class Logs(LiteModule):
    """Logs one value under many names."""

    def __init__(self, names, device="cpu", **arguments):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.names, self.value, self.arguments = names, torch.ones((), device=device), arguments

    def training_step(self, batch, batch_idx):
        for number in range(self.names):
            self.log(f"value{number}", self.value, **self.arguments)
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Between(Callback):
    """The operations of the batches after the first, which creates what they need."""

    def __init__(self):
        self.mode = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.mode = Counting().__enter__()
        elif trainer.is_last_batch:
            self.mode.__exit__(None, None, None)


def operations(names, **arguments):
    between = Between()
    Trainer(**QUIET, callbacks=[between]).fit(Logs(names, **arguments), [torch.ones(4, 2)] * 6)
    return between.mode.counts


@pytest.mark.parametrize(
    ("arguments", "each"),
    [
        ({"on_step": False, "on_epoch": True}, {"_local_scalar_dense": 1}),  # on the CPU, where a read costs nothing
        ({"on_step": True, "on_epoch": False}, {"_local_scalar_dense": 1}),
        ({"on_step": True, "on_epoch": True}, {"_local_scalar_dense": 1}),
        ({"on_step": False, "on_epoch": True, "batch_size": torch.tensor(3.0)}, {"_local_scalar_dense": 3}),
        # A value that is not on the CPU is not read, and tensors of `meta` could not be.
        ({"device": "meta", "on_step": False, "on_epoch": True}, {"add": 1}),
        ({"device": "meta", "on_step": True, "on_epoch": False}, {"clone": 1}),
        ({"device": "meta", "on_step": True, "on_epoch": True}, {"clone": 1, "add": 1}),
    ],
)
def test_operations_a_logged_value_costs(arguments, each):
    more = operations(20, **arguments)
    more.subtract(operations(0))
    found = {name: count for name, count in more.items() if count}
    assert found == {name: 5 * 20 * count for name, count in each.items()}  # the last five of six batches


def test_a_validation_batch_whose_loss_is_finite_is_not_masked():
    with Counting() as mode:
        (values,) = Trainer(**{**QUIET, "limit_val_batches": 1.0}).validate(
            Logs(0), [torch.ones(4, 2)] * 5, verbose=False
        )
    assert values.keys() == {"loss"}
    assert (mode.counts["where"], mode.counts["isfinite"], mode.counts["add"]) == (0, 0, 0)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        loss = self.layer(x).square().mean()
        return loss, {"loss": loss.detach(), "other": loss.detach()}, torch.tensor(len(x))


def test_a_step_does_not_look_for_the_nearest_name_of_a_setting_that_is_not_there(monkeypatch):
    looked = []
    monkeypatch.setattr(config_container, "nearest", lambda *arguments: looked.append(arguments) or "")
    assert Config.create({"a": 1}).get("b", 3) == 3
    module = ESPnetModule(Model(), {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    Trainer(**QUIET).fit(module, [(["a"], {"x": torch.ones(1, 2)})] * 10)
    assert len(looked) < 10  # what is read once for the run; a step looked twice
