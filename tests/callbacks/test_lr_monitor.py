"""`LearningRateMonitor`: names, moments and values, as recorded from Lightning 2.6.6."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from quiet import quiet_trainer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import LearningRateMonitor
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers import Logger
from espnet3_lite.optim.slots import OptimizerSlot


class Rows(Logger):
    """Keeps what it is given."""

    name, version = "rows", 0

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, {name: round(value, 6) for name, value in metrics.items()}))

    def log_hyperparams(self, params):
        pass


class Module(LiteModule):
    """Logs nothing itself."""

    def __init__(self, configure, automatic=True):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.configure, self.automatic_optimization = configure, automatic

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.layer(batch).sum()
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers() or []:
                scheduler.step()
        return None

    def configure_optimizers(self):
        return self.configure(self)


def run(configure, *callbacks, automatic=True, logger=None, **arguments):
    """Two epochs of four batches, logged each second step; returns the monitor, the rows and the trainer."""
    monitor, rows = LearningRateMonitor(**arguments), Rows()
    trainer = quiet_trainer(
        max_epochs=2, logger=rows if logger is None else logger, callbacks=[monitor, *callbacks], log_every_n_steps=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(Module(configure, automatic), DataLoader(torch.ones(4, 1)))
    return monitor, rows.rows, trainer


def adam(interval, **more):
    def configure(module):
        optimizer = Adam(module.parameters(), lr=0.1, weight_decay=0.01)
        scheduler = {"scheduler": StepLR(optimizer, 1, 0.5), "interval": interval, **more}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return configure


def two_groups(*names):
    def configure(module):
        groups = [
            {"params": [parameter], "lr": 0.1 * number, **({"name": name} if name else {})}
            for number, (parameter, name) in enumerate(zip(module.parameters(), names, strict=True), start=1)
        ]
        optimizer = SGD(groups, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 1, 0.5)}

    return configure


def plain(module):
    return SGD(module.parameters(), lr=0.1)


def three(module):
    optimizers = [
        Adam(module.parameters(), lr=0.1),
        Adam(module.parameters(), lr=0.2),
        SGD(module.parameters(), lr=0.3),
    ]
    return optimizers, [StepLR(optimizer, 1, 0.5) for optimizer in optimizers[1:]]


def two_schedulers(module):
    optimizer = Adam(module.parameters(), lr=0.1)
    by_step = {"scheduler": StepLR(optimizer, 3, 0.5), "interval": "step"}
    return [optimizer], [StepLR(optimizer, 2, 0.5), by_step]


def each(steps, name, values):
    return [(step, {name: value}) for step, value in zip(steps, values, strict=True)]


RECORDED = {
    "each step that is logged": (adam("step"), {}, each((1, 3, 5, 7), "lr-Adam", (0.05, 0.0125, 0.003125, 0.000781))),
    "each epoch": (adam("epoch"), {}, each((0, 4), "lr-Adam", (0.1, 0.05))),
    "steps by epoch": (adam("step"), {"logging_interval": "epoch"}, each((0, 4), "lr-Adam", (0.1, 0.00625))),
    "epochs by step": (
        adam("epoch"), {"logging_interval": "step"}, each((1, 3, 5, 7), "lr-Adam", (0.1, 0.1, 0.05, 0.05))
    ),
    "the scheduler's name": (adam("epoch", name="mine"), {}, each((0, 4), "mine", (0.1, 0.05))),
    "momentum and decay": (
        adam("epoch"),
        {"log_momentum": True, "log_weight_decay": True},
        [
            (0, {"lr-Adam": 0.1, "lr-Adam-momentum": 0.9, "lr-Adam-weight_decay": 0.01}),
            (4, {"lr-Adam": 0.05, "lr-Adam-momentum": 0.9, "lr-Adam-weight_decay": 0.01}),
        ],
    ),
    "groups": (
        two_groups(None, None), {},
        [(0, {"lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.2}), (4, {"lr-SGD/pg1": 0.05, "lr-SGD/pg2": 0.1})],
    ),
    "groups with names": (
        two_groups("a", None), {},
        [(0, {"lr-SGD/a": 0.1, "lr-SGD/pg2": 0.2}), (4, {"lr-SGD/a": 0.05, "lr-SGD/pg2": 0.1})],
    ),
    "no scheduler": (plain, {}, each((0, 1, 3, 4, 5, 7), "lr-SGD", (0.1,) * 6)),
    "no scheduler, by step": (plain, {"logging_interval": "step"}, each((1, 3, 5, 7), "lr-SGD", (0.1,) * 4)),
    "two schedulers of one optimizer": (
        two_schedulers, {},
        [
            (0, {"lr-Adam": 0.1}), (1, {"lr-Adam-1": 0.1}), (3, {"lr-Adam-1": 0.05}), (4, {"lr-Adam": 0.05}),
            (5, {"lr-Adam-1": 0.05}), (7, {"lr-Adam-1": 0.025}),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_logs_what_lightning_logs(name):
    configure, arguments, expected = RECORDED[name]
    monitor, rows, trainer = run(configure, **arguments)
    assert rows == expected
    for key, value in {key: value for _, row in expected for key, value in row.items()}.items():
        assert float(trainer.callback_metrics[key]) == pytest.approx(value, abs=1e-6)  # the last one
        if not key.endswith(("-momentum", "-weight_decay")):
            assert monitor.lrs[key] == pytest.approx([row[key] for _, row in expected if key in row], abs=1e-6)
    assert monitor.last_momentum_values.get("lr-Adam-momentum") == (0.9 if "log_momentum" in arguments else None)


def test_several_optimizers_of_a_class_are_numbered():
    monitor, rows, _ = run(three, automatic=False)
    assert rows[0] == (0, {"lr-Adam": 0.2, "lr-SGD": 0.3, "lr-Adam-1": 0.1})  # those with schedulers come first
    assert monitor.lrs == {"lr-Adam": [0.2, 0.1], "lr-SGD": [0.3, 0.15], "lr-Adam-1": [0.1] * 6}


def test_the_number_comes_after_a_schedulers_own_name_too():
    """Lightning's: it is the number of optimizers of that class that had no name before."""

    def configure(module):
        optimizers = [Adam(module.parameters(), lr=0.1 * number) for number in (1, 2, 3)]
        names = (None, None, "mine")
        schedulers = [
            {"scheduler": StepLR(optimizer, 1, 0.5), **({"name": name} if name else {})}
            for optimizer, name in zip(optimizers, names, strict=True)
        ]
        return optimizers, schedulers

    monitor, _, _ = run(configure, automatic=False)
    assert list(monitor.lrs) == ["lr-Adam", "lr-Adam-1", "mine-1"]


def test_fast_dev_run_needs_no_logger():
    monitor = LearningRateMonitor(logging_interval="step")
    trainer = Trainer(fast_dev_run=2, callbacks=monitor, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Module(plain), DataLoader(torch.ones(4, 1)))
    assert trainer.global_step == 2 and set(monitor.lrs) == {"lr-SGD"}


def test_a_named_optimizer_goes_by_its_name():
    monitor = LearningRateMonitor(log_momentum=True)
    optimizers = [Adam([torch.zeros(1)], lr=0.5), Adam([torch.zeros(1)], lr=0.25)]
    slots = {n: OptimizerSlot(o, name=n) for n, o in zip(("generator", "discriminator"), optimizers, strict=True)}
    rows = Rows()
    trainer = type("Stub", (), {
        "loggers": [rows], "plan": SimpleNamespace(slots=slots), "optimizers": optimizers, "lr_scheduler_configs": [],
        "callback_metrics": {},
        "device": torch.device("cpu"), "logging_step": 7, "fast_dev_run": False,
    })()  # fmt: skip
    monitor.on_train_start(trainer, None)
    monitor.on_train_epoch_start(trainer, None)
    assert rows.rows == [
        (7, {"lr-generator": 0.5, "lr-generator-momentum": 0.9, "lr-discriminator": 0.25,
             "lr-discriminator-momentum": 0.9})
    ]  # fmt: skip


def test_a_group_that_is_added_later_keeps_the_first_ones_history():
    class Add(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.optimizers(use_pl_optimizer=False).add_param_group({"params": [torch.zeros(1)], "lr": 0.7})

    monitor = LearningRateMonitor(logging_interval="epoch")
    trainer = quiet_trainer(max_epochs=2, logger=Rows(), callbacks=[Add(), monitor])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(Module(plain), DataLoader(torch.ones(4, 1)))
    assert monitor.lrs == {"lr-SGD/pg1": [0.1, 0.1], "lr-SGD/pg2": [0.7]}


def test_errors_and_warnings():
    with pytest.raises(MisconfigurationException, match="logging_interval should be `step` or `epoch` or `None`"):
        LearningRateMonitor(logging_interval="batch")
    with pytest.raises(
        MisconfigurationException, match="`LearningRateMonitor` callback with `Trainer` that has no logger"
    ):
        run(plain, logger=False)
    with pytest.raises(MisconfigurationException, match=r"identical `name` values\. lr-SGD has .*\{'a'\}"):
        run(two_groups("a", "a"))
    with pytest.warns(RuntimeWarning, match="some optimizers do not have momentum"):
        run(lambda module: torch.optim.Adagrad(module.parameters()), log_momentum=True)
