"""A checkpoint saved at any hook goes on to the same bits: weights, rates, metrics, batches, random numbers."""

import csv
import os
import signal

import pytest
import torch
from quiet import QUIET, quiet_trainer
from torch.utils.data import DataLoader, Dataset

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.exceptions import CheckpointError
from espnet3_lite.loggers import CSVLogger

EPOCHS, BATCHES = 3, 5
#: Hooks at whose end a checkpoint stands between two batches, or within a validation that is then run again.
PLACES = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_validation_start",
    "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end",
    "on_validation_end", "on_train_epoch_end", "on_train_end",
)  # fmt: skip


class Rows(Dataset):
    """Notes which rows are loaded."""

    def __init__(self, count):
        self.rows, self.loaded = torch.randn(count, 3, generator=torch.Generator().manual_seed(5)), []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.loaded.append(index)
        return self.rows[index]


class Module(LiteModule):
    """Dropout and BatchNorm, a scheduler by steps and one by a metric; logs on steps and over epochs."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)
        self.norm, self.dropout = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.batches = []

    def loss(self, batch):
        return (self.last(self.dropout(self.norm(self.first(batch)))) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        self.batches.append((self.current_epoch, batch_idx, batch.sum().item()))
        loss = self.loss(batch)
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.2)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97), "interval": "step"},
            {"scheduler": plateau, "monitor": "val_loss"},
        ]


class Trace(Callback):
    """What the run comes to, after each batch and each epoch."""

    def __init__(self):
        self.lines = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.lines.append((trainer.current_epoch, batch_idx, trainer.global_step, rate, outputs["loss"].item()))

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:  # a run that resumes between two epochs begins with a check of its own
            return
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.lines.append((trainer.current_epoch, "validation", values))

    def on_train_epoch_end(self, trainer, pl_module):
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.lines.append((trainer.current_epoch, "epoch", values))


class Saves(Callback):
    """Saves a checkpoint at each call of each of these hooks."""

    def __init__(self, folder):
        self.folder, self.saved = folder, []


def _saving(place):
    def save(self, trainer, pl_module, *_):
        if trainer.sanity_checking:
            return  # training has not begun
        path = self.folder / f"{len(self.saved)}.ckpt"
        self.saved.append((place, path))
        trainer.save_checkpoint(path)

    return save


for place in PLACES:
    setattr(Saves, place, _saving(place))


def run(tmp_path, callbacks=(), ckpt_path=None, seed=3, workers=0, **settings):
    """One run: the module, its trace, the rows that were loaded."""
    torch.manual_seed(seed)
    data, trace, module = Rows(BATCHES * 4), Trace(), Module()
    trainer = quiet_trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=2,
        val_check_interval=2,
        callbacks=[trace, *callbacks],
        default_root_dir=tmp_path,
        **settings,
    )
    train = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    trainer.fit(module, train, DataLoader(Rows(6), batch_size=3), ckpt_path=ckpt_path)
    return module, trainer, trace.lines, data.loaded


def state_of(module, trainer):
    """All that a run ends with, as one comparable list."""
    optimizer = trainer.optimizers[0].state_dict()["state"]
    return {
        **module.state_dict(),
        **{f"{index} {name}": value for index, entry in optimizer.items() for name, value in entry.items()},
        "random": torch.get_rng_state(),
        **{f"metric {name}": value for name, value in trainer.callback_metrics.items()},
        "rate": torch.tensor(trainer.optimizers[0].param_groups[0]["lr"]),
        "counters": torch.tensor([trainer.global_step, trainer.current_epoch, trainer.fit_loop.batches_seen]),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, how it ended, and where a second one like it saved."""
    folder = tmp_path_factory.mktemp("saved")
    plain = run(folder)
    end, saves = state_of(*plain[:2]), Saves(folder)
    return plain, end, run(folder, [saves]), saves.saved


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_saving_changes_nothing(whole):
    (_, _, lines, loaded), end, (module, trainer, other_lines, other_loaded), saved = whole
    assert other_lines == lines
    assert other_loaded == loaded
    assert module.batches == whole[0][0].batches
    assert len(saved) > 80 and {place for place, _ in saved} == set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_resumed_anywhere_it_comes_to_the_same(whole, place, tmp_path):
    (module, _, lines, loaded), end, _, saved = whole
    for path in [path for name, path in saved if name == place]:
        resumed, trainer, its_lines, its_loaded = run(tmp_path, ckpt_path=path, seed=99)
        begun = torch.load(path, weights_only=True)["loops"]["espnet3_lite"]["batches_seen"]
        assert its_lines == lines[len(lines) - len(its_lines) :], path.name
        assert resumed.batches == module.batches[begun:], path.name
        assert its_loaded == loaded[4 * begun :], "samples that were over were loaded again"
        assert_same(state_of(resumed, trainer), end)


@pytest.mark.parametrize("limit", [{"max_steps": BATCHES}, {"max_epochs": 1}])
def test_the_last_validation_and_the_epochs_end_follow_a_run_killed_before_them(tmp_path, limit):
    class Killed(Module):
        def validation_step(self, batch, batch_idx):
            raise KeyError("killed")

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    class Calls(Callback):
        def __init__(self):
            self.calls = []

        def on_validation_end(self, trainer, pl_module):
            self.calls.append("validation")

        def on_train_epoch_end(self, trainer, pl_module):
            self.calls.append("epoch")

    def run(module, *callbacks, ckpt_path=None):
        trainer = quiet_trainer(callbacks=list(callbacks), num_sanity_val_steps=0, **limit)
        torch.manual_seed(3)
        loader = DataLoader(Rows(4 * BATCHES), batch_size=4)
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return trainer

    with pytest.raises(KeyError, match="killed"):
        run(Killed(), Save())
    whole, calls = run(Module()), Calls()
    resumed = run(Module(), calls, ckpt_path=tmp_path / f"{BATCHES}.ckpt")
    assert calls.calls == ["validation", "epoch"]
    assert resumed.callback_metrics["val_loss"] == whole.callback_metrics["val_loss"]
    assert (resumed.current_epoch, resumed.global_step) == (1, BATCHES)


@pytest.mark.parametrize(("place", "checked"), [("on_train_epoch_end", True), ("on_train_batch_end", False)])
def test_the_sanity_check_runs_in_a_run_that_resumes_between_epochs_and_changes_nothing(tmp_path, place, checked):
    """As Lightning's; what the checkpoint knows of the metrics is still there after it."""
    seen = []

    class Calls(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            seen.append(("check", dict(trainer.callback_metrics)))

        def on_train_start(self, trainer, pl_module):
            seen.append(("train", {name: float(value) for name, value in trainer.callback_metrics.items()}))

    class Save(Callback):
        pass

    def save(trainer, *_, **__):
        if trainer.current_epoch == 1 and trainer.fit_loop.batches_done >= 2:
            trainer.save_checkpoint(tmp_path / "saved.ckpt")

    setattr(Save, place, lambda self, trainer, *arguments: save(trainer))

    def run(module, callback, ckpt_path=None):
        trainer = quiet_trainer(callbacks=[callback], max_epochs=EPOCHS)
        torch.manual_seed(3)
        loader = DataLoader(Rows(4 * BATCHES), batch_size=4)
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    whole = run(Module(), Save())
    assert torch.equal(run(Module(), Calls(), tmp_path / "saved.ckpt"), whole)
    assert [name for name, _ in seen] == (["check", "train"] if checked else ["train"])
    assert seen[0][1] == {} or not checked
    assert "val_loss" in seen[-1][1]


class Drawing(Module):
    """Draws random numbers in its validation, in whose second batch a signal comes, the `when`-th time."""

    def __init__(self, when=0):
        super().__init__()
        self.when = when

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch + torch.randn(()), batch_idx)
        self.when -= batch_idx == 1
        if batch_idx == 1 and self.when == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("interval", [3, 1.0])
def test_a_validation_that_a_signal_broke_off_is_run_anew(tmp_path, interval):
    """Within an epoch and at its end; the resumed run comes to the same bits, and the same lines on the same steps."""

    def run(module, folder):
        torch.manual_seed(3)
        trainer = quiet_trainer(
            callbacks=[ModelCheckpoint(tmp_path / folder, save_last=True, monitor="val_loss")],
            logger=CSVLogger(tmp_path, name=folder, flush_logs_every_n_steps=1),
            log_every_n_steps=1,
            max_epochs=EPOCHS,
            num_sanity_val_steps=0,
            val_check_interval=interval,
            auto_resume=True,
            enable_checkpointing=True,
        )
        train = DataLoader(Rows(4 * BATCHES), batch_size=4, shuffle=True)
        trainer.fit(module, train, DataLoader(Rows(9), batch_size=3))
        return state_of(module, trainer), list(csv.DictReader(open(f"{trainer.log_dir}/metrics.csv")))

    end, lines = run(Drawing(), "whole")
    with pytest.raises(SystemExit):
        run(Drawing(when=2), "cut")
    found, found_lines = run(Drawing(), "cut")
    assert_same(found, end)
    assert found_lines == lines


class Scheduled(Module):
    def __init__(self, scheduler, **arguments):
        super().__init__()
        self.scheduler = lambda optimizer: scheduler(optimizer, **arguments)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [self.scheduler(optimizer)]


@pytest.mark.parametrize(
    ("scheduler", "before", "after", "told"),
    [
        ("CosineAnnealingLR", {"T_max": 12}, {"T_max": 20}, ["CosineAnnealingLR T_max=12"]),
        ("StepLR", {"step_size": 2, "gamma": 0.5}, {"step_size": 2}, ["StepLR gamma=0.5"]),
        ("StepLR", {"step_size": 2}, {"step_size": 2}, []),
        ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 2}, {"T_0": 1, "T_mult": 2}, []),
    ],
)  # fmt: skip
def test_a_schedule_that_a_resume_keeps_is_told_where_another_is_configured(
    scheduler, before, after, told, tmp_path, recwarn
):
    kind = getattr(torch.optim.lr_scheduler, scheduler)
    settings = {**QUIET}
    loader = DataLoader(Rows(8), batch_size=4)
    trainer = Trainer(max_epochs=2, **settings)
    trainer.fit(Scheduled(kind, **before), loader, loader)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    Trainer(max_epochs=3, **settings).fit(Scheduled(kind, **after), loader, loader, ckpt_path=tmp_path / "x.ckpt")
    messages = [str(warning.message) for warning in recwarn if "goes on with" in str(warning.message)]
    assert [message.partition(";")[0].replace("goes on with the checkpoint's ", "") for message in messages] == told


def test_weights_of_another_model_are_told_with_their_file(tmp_path):
    class Wider(Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(7, 5)

    _, trainer, *_ = run(tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loader = DataLoader(Rows(8), batch_size=4)
    with pytest.raises(CheckpointError, match=r"x\.ckpt: its weights do not fit this run's Wider: (.|\n)*--fresh"):
        trainer.fit(Wider(), loader, loader, ckpt_path=tmp_path / "x.ckpt")


def test_where_a_last_checkpoint_was_looked_for_is_said(tmp_path):
    trainer = quiet_trainer(
        default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=True,
        callbacks=[ModelCheckpoint(tmp_path / "mine"), ModelCheckpoint(monitor="val_loss")],
    )  # fmt: skip
    where = rf"Looked in: {tmp_path / 'mine'}, a folder of each run's own \(version_N\)\. .*ModelCheckpoint\(dirpath="
    with pytest.warns(UserWarning, match=where):
        trainer.fit(Module(), DataLoader(Rows(4), 2), DataLoader(Rows(4), 2), ckpt_path="last")
