"""The lines that people read: ESPnet3's own, value by value, and what resuming and skipping do to them."""

import copy
import importlib.util
import json
import logging
import math
import pickle
import re
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader

from espnet3_lite import Callback, ESPnetModule, ESPnetTrainer, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import MetricsLogger, ModelCheckpoint, TQDMProgressBar
from espnet3_lite.callbacks.showing.screen import end_report, results
from espnet3_lite.callbacks.showing.step_means import RunningMeans
from espnet3_lite.exceptions import StopTrainingError
from espnet3_lite.loggers import CSVLogger

GOLDEN = Path(__file__).parents[1] / "golden" / "espnet3"
LOGGER = "espnet3_lite.callbacks.metrics_logger"
QUIET = {**QUIET, "num_sanity_val_steps": 0}


@pytest.fixture
def lines(caplog):
    """The lines so far, times masked."""
    caplog.set_level(logging.INFO, logger=LOGGER)
    return lambda: [
        re.sub(r"(\w+_time)=[-+.e\d]+", r"\1=T", r.getMessage()) for r in caplog.records if r.name == LOGGER
    ]


#: A value in a line.
NUMBER = re.compile(r"(?<==)[-+]?\d[-+.e\d]*")


class Replay(LiteModule):
    """Logs what ESPnet3 logged, batch by batch, and sets the learning rates that it had after each batch."""

    def __init__(self, golden):
        super().__init__()
        self.golden = golden
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        place = (self.current_epoch, batch_idx)
        record = next(b for b in self.golden["batches"] if (b["epoch"], b["batch_idx"]) == place)
        for name, value in record["metrics"].items():
            if name.startswith("train/"):
                self.log(name, value, on_step=True, on_epoch=False)
        (rates,) = record["lr_end"].values()
        self.trainer.optimizers[0].param_groups[0]["lr"] = rates[0]
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        record = next(v for v in self.golden["validations"] if v["epoch"] == self.current_epoch and not v["sanity"])
        for name, value in record["metrics"].items():
            if name.startswith("valid/"):
                self.log(name, value)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("name", ["a1_single_steplr_step", "b1_single_plateau_epoch", "g1_callbacks_two_criteria"])
def test_lines_are_those_of_espnet3(name, lines):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    epochs = 1 + max(batch["epoch"] for batch in golden["batches"])
    batches = 1 + max(batch["batch_idx"] for batch in golden["batches"])
    trainer = Trainer(
        max_epochs=epochs, callbacks=MetricsLogger(golden["config"]["trainer"]["log_every_n_steps"]), **QUIET
    )
    trainer.fit(Replay(golden), DataLoader(torch.zeros(batches)), DataLoader(torch.zeros(1)))
    theirs = [line for _, _, line in golden["log_lines"] if "epoch:" in line]
    # `lr-Adam` is LearningRateMonitor's, which does not take part here.
    assert lines() == [re.sub(r"lr-Adam=[-+.e\d]+, ", "", line) for line in theirs]
    assert len(theirs) == 3 * epochs


@pytest.mark.parametrize("name", ["b1_single_plateau_epoch", "g1_callbacks_two_criteria"])
def test_lines_of_a_whole_run_are_those_of_espnet3(name, lines, tmp_path):
    """With all default callbacks, so with LearningRateMonitor's values, whose scheduler steps with epochs here."""
    spec = importlib.util.spec_from_file_location("scenarios", GOLDEN / "scenarios.py")
    scenarios = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenarios)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    loaders = [
        DataLoader(scenarios.build_dataset(name, split), batch_size=4, collate_fn=scenarios.collate)
        for split in ("train", "valid")
    ]
    module = ESPnetModule(scenarios.build_model(name), golden["config"])
    settings = {**golden["config"]["trainer"], "enable_progress_bar": False, "enable_model_summary": False}
    trainer = ESPnetTrainer(module, tmp_path, settings, golden["config"]["best_model_criterion"])
    trainer.fit(train_dataloaders=loaders[0], val_dataloaders=loaders[1])
    found, theirs = lines(), [line for _, _, line in golden["log_lines"] if "epoch:" in line]
    assert [NUMBER.sub("", line) for line in found] == [NUMBER.sub("", line) for line in theirs]
    for line, their_line in zip(found, theirs, strict=True):  # the last digit depends on the number of threads
        numbers = [float(number) for number in NUMBER.findall(their_line)]
        assert [float(number) for number in NUMBER.findall(line)] == pytest.approx(numbers, rel=2e-6)


class Module(LiteModule):
    """Logs the batch's number; `rare` in odd batches only; the loss of the batches in `bad` is not finite."""

    def __init__(self, bad=(), number=float):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.bad, self.number = bad, number

    def training_step(self, batch, batch_idx):
        self.log("train/number", self.number(batch_idx))
        if batch_idx % 2:
            self.log("train/rare", float(batch_idx))
        self.log("whole", float(batch_idx), on_step=False, on_epoch=True)
        return self.layer(batch).sum() * (math.nan if batch_idx in self.bad else 1.0)

    def validation_step(self, batch, batch_idx):
        self.log("valid/number", float(batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(module, logger, batches=4, epochs=1, validate=True, **settings):
    callbacks = [logger, *settings.pop("callbacks", [])]
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **{**QUIET, **settings})
    loader = DataLoader(torch.zeros(batches, 1))
    trainer.fit(module, loader, loader if validate else None)
    return trainer


def test_means_are_over_the_batches_in_which_a_value_was_logged(lines):
    fit(Module(), MetricsLogger(2))
    times = "iter_time=T, forward_time=T, backward_time=T, train_time=T"
    assert lines() == [
        f"1epoch:train:1-2batch: {times}, number=0.5, rare=1, optim0_lr0=0.5",
        f"1epoch:train:3-4batch: {times}, number=2.5, rare=3, optim0_lr0=0.5",
        "epoch_summary:1epoch:valid: valid_time=T, number=1.5",
        "epoch_summary:1epoch:train: train_time=T, number=1.5, rare=2, whole=1.5, optim0_lr0=0.5",
    ]


@pytest.mark.filterwarnings("ignore:epoch 0, batch 2")
def test_a_skipped_batch_logs_nothing(lines):
    fit(Module(bad=[2]), MetricsLogger(4), validate=False)
    assert lines()[0].endswith(f"number={4 / 3:.6g}, rare=2, optim0_lr0=0.5")


def test_a_value_that_stays_equal_counts_each_time_it_is_logged(lines):
    class Constant(Module):
        def training_step(self, batch, batch_idx):
            self.log("train/value", 1.0 if batch_idx < 3 else 5.0)
            return self.layer(batch).sum()

    fit(Constant(), MetricsLogger(4), validate=False)
    assert "value=2," in lines()[0]


def test_what_others_set_and_what_the_batchs_last_hooks_log_is_in_the_next_batchs_means(lines):
    class Sets(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.callback_metrics["set"] = torch.tensor(10.0 + batch_idx)

    class Late(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.log("train/late", 20.0 + batch_idx)

    fit(Late(), MetricsLogger(2), callbacks=[Sets()], validate=False)
    times = "iter_time=T, forward_time=T, backward_time=T, train_time=T"
    assert lines()[:2] == [
        f"1epoch:train:1-2batch: {times}, late=20, number=0.5, rare=1, set=10, optim0_lr0=0.5",
        f"1epoch:train:3-4batch: {times}, late=21.5, number=2.5, rare=3, set=11.5, optim0_lr0=0.5",
    ]
    assert "late=21, number=1.5, rare=2, set=11, whole=1.5, optim0_lr0=0.5" in lines()[2]


def test_zero_writes_summaries_alone(lines):
    fit(Module(), MetricsLogger(0), epochs=2, validate=False)
    assert [line.split(": ")[0] for line in lines()] == ["epoch_summary:1epoch:train", "epoch_summary:2epoch:train"]
    with pytest.raises(MisconfigurationException, match="log_every_n_steps=-1"):
        MetricsLogger(-1)


def test_a_sanity_check_writes_nothing(lines):
    fit(Module(), MetricsLogger(0), num_sanity_val_steps=1)
    assert [line.split(": ")[0] for line in lines()] == ["epoch_summary:1epoch:valid", "epoch_summary:1epoch:train"]


def test_forward_time_ends_at_the_first_of_several_backward_passes():
    logger = MetricsLogger()
    trainer = SimpleNamespace(train_data=SimpleNamespace(seconds_waited=0.5))
    logger.on_train_batch_start(trainer, None, None, 0)
    for _ in range(3):
        logger.on_before_backward(None, None, None)
        logger.on_after_backward(None, None)
    assert logger.state_dict()["window"]["counts"] == {}  # a run that resumes here times the batch anew
    metrics, plan = SimpleNamespace(touched=[], looked_at=0, holds_graphs=False), SimpleNamespace(slots={})
    logger.on_train_batch_end(SimpleNamespace(metrics=metrics, plan=plan), None, None, None, 0)
    counts = {"iter_time": 1, "forward_time": 1, "backward_time": 3, "train_time": 1}
    assert logger.state_dict()["window"]["counts"] == counts


def test_a_run_that_resumes_within_an_epoch_writes_the_same_lines(lines, tmp_path, caplog):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(Module(), MetricsLogger(5), batches=7, callbacks=[saver], enable_checkpointing=None)
    whole = lines()
    caplog.clear()
    trainer = Trainer(max_epochs=1, callbacks=MetricsLogger(5), **QUIET)
    loader = DataLoader(torch.zeros(7, 1))
    trainer.fit(Module(), loader, loader, ckpt_path=tmp_path / "step=3.ckpt")
    assert lines() == whole
    assert whole[0].startswith("1epoch:train:1-5batch: ") and "number=2, rare=2," in whole[0]


class OnDevice(torch.Tensor):
    """A number that stands for one on a GPU: it says that it is not on the CPU."""

    is_cpu = False
    __torch_function__ = torch._C._disabled_torch_function_impl


def test_nothing_is_read_between_lines(monkeypatch):
    reads = []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or read(tensor))
    for name in ("item", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda tensor, original=original: reads.append("scalar") or original(tensor)
        )

    class Counting(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            reads.clear()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            counts.append(len(reads))

    counts = []
    on_device = {"number": lambda number: torch.tensor(float(number)).as_subclass(OnDevice)}
    bare = fit(Module(**on_device), MetricsLogger(0), callbacks=[Counting()], validate=False)
    without = counts.copy()
    counts.clear()
    fit(Module(**on_device), MetricsLogger(4), callbacks=[Counting()], validate=False)
    assert bare.global_step == 4
    assert [with_lines - plain for with_lines, plain in zip(counts, without, strict=True)] == [0, 0, 0, 1]


def test_another_trainers_run_begins_its_means_anew(lines):
    logger = MetricsLogger(3)
    for _ in range(2):  # two folds with one list of callbacks
        fit(Module(), logger, validate=False)
    assert lines()[:2] == lines()[2:]
    assert "epoch_summary:1epoch:train: train_time=T, number=1.5," in lines()[3]


@pytest.mark.parametrize("callback", [MetricsLogger(0), TQDMProgressBar()])
def test_graphs_of_logged_values_do_not_pile_up(callback):
    alive = []

    class Graphs(Module):
        def training_step(self, batch, batch_idx):
            loss = self.layer(batch).sum()
            graph = loss * 2
            self.log("train/graph", graph, enable_graph=True)
            graph.grad_fn.metadata["mark"] = mark = Mark()
            marks.append(weakref.ref(mark))
            alive.append(sum(ref() is not None for ref in marks))
            return loss

    marks = []
    bar = isinstance(callback, TQDMProgressBar)
    fit(Graphs(), callback, batches=20, validate=False, enable_progress_bar=bar)
    assert len(alive) == 20 and max(alive) <= 3


class Mark:
    """It lives as long as the graph that it is put into."""


def test_a_copy_goes_on_from_the_means_so_far(lines):
    counts = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for copied in [copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))] * (batch_idx < 3):
                window = copied.state_dict()["window"]
                counts.append((window["counts"]["number"], window["sums"]["number"]))

    logger = MetricsLogger(4)
    fit(Module(), logger, callbacks=[Copies()], validate=False)
    assert counts == [(1, 0.0), (1, 0.0), (2, 1.0), (2, 1.0), (3, 3.0), (3, 3.0)]
    assert "number=1.5," in lines()[0]  # the copied one was not disturbed


def test_what_becomes_of_a_tensor_after_it_was_logged_is_in_no_line(lines):
    class Reuses(Module):
        def training_step(self, batch, batch_idx):
            value = self.layer.weight.new_full((), float(batch_idx))
            self.log("train/number", value)
            value.fill_(1000.0)
            return self.layer(batch).sum()

    fit(Reuses(), MetricsLogger(4), validate=False)
    assert "number=1.5," in lines()[0]


def test_running_means_hold_their_digits_and_state():
    means = RunningMeans()
    for _ in range(10):
        means.take([("x", torch.tensor(0.1, dtype=torch.float64)), ("y", 0.1)] * 100)
    assert means.means() == {"x": pytest.approx(0.1, rel=1e-14), "y": pytest.approx(0.1, rel=1e-14)}
    again = RunningMeans()
    again.load_state_dict(means.state_dict())
    again.take([("x", torch.tensor(1001.1))])
    assert again.means()["x"] == pytest.approx(1.1, rel=1e-6)
    assert all(type(total) is float for total in means.state_dict()["sums"].values())


def test_weights_that_are_validated_on_their_own_are_of_no_epoch(lines):
    module = Module()
    trainer = fit(module, MetricsLogger(2))
    trainer.validate(module, DataLoader(torch.zeros(4, 1)), verbose=False)
    assert lines()[-1] == "summary:valid: valid_time=T, number=1.5"


# ---- what a person reads ------------------------------------------------------------------------------------------


@pytest.fixture
def screen(caplog):
    """The lines so far as a terminal shows them."""
    caplog.set_level(logging.INFO, logger=LOGGER)
    return lambda: [r.screen for r in caplog.records if r.name == LOGGER]


class SlowElsewhere(Module):
    """Takes its time everywhere but for the training loader: in validations, in what saves, in other callbacks."""

    def validation_step(self, batch, batch_idx):
        time.sleep(0.2)


class SlowAtTheEnd(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.05)

    def on_train_epoch_end(self, trainer, pl_module):
        time.sleep(0.2)


class SlowSaver(ModelCheckpoint):
    def on_train_batch_end(self, *arguments):
        time.sleep(0.05)


class SlowSamples(torch.utils.data.Dataset):
    def __init__(self, *seconds):
        self.seconds = seconds

    def __len__(self):
        return len(self.seconds)

    def __getitem__(self, index):
        time.sleep(self.seconds[index])
        return torch.zeros(1)


def epoch_rows(callbacks, samples, **settings):
    """What the loggers get of each epoch's times."""
    rows = []

    class Rows(CSVLogger):
        def log_metrics(self, metrics, step=None):
            rows.append(metrics)

    trainer = Trainer(max_epochs=2, callbacks=callbacks, **{**QUIET, "logger": Rows("nowhere"), **settings})
    trainer.fit(SlowElsewhere(), DataLoader(samples), DataLoader(torch.zeros(2, 1)))
    return [row for row in rows if "iter_time" in row]


def test_the_wait_is_for_the_training_loader_alone(tmp_path):
    slow = [SlowAtTheEnd(), SlowSaver(tmp_path)]
    settings = {"enable_checkpointing": None, "val_check_interval": 2}
    for row in epoch_rows([MetricsLogger(4), *slow], torch.zeros(4, 1), **settings):
        assert 0 < row["iter_time"] < 0.03  # with the validations: 0.1 and more; with the callbacks: 0.05 and more


def test_the_wait_has_every_batch_the_epochs_first_one_too():
    for row in epoch_rows([MetricsLogger(4)], SlowSamples(0.4, 0.0, 0.0, 0.0)):
        assert 0.1 <= row["iter_time"] < 0.13


def test_seconds_a_batch_have_one_meaning(screen):
    trainer = Trainer(max_epochs=1, callbacks=MetricsLogger(4), **QUIET)
    trainer.fit(Module(), DataLoader(SlowSamples(*[0.05] * 4)))
    window, epoch = screen()
    assert window.split(": ")[1] == epoch.split(": ")[1].replace("whole=1.5, ", "")  # they are of the same batches
    assert float(re.search(r"s/batch=([\d.]+)", epoch)[1]) >= 0.05 and int(re.search(r"wait=(\d+)%", epoch)[1]) > 50


def test_the_rate_on_the_screen_is_one_that_a_step_used(screen, lines):
    class Scheduled(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=torch.tensor(0.5) if self.tensor else 0.5)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    for tensor in (False, True):  # a schedule of epochs: 0.5 in the first, 0.25 in the second
        module = Scheduled()
        module.tensor = tensor
        fit(module, MetricsLogger(2), epochs=2, validate=False)
        assert [re.search(r"lr=([\d.]+)", line)[1] for line in screen()[-6:]] == ["0.5"] * 3 + ["0.25"] * 3
        rates = [re.search(r"optim0_lr0=([\d.]+)", line)[1] for line in lines()[-6:]]  # as ESPnet3 has them
        assert rates == ["0.5", "0.375", "0.4375", "0.25", "0.1875", "0.21875"]


def test_a_finished_run_that_is_started_again_reports_the_epochs_means(tmp_path):
    class Counts(LiteModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            self.log("train/count", float(batch_idx))
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    reports = []
    for path in (None, tmp_path / "end.ckpt"):
        trainer = Trainer(max_epochs=2, callbacks=[MetricsLogger(0)], **QUIET)
        trainer.fit(Counts(), DataLoader(torch.zeros(4)), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        reports.append(end_report(trainer))
    assert reports == [["trained 2 epochs, 8 steps", "  train/count 1.5"]] * 2  # of 0, 1, 2 and 3


@pytest.mark.parametrize("bar_first", [False, True])
def test_a_run_that_resumes_within_an_epoch_reports_the_whole_epochs_means(tmp_path, bar_first):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(Module(), MetricsLogger(5), batches=4, callbacks=[saver], enable_checkpointing=None)
    callbacks = [MetricsLogger(5), TQDMProgressBar()]
    trainer = Trainer(
        max_epochs=1, callbacks=callbacks[::-1] if bar_first else callbacks, **{**QUIET, "enable_progress_bar": None}
    )
    trainer.fit(Module(), DataLoader(torch.zeros(4, 1)), ckpt_path=tmp_path / "step=3.ckpt")
    assert results(trainer)["train/number"] == 1.5


class Counts(Module):
    def training_step(self, batch, batch_idx):
        self.log("train/count", batch_idx + 1.0, reduce_fx="max")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("loggers", [[], [MetricsLogger(5)]])
def test_a_count_is_reported_as_it_was_last_and_not_as_a_mean(loggers):
    settings = {**QUIET, "enable_progress_bar": None}
    trainer = Trainer(max_epochs=1, callbacks=[*loggers, TQDMProgressBar()], **settings)
    trainer.fit(Counts(), DataLoader(torch.zeros(4, 1)))
    assert results(trainer) == {"train/count": 4.0, "train/number": 1.5, "train/rare": 2.0, "whole": 1.5}


def test_a_run_that_is_stopped_within_an_epoch_reports_its_means_so_far():
    class Stops(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                raise StopTrainingError("enough")

    trainer = Trainer(
        max_epochs=3, callbacks=[MetricsLogger(2), TQDMProgressBar(), Stops()], **{**QUIET, "enable_progress_bar": None}
    )
    trainer.fit(Module(), DataLoader(torch.zeros(4, 1)))
    assert trainer.global_step == 7 and results(trainer)["train/number"] == 1.0
