"""Bars in a terminal, lines in a log file, little work in between."""

import copy
import io
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from line_model import Line
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from espnet3_lite import Callback, MisconfigurationException, Trainer
from espnet3_lite.callbacks import ModelCheckpoint, TQDMProgressBar
from espnet3_lite.callbacks import tqdm_progress as module_under_test

QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(Line):
    def training_step(self, batch, batch_idx):
        self.log("number", float(batch_idx), prog_bar=True)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("quality", 0.25, prog_bar=True)

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.layer(batch)


class Watcher(Callback):
    """Notes where the bars stand after each batch, as anybody's callback can."""

    def __init__(self):
        self.training, self.validation = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        bar = trainer.progress_bar_callback.train_progress_bar
        self.training.append((bar.n, bar.total, bar.desc))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        bar = trainer.progress_bar_callback.val_progress_bar
        self.validation.append((bar.n, bar.total, bar.desc))


def loader(count):
    return DataLoader(torch.zeros(count, 1))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Bars find a terminal as stderr; what they write is in its ``getvalue()``."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    # (Not in `sys` itself: pytest puts its own stderr back between a fixture and its test.)
    monkeypatch.setattr(module_under_test, "sys", SimpleNamespace(stderr=stream, modules=sys.modules))
    return stream


def masked(text):
    """Lines without what depends on the clock."""
    return re.sub(r"\[.*?it/s", "[CLOCK", text).splitlines()


# ---- where the bars stand: as Lightning 2.6.6 leaves them -----------------------------------------------------------


def test_bars_stand_where_lightnings_do(terminal):
    watcher = Watcher()
    bar = TQDMProgressBar(refresh_rate=3)
    trainer = Trainer(callbacks=[bar, watcher], max_epochs=2, limit_val_batches=4, **QUIET)
    trainer.fit(Module(), loader(7), loader(7))
    places = [0, 0, 3, 3, 3, 6, 7]
    assert watcher.training == [(n, 7, f"Epoch {epoch}/2: ") for epoch in (1, 2) for n in places]
    sanity = [(n, 2, "Sanity Checking DataLoader 0: ") for n in (0, 2)]
    assert watcher.validation == sanity + 2 * [(n, 4, "Validation DataLoader 0: ") for n in (0, 0, 3, 4)]
    assert isinstance(bar.train_progress_bar, tqdm)
    assert bar.train_progress_bar.postfix == "number=6.000, quality=0.2500"


def test_bars_of_validate_test_and_predict(terminal):
    bar, watcher = TQDMProgressBar(), Watcher()
    trainer = Trainer(callbacks=[bar, watcher], **QUIET)
    trainer.validate(Module(), [loader(1), loader(2)], verbose=False)
    texts = ["Validation DataLoader 0: ", "Validation DataLoader 1: "]
    assert watcher.validation == [(1, 1, texts[0]), (1, 2, texts[1]), (2, 2, texts[1])]
    trainer.test(Module(), loader(3), verbose=False)
    trainer.predict(Module(), loader(2))
    ends = [(b.n, b.total, b.desc) for b in (bar.test_progress_bar, bar.predict_progress_bar)]
    assert ends == [(3, 3, "Testing DataLoader 0: "), (2, 2, "Predicting DataLoader 0: ")]


def test_an_endless_loader_has_no_total(terminal):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(3, 1))

    watcher, bar = Watcher(), TQDMProgressBar(refresh_rate=2)
    Trainer(callbacks=[bar, watcher], max_epochs=1, **QUIET).fit(Module(), DataLoader(Stream()))
    assert [(n, total) for n, total, _ in watcher.training] == [(0, None), (2, None), (2, None)]
    assert bar.train_progress_bar.n == 3  # the epoch's end knows


def test_a_resumed_run_goes_on_where_it_was(terminal, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    settings = {**QUIET, "enable_checkpointing": True, "max_epochs": 1}
    Trainer(callbacks=[saver], enable_progress_bar=False, **settings).fit(Module(), loader(5))
    watcher, bar = Watcher(), TQDMProgressBar()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    Trainer(callbacks=[bar, watcher, saver], **settings).fit(Module(), loader(5), ckpt_path=tmp_path / "step=3.ckpt")
    assert watcher.training == [(4, 5, "Epoch 1/1: "), (5, 5, "Epoch 1/1: ")]
    assert bar.train_progress_bar.initial == 3  # so that the rate is this run's


@pytest.mark.parametrize(("leave", "kept"), [(True, 2), (False, 1)])
def test_leave_keeps_a_bar_for_each_epoch(leave, kept, terminal):
    Trainer(callbacks=TQDMProgressBar(leave=leave), max_epochs=2, **QUIET).fit(Module(), loader(2))
    assert terminal.getvalue().count("\n") == kept


# ---- what is written ------------------------------------------------------------------------------------------------


def test_a_log_file_gets_a_line_an_epoch(capsys):
    trainer = Trainer(callbacks=TQDMProgressBar(), max_epochs=2, **QUIET)
    trainer.fit(Module(), loader(50), loader(2))
    assert masked(capsys.readouterr().err) == [
        f"Epoch {epoch}/2: 50/50 [CLOCK, number=49.00, quality=0.2500]" for epoch in (1, 2)
    ]
    trainer.validate(Module(), loader(2), verbose=False)
    trainer.test(Module(), loader(3), verbose=False)
    trainer.predict(Module(), loader(4))
    assert masked(capsys.readouterr().err) == [
        "Validation DataLoader 0: 2/2 [CLOCK]",
        "Testing DataLoader 0: 3/3 [CLOCK]",
        "Predicting DataLoader 0: 4/4 [CLOCK]",
    ]


def test_a_long_epoch_gets_a_line_each_half_minute(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def tick():
        clock.now += 7.0  # the bar looks at the clock once a batch
        return clock.now

    monkeypatch.setattr(module_under_test, "time", SimpleNamespace(monotonic=tick))
    Trainer(callbacks=TQDMProgressBar(), max_epochs=1, **QUIET).fit(Module(), loader(12))
    assert [line.split(" [")[0] for line in capsys.readouterr().err.splitlines()] == [
        "Epoch 1/1: 5/12", "Epoch 1/1: 10/12", "Epoch 1/1: 12/12",
    ]  # fmt: skip


def test_a_bar_that_moves_each_n_th_batch_does_not_stand_still_for_long(terminal, monkeypatch):
    """With ESPnet3's default of 500 batches it looked dead for minutes."""
    clock = SimpleNamespace(now=0.0)

    class SlowBatches(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            clock.now += 2.0

    monkeypatch.setattr(module_under_test, "time", SimpleNamespace(monotonic=lambda: clock.now))
    watcher = Watcher()
    callbacks = [TQDMProgressBar(refresh_rate=500), watcher, SlowBatches()]
    Trainer(callbacks=callbacks, max_epochs=1, **QUIET).fit(Module(), loader(8))
    assert [n for n, _, _ in watcher.training] == [0, 0, 3, 3, 3, 6, 6, 8]


def test_a_terminal_is_drawn_ten_times_a_second_at_most(terminal, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def tick():
        clock.now += 0.03
        return clock.now

    reads = []

    class Bar(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            reads.append(trainer.fit_loop.batches_done)
            return super().get_metrics(trainer, pl_module)

    monkeypatch.setattr(module_under_test, "time", SimpleNamespace(monotonic=tick))
    Trainer(callbacks=Bar(), max_epochs=1, **QUIET).fit(Module(), loader(12))
    # The first batch, then each fourth (0.12 s), the last, and the epoch's end: nothing is read in between.
    assert reads == [1, 5, 9, 12, 12]


def test_the_pieces_of_a_terminal_line(terminal):
    Trainer(callbacks=TQDMProgressBar(), max_epochs=1, **QUIET).fit(Module(), loader(2))
    last = terminal.getvalue().split("\r")[-1]
    pieces = r"Epoch 1/1: 100%\|\x1b\[32m█+\x1b\[0m\| 2/2 \[00:00<00:00, +[\d.]+it/s, number=1.000\] *\n"
    assert re.fullmatch(pieces, last)


def test_print_goes_to_stdout_and_keeps_the_bar_whole(terminal, capsys):
    class Talk(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.print("batch", batch_idx, sep="=", end=";\n", flush=True)

    Trainer(callbacks=[TQDMProgressBar(), Talk()], max_epochs=1, **QUIET).fit(Module(), loader(2))
    assert capsys.readouterr().out == "batch=0;\nbatch=1;\n"
    assert "batch" not in terminal.getvalue()


def test_an_exception_closes_the_bars(terminal):
    class Boom(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("boom")

    bar = TQDMProgressBar()
    with pytest.raises(RuntimeError, match="boom"):
        Trainer(callbacks=[bar, Boom()], max_epochs=1, **QUIET).fit(Module(), loader(2))
    assert bar.train_progress_bar.disable


# ---- making one's own -----------------------------------------------------------------------------------------------


def test_overridden_bars_are_used(terminal):
    class Own(TQDMProgressBar):
        def init_train_tqdm(self):
            bar = super().init_train_tqdm()
            bar.unit = "utterance"
            return bar

        def init_validation_tqdm(self):
            return tqdm(disable=True)

    bar = Own()
    Trainer(callbacks=bar, max_epochs=1, **QUIET).fit(Module(), loader(2), loader(1))
    assert bar.train_progress_bar.unit == "utterance" and bar.val_progress_bar.disable


@pytest.mark.parametrize("make", [lambda: TQDMProgressBar(0), TQDMProgressBar])
def test_a_disabled_bar_shows_nothing(make, terminal):
    bar = make()
    bar.disable()
    Trainer(callbacks=bar, max_epochs=1, **QUIET).fit(Module(), loader(2), loader(1))
    assert terminal.getvalue() == "" and bar.is_disabled and bar.train_progress_bar.disable


def test_arguments(monkeypatch):
    bar = TQDMProgressBar(refresh_rate=5, process_position=2)
    assert (bar.refresh_rate, bar.process_position) == (5, 2)
    monkeypatch.setenv("TQDM_MINITERS", "10")
    assert [TQDMProgressBar(rate).refresh_rate for rate in (0, 1, 20)] == [0, 10, 20]
    with pytest.raises(MisconfigurationException, match="refresh_rate=-1"):
        TQDMProgressBar(-1)
    with pytest.raises(TypeError, match="`TQDMProgressBar.train_progress_bar` reference has not been set yet"):
        bar.train_progress_bar  # noqa: B018


def test_copies_hold_no_open_bar(terminal):
    bar = TQDMProgressBar(4)
    Trainer(callbacks=bar, max_epochs=1, **QUIET).fit(Module(), loader(1))
    for again in (copy.deepcopy(bar), pickle.loads(pickle.dumps(TQDMProgressBar(4)))):
        assert again.refresh_rate == 4 and again.bars == {}
