"""Where the seconds go: a table for everybody, labelled ranges in a trace, and nothing at all without a profiler."""

import functools
import json
import logging
import time

import pytest
import torch

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import Profiler

QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "accelerator": "cpu",
}  # fmt: skip


class Module(LiteModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.layer(batch).mean())

    def on_train_epoch_end(self):
        self.ended = True

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Slow(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.03)


class SlowLoader:
    def __len__(self):
        return 4

    def __iter__(self):
        for _ in range(4):
            time.sleep(0.05)
            yield torch.ones(2, 4)


def fit(tmp_path, *callbacks, **settings):
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=tmp_path, **QUIET, **settings)
    trainer.fit(Module(), SlowLoader(), [torch.ones(2, 4)] * 3)
    return trainer


def test_the_table_says_what_is_slow(tmp_path, caplog):
    caplog.set_level(logging.INFO, "espnet3_lite.callbacks.profiler")
    profiler = Profiler()
    fit(tmp_path, profiler, Slow())
    rows = {name: (calls, seconds) for name, calls, seconds in profiler.rows()}
    assert list(rows)[:2] == ["data wait", "on_train_batch_end Slow"]
    calls, seconds = rows["data wait"]
    assert calls == 2 + 8 and seconds >= 8 * 0.05  # two epochs are begun, with four batches each
    assert rows["on_train_batch_end Slow"][0] == 8 and rows["on_train_batch_end Slow"][1] >= 8 * 0.03
    counts = {name: calls for name, (calls, _) in rows.items()}
    expected = {
        "forward": 8, "backward": 8, "step": 8, "vote": 8, "to device": 8 + 2 + 6, "validation": 3,
        "validation_step": 2 + 6, "on_train_epoch_end Module": 2,
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected
    (table,) = [record.getMessage() for record in caplog.records]
    assert table.splitlines()[1].split() == ["seconds", "share", "calls", "ms/call", "what"]
    assert table.splitlines()[2].endswith("  data wait")


def test_ranges_and_the_rest_are_the_whole(tmp_path, caplog):
    """What runs in no range is not left out; what runs in two is in the sum once."""
    caplog.set_level(logging.INFO, "espnet3_lite.callbacks.profiler")

    class SlowToSetUp(Module):
        def configure_optimizers(self):
            time.sleep(0.3)
            return super().configure_optimizers()

        def validation_step(self, batch, batch_idx):
            time.sleep(0.02)

    profiler = Profiler()
    trainer = Trainer(max_epochs=2, callbacks=[profiler], default_root_dir=tmp_path, **QUIET)
    trainer.fit(SlowToSetUp(), SlowLoader(), [torch.ones(2, 4)] * 3)
    (table,) = [record.getMessage().splitlines() for record in caplog.records]
    seconds, share, *words = table[-1].split()
    assert words == ["the", "rest:", "in", "none", "of", "these"]
    whole = float(table[0].split()[1])
    assert 0.3 <= float(seconds) < whole - 8 * 0.05 - 8 * 0.02 + 0.01
    assert float(seconds) + profiler.covered == pytest.approx(whole, abs=0.01)
    assert float(share.rstrip("%")) == pytest.approx(100 * float(seconds) / whole, abs=0.2)
    once = {"data wait", "forward", "backward", "step", "vote", "to device", "validation"}
    outer = sum(seconds for name, _, seconds in profiler.rows() if name in once)
    inner = sum(seconds for name, _, seconds in profiler.rows() if name == "validation_step")
    assert inner >= 8 * 0.02 and profiler.covered < outer + inner


def test_a_profiler_changes_no_number_and_is_gone_after_the_call(tmp_path):
    plain, profiled = fit(tmp_path), fit(tmp_path, profiler="simple")
    for one, other in zip(plain.model.parameters(), profiled.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for trainer in (plain, profiled):  # the one had nothing in its way, the other has nothing any more
        assert "vote" not in vars(trainer.strategy) and "run" not in vars(trainer.evaluation_loops["val"])
        assert "backward" not in vars(trainer.fit_loop) and "begin_epoch" not in vars(trainer.fit_loop)
        assert not hasattr(trainer.plan.training_step, "__wrapped__")
        listeners = [one for several in trainer.hook_calls.listeners.values() for one in several]
        called = [one.func if isinstance(one, functools.partial) else one for one in listeners]
        assert called and not any(hasattr(one, "__wrapped__") for one in called)
    assert not any(isinstance(callback, Profiler) for callback in plain.callbacks)


def test_no_range_is_opened_without_a_profiler(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(Profiler, "range", lambda self, label: opened.append(label))
    fit(tmp_path)
    assert opened == []


def test_pytorch_writes_a_trace_with_the_labels(tmp_path):
    fit(tmp_path, Slow(), profiler="pytorch")
    trace = json.loads((tmp_path / "profile" / "trace-rank0.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    for label in ("forward", "backward", "step", "vote", "on_train_batch_end Slow"):
        assert names.count(label) == 5, label
    assert names.count("data wait") >= 5 and "validation" in names and "on_train_epoch_end Module" in names


def test_a_profile_of_one_s_own_runs_with_the_call(tmp_path):
    recorded = []
    own = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=2, repeat=1),
        on_trace_ready=lambda one: recorded.append({event.key: event.count for event in one.key_averages()}),
    )
    fit(tmp_path, profiler=own)
    assert recorded[0]["forward"] == recorded[0]["step"] == 2


def test_evaluation_alone_and_a_run_that_fails_have_a_table_too(tmp_path, caplog):
    caplog.set_level(logging.INFO, "espnet3_lite.callbacks.profiler")
    trainer = fit(tmp_path, profiler="simple")
    trainer.validate(trainer.model, [torch.ones(2, 4)], verbose=False)
    assert "validation_step" in caplog.messages[-1] and "forward" not in caplog.messages[-1]

    class Boom(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, Boom(), profiler="simple")
    assert "on_train_batch_end Boom" in caplog.messages[-1]


def test_another_kind_is_an_error():
    with pytest.raises(MisconfigurationException, match="did you mean 'simple'"):
        Trainer(profiler="simpel", **QUIET)
    with pytest.raises(MisconfigurationException, match="give 'simple', 'pytorch' or a torch.profiler.profile"):
        Trainer(profiler=object(), max_epochs=1, **QUIET)
