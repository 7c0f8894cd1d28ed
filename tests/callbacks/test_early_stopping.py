"""`EarlyStopping`: what Lightning 2.6.6 did in 33 recorded cases, and what is ours."""

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from line_model import Line
from quiet import QUIET
from saving_lab import run_case
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule, Trainer
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint
from espnet3_lite.callbacks.early_stopping import EarlyStoppingReason
from espnet3_lite.exceptions import MisconfigurationException

LIBRARY = SimpleNamespace(
    Trainer=Trainer, Module=LiteModule, Callback=Callback, ModelCheckpoint=ModelCheckpoint, EarlyStopping=EarlyStopping
)
RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "lightning_saving.json").read_text())
CASES = {name: entry for name, entry in RECORDED.items() if "stopping" in entry["case"]}
#: Lightning turns the comparison in this message round: it says that 5.0 < 4.0.
TURNED = {"stopping_div": ("5.0 < 4.0", "5.0 > 4.0"), "stopping_div_max": ("0.5 > 1.0", "0.5 < 1.0")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_does_what_lightning_does(name, tmp_path):
    expected = copy.deepcopy(CASES[name]["expected"])
    if name in TURNED:
        state = expected[0]["stopping"][0]
        assert TURNED[name][0] in state["stopping_reason_message"]
        state["stopping_reason_message"] = state["stopping_reason_message"].replace(*TURNED[name])
    assert run_case(LIBRARY, CASES[name]["case"], tmp_path) == expected


class Logging(Line):
    """One weight; logs `valid/loss`, the same value each time."""

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 1.0)


def fit(*callbacks, ckpt_path=None, **settings):
    """Train for at most nine epochs of two batches; returns the trainer."""
    defaults = {"max_epochs": 9, **QUIET, "enable_checkpointing": None}
    trainer = Trainer(callbacks=list(callbacks), **{**defaults, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Logging(), DataLoader(torch.ones(2, 1)), DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path)
    return trainer


def test_an_unknown_mode_is_refused():
    with pytest.raises(MisconfigurationException, match="`mode` can be min, max, got 'auto'"):
        EarlyStopping("valid/loss", mode="auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": -1}, "EarlyStopping: patience=-1 is below 0"),
        ({"patience": "3"}, "EarlyStopping: patience='3' cannot be compared; give a number"),
        ({"min_delta": "1e-3"}, "EarlyStopping: min_delta='1e-3' cannot be compared"),
        ({"stopping_threshold": float("nan")}, "EarlyStopping: stopping_threshold=nan cannot be compared"),
    ],
)
def test_what_is_no_number_is_refused(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        EarlyStopping("valid/loss", **arguments)


def test_a_metric_that_is_not_logged_is_named_with_the_nearest(tmp_path):
    message = r"metric `valid/los` which is not available\. Pass in .*`valid/loss`; did you mean 'valid/loss'\?"
    with pytest.raises(RuntimeError, match=message) as raised:
        fit(EarlyStopping("valid/los"), ModelCheckpoint(tmp_path))
    assert isinstance(raised.value, MisconfigurationException)  # which the command line tells without a traceback
    with pytest.warns(RuntimeWarning, match="conditioned on metric `valid/los`"):
        EarlyStopping("valid/los", strict=False, verbose=True)._validate_condition_metric(
            {"valid/loss": torch.tensor(1.0)}
        )


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [  # recorded from Lightning, save the direction of the comparison in the divergence's sentence
        ({}, [3.0, 2.0], (False, "Metric m improved by 1.000 >= min_delta = 0.0. New best score: 2.000")),
        ({}, [3.0], (False, "Metric m improved. New best score: 3.000")),
        ({"patience": 2}, [3.0, 3.0], (False, None)),
        (
            {"patience": 1, "min_delta": 0.5, "mode": "max"},
            [3.0, 3.5],
            (True, "Monitored metric m did not improve in the last 1 records. Best score: 3.000. "
                   "Signaling Trainer to stop."),
        ),
        (
            {"stopping_threshold": 1.0},
            [0.5],
            (True, "Stopping threshold reached: m = 0.5 < 1.0. Signaling Trainer to stop."),
        ),
        (
            {"divergence_threshold": 1.0, "mode": "max"},
            [0.5],
            (True, "Divergence threshold reached: m = 0.5 < 1.0. Signaling Trainer to stop."),
        ),
        (
            {},
            [2.0, float("nan")],
            (True, "Monitored metric m = nan is not finite. Previous best value was 2.000. Signaling Trainer to stop."),
        ),
    ],
)  # fmt: skip
def test_messages(arguments, values, expected):
    stopping = EarlyStopping("m", **arguments)
    outcome = None
    for value in values:
        outcome = stopping._evaluate_stopping_criteria(torch.tensor(value))
    assert outcome == expected


def test_verbose_logs_each_improvement_and_the_end(tmp_path, caplog):
    caplog.set_level("INFO", logger="espnet3_lite.callbacks.early_stopping")
    fit(EarlyStopping("valid/loss", patience=1, verbose=True), ModelCheckpoint(tmp_path))
    assert [record.message for record in caplog.records if "early_stopping" in record.name] == [
        "Metric valid/loss improved. New best score: 1.000",
        "Monitored metric valid/loss did not improve in the last 1 records. Best score: 1.000. "
        "Signaling Trainer to stop.",
    ]


def test_all_ranks_decide_by_the_agreed_number(tmp_path):
    class OnTwoRanks(Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.strategy.agreed_metric = lambda value: value - trainer.current_epoch

    stopping = EarlyStopping("valid/loss", patience=1)
    trainer = fit(OnTwoRanks(), stopping, ModelCheckpoint(tmp_path), max_epochs=3)
    assert (trainer.current_epoch, float(stopping.best_score)) == (3, -1.0)


def test_a_run_that_was_stopped_stays_so_when_it_is_resumed(tmp_path):
    """Else a run killed after its last checkpoint would train on, other than one that was not killed."""
    first = EarlyStopping("valid/loss", patience=2)
    trainer = fit(first, ModelCheckpoint(tmp_path, save_last=True))
    assert (trainer.current_epoch, first.stopped_epoch) == (3, 2)
    again = EarlyStopping("valid/loss", patience=2)
    resumed = fit(again, ModelCheckpoint(tmp_path, save_last=True), ckpt_path=tmp_path / "last.ckpt")
    assert (resumed.current_epoch, resumed.global_step) == (3, 6)
    assert again.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
    without = fit(ModelCheckpoint(tmp_path, save_last=True), ckpt_path=tmp_path / "last.ckpt")
    assert without.current_epoch == 9


def test_state_of_an_older_lightning_is_read():
    stopping = EarlyStopping("valid/loss")
    stopping.load_state_dict({"wait_count": 2, "stopped_epoch": 0, "best_score": torch.tensor(0.5), "patience": 7})
    assert (stopping.wait_count, float(stopping.best_score), stopping.patience) == (2, 0.5, 7)
    assert stopping.stopping_reason == EarlyStoppingReason.NOT_STOPPED
