"""What people see: the screen at 80 and at 120 columns, a log file, an executed notebook. All kept here as text."""

import io
import json
import logging
import re
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from line_model import Line

from espnet3_lite import Trainer
from espnet3_lite.callbacks import EarlyStopping, MetricsLogger, RichProgressBar, TQDMProgressBar
from espnet3_lite.callbacks.metrics_logger import rate_names, screen_values
from espnet3_lite.callbacks.showing.screen import AboveBars, ScreenLines
from espnet3_lite.callbacks.showing.tqdm_bars import Tqdm, takes_colours
from espnet3_lite.loggers import CSVLogger

BAR = TQDMProgressBar.BAR_FORMAT
QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Module(Line):
    def training_step(self, batch, batch_idx):
        self.log("train/loss", 0.5, prog_bar=True)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 0.25)


def line(columns, **values):
    postfix = ", ".join(f"{name}={Tqdm.format_num(value)}" for name, value in values.items())
    return Tqdm.format_meter(
        19, 38, 2.0, columns, BAR, postfix, prefix="Epoch 3/12: ", ascii=True
    )  # fmt: skip


# ---- a bar's line -------------------------------------------------------------------------------------------------

VALUES = {"loss": 0.137082, "acc": 0.973684, "grad_norm": 1.5}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            120,
            "Epoch 3/12:  50%|#####5    | 19/38 [00:02<00:02,  9.50it/s, loss=0.1371, acc=0.9737, grad_norm=1.500]",
        ),
        (80, "Epoch 3/12: |##5  | 19/38 [00:02<00:02,  9.50it/s, loss=0.1371, acc=0.9737, ...]"),
        (70, "Epoch 3/12: |###5   | 19/38 [00:02<00:02,  9.50it/s, loss=0.1371, ...]"),
        (60, "Epoch 3/12: |######5      | 19/38 [00:02<00:02,  9.50it/s]"),
    ],
)
def test_a_bar_fills_its_line_and_leaves_out_whole_values(columns, expected):
    found = line(columns, **VALUES)
    assert re.sub(r"\|[#\d ]+\|", "|BAR|", found) == re.sub(r"\|[#\d ]+\|", "|BAR|", expected)
    assert len(found) == columns


@pytest.mark.parametrize("columns", [None, -1])  # tqdm's word for a terminal that says it has no columns
def test_a_log_file_s_line_has_all_values(columns):
    assert line(columns, **VALUES).endswith("[00:02<00:02,  9.50it/s, loss=0.1371, acc=0.9737, grad_norm=1.500]")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_are_for_terminals_that_want_them(name, value, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert takes_colours(Terminal()) and not takes_colours(io.StringIO())
    monkeypatch.setenv(name, value)
    assert not takes_colours(Terminal())


# ---- log lines ----------------------------------------------------------------------------------------------------

LOGGED = {
    "iter_time": 0.006594, "forward_time": 0.0041165, "backward_time": 0.00418562, "train_time": 0.0109432,
    "acc": 0.973684, "loss": 0.137082, "lr-AdamW": 0.00225, "optim0_lr0": 0.00225,
}  # fmt: skip


def shown(stream, columns, monkeypatch, **extra):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    handler = AboveBars(stream)
    handler.setFormatter(ScreenLines(stream, "23:59:30 %(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.info("5epoch:train:1-19batch: iter_time=0.006594", extra=extra)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (80, "23:59:30 INFO epoch 5/12 train 1-19: loss=0.1371, acc=0.9737, lr=0.00225,\n"
             "    s/batch=0.01754, wait=38%\n"),
        (120, "23:59:30 INFO epoch 5/12 train 1-19: loss=0.1371, acc=0.9737, lr=0.00225, s/batch=0.01754, wait=38%\n"),
    ],
)  # fmt: skip
def test_a_log_line_on_a_terminal(columns, expected, monkeypatch):
    short = f"epoch 5/12 train 1-19: {screen_values(LOGGED, {'optim0_lr0': 'lr'})}"
    assert shown(Terminal(), columns, monkeypatch, screen=short) == expected
    assert max(map(len, expected.splitlines())) <= min(columns, 100)


def test_a_log_line_in_a_file_is_as_espnet3_writes_it(monkeypatch):
    assert shown(io.StringIO(), 80, monkeypatch, screen="short") == (
        "23:59:30 INFO 5epoch:train:1-19batch: iter_time=0.006594\n"
    )


def test_a_warning_on_a_terminal_is_yellow(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    record = logging.LogRecord("name", logging.WARNING, "", 0, "careful", (), None)
    assert ScreenLines(Terminal(), "%(message)s").format(record) == "\x1b[33mcareful\x1b[0m"
    assert ScreenLines(io.StringIO(), "%(message)s").format(record) == "careful"


def test_metrics_logger_gives_the_screen_its_own_line(caplog):
    caplog.set_level(logging.INFO, "espnet3_lite.callbacks.metrics_logger")
    trainer = Trainer(callbacks=MetricsLogger(1), max_epochs=2, enable_progress_bar=False, **QUIET)
    trainer.fit(Module(), [torch.ones(1, 1)] * 2, [torch.ones(1, 1)])
    pairs = [
        (record.getMessage().split(":", 4), record.screen) for record in caplog.records if hasattr(record, "screen")
    ]
    clock = [re.sub(r"(s/batch|seconds)=.*", "TIME", screen) for _, screen in pairs]
    one = "loss=0.5, lr=0.1, TIME"
    assert clock[:4] == [
        f"epoch 1/2 train 1-1: {one}", f"epoch 1/2 train 2-2: {one}", "epoch 1/2 valid: loss=0.25, TIME",
        f"epoch 1/2 train: {one}",
    ]  # fmt: skip
    assert pairs[0][0][:3] == ["1epoch", "train", "1-1batch"]


def test_each_learning_rate_has_one_name():
    def slot(name, groups):
        return SimpleNamespace(name=name, optimizer=SimpleNamespace(param_groups=[{}] * groups))

    def names(*slots):
        return rate_names(SimpleNamespace(plan=SimpleNamespace(slots=dict(enumerate(slots)))))

    assert names(slot(None, 1)) == {"optim0_lr0": "lr"}
    assert names(slot(None, 2)) == {"optim0_lr0": "lr/pg1", "optim0_lr1": "lr/pg2"}
    assert names(slot("gen", 1), slot("disc", 1)) == {"optim0_lr0": "lr-gen", "optim1_lr0": "lr-disc"}


# ---- rich ---------------------------------------------------------------------------------------------------------


def test_rich_draws_the_bars_and_lines_go_above_them(monkeypatch):
    pytest.importorskip("rich")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    seen = []

    class Watched(RichProgressBar):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            bar = self.train_progress_bar
            seen.append((bar.n, bar.total, bar.desc, bar.postfix))
            handler = AboveBars(stream)
            handler.emit(logging.LogRecord("name", logging.INFO, "", 0, f"batch {batch_idx} is over", (), None))

    Trainer(callbacks=Watched(), max_epochs=1, **QUIET).fit(Module(), [torch.ones(1, 1)] * 2, [torch.ones(1, 1)])
    assert seen[0] == (1, 2, "Epoch 1/1", "train/loss=0.5000") and seen[1][:2] == (2, 2)
    written = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())
    assert "batch 0 is over\n" in written and "batch 1 is over\n" in written
    last = written.rstrip().splitlines()[-1]
    assert last.startswith("Epoch 1/1") and "2/2" in last and "train/loss=0.5000" in last


def test_rich_takes_a_theme(monkeypatch):
    pytest.importorskip("rich")
    from espnet3_lite.compat.callbacks import RichProgressBarTheme

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "140")
    theme = RichProgressBarTheme(
        description="green", progress_bar="#010203", progress_bar_finished="#040506", batch_progress="red",
        time="blue", processing_speed="magenta", metrics="cyan", metrics_text_delimiter=" | ", metrics_format=".2e",
    )  # fmt: skip
    bar = RichProgressBar(leave=True, theme=theme, console_kwargs={"color_system": "truecolor", "force_terminal": True})
    Trainer(callbacks=bar, max_epochs=1, **QUIET).fit(Module(), [torch.ones(1, 1)] * 2)
    written = stream.getvalue()
    assert "\x1b[32mEpoch 1/1" in written and "train/loss=5.00e-01" in written
    assert "\x1b[38;2;1;2;3m" in written and "\x1b[38;2;4;5;6m" in written
    assert "\x1b[31m2/2" in written and "\x1b[34m0:00:00" in written
    speed = bar.configure_columns(None)[5].render(SimpleNamespace(finished_speed=2.0, speed=None))
    assert (speed.plain, speed.spans[0].style) == ("2.0 it/s", "magenta")


def test_rich_writes_a_log_file_as_the_other_bar_does(capsys):
    pytest.importorskip("rich")
    Trainer(callbacks=RichProgressBar(), max_epochs=1, **QUIET).fit(Module(), [torch.ones(1, 1)] * 2)
    assert capsys.readouterr().err.startswith("Epoch 1/1: 2/2 [")


# ---- a notebook ---------------------------------------------------------------------------------------------------

NOTEBOOK = """
import torch
from espnet3_lite import LiteModule, Trainer

class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        self.log("train/loss", 0.5, prog_bar=True)
        return self.layer(batch).sum()
    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 0.25 + self.current_epoch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
trainer.fit(Module(), [torch.ones(1, 1)] * 3, [torch.ones(1, 1)])
"""


@pytest.mark.slow
def test_a_saved_notebook_shows_a_table_with_one_line_an_epoch(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    kernels = tmp_path / "kernels" / "this"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "this",
                "language": "python",
            }
        )
    )
    client = nbclient.NotebookClient(notebook, kernel_name="this", resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs.insert(0, str(tmp_path / "kernels"))
    client.execute()
    saved = nbformat.reads(nbformat.writes(notebook), as_version=4)
    displays = [output["data"] for output in saved.cells[0].outputs if output.output_type == "display_data"]
    tables = [data for data in displays if data["text/plain"]]
    assert [data["text/plain"] for data in tables] == [
        textwrap.dedent("""\
        epoch  train/loss  valid/loss
            1      0.5000      0.2500
            2      0.5000       1.250""")
    ]
    assert "<td>1.250</td>" in tables[0]["text/html"] and "<pre>" not in tables[0]["text/html"]
    assert len(displays) == len(tables) + 1  # all validations take one place, which is empty in the end
    text = "".join(output["text"] for output in saved.cells[0].outputs if output.output_type == "stream")
    assert "trained 2 epochs, 6 steps" in text and "it/s" not in text


# ---- objects ------------------------------------------------------------------------------------------------------


def test_objects_are_readable(tmp_path):
    trainer = Trainer(max_epochs=3, gradient_clip_val=1.0, default_root_dir=tmp_path, **QUIET)
    assert repr(trainer) == (
        f"Trainer(accelerator='cpu', default_root_dir={str(tmp_path)!r}, enable_checkpointing=False, "
        "enable_model_summary=False, gradient_clip_val=1.0, max_epochs=3, min_epochs=0)"
    )
    assert repr(trainer.strategy) == "Strategy(rank 0 of 1, cpu)"
    assert repr(EarlyStopping("valid/loss", patience=5)).startswith("EarlyStopping(monitor='valid/loss', ")
    assert "patience=5" in repr(EarlyStopping("valid/loss", patience=5))
    assert repr(TQDMProgressBar(refresh_rate=2)) == "TQDMProgressBar(refresh_rate=2)"
    assert repr(CSVLogger("logs", version=3)) == "CSVLogger(save_dir='logs', name='lightning_logs', version=3)"


def test_a_repr_needs_no_signature():
    class Own(TQDMProgressBar):
        def __init__(self, **anything):
            super().__init__()

    assert repr(Own(a=1)) == "Own()"
