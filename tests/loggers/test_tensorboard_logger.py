"""TensorBoardLogger: what TensorBoard itself reads back from the event files."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from espnet3_lite.loggers import TensorBoardLogger
from espnet3_lite.loggers.base import SilentExperiment

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs the extra `tensorboard`"
)


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars_of(folder):
    events = events_of(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@needs_tensorboard
def test_metrics_are_read_back(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="digits", prefix="run")
    logger.log_metrics({"train/loss": 0.5, "acc": torch.tensor(0.25)}, step=0)
    logger.log_metrics({"train/loss": 0.125}, step=50)
    logger.finalize("success")
    folder = tmp_path / "digits" / "version_0"
    assert Path(logger.log_dir) == folder
    assert scalars_of(folder) == {"run-train/loss": [(0, 0.5), (50, 0.125)], "run-acc": [(0, 0.25)]}


@needs_tensorboard
def test_a_dict_makes_curves_in_one_picture(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="mine", sub_dir="sub")
    logger.log_metrics({"loss": {"train": 1.0, "valid": 2.0}}, step=3)
    logger.finalize("success")
    assert scalars_of(tmp_path / "mine" / "sub" / "loss_train") == {"loss": [(3, 1.0)]}
    assert scalars_of(tmp_path / "mine" / "sub" / "loss_valid") == {"loss": [(3, 2.0)]}


@needs_tensorboard
def test_hyperparameters_are_recorded_flat_and_as_yaml(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"optim": {"lr": 0.5}, "layers": [{"size": 1}, {"size": 2}], "path": Path("/x")})
    logger.log_hyperparams(argparse.Namespace(seed=3), metrics={"valid/acc": 0.75}, step=7)
    logger.finalize("success")
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {
        "layers": [{"size": 1}, {"size": 2}],
        "optim": {"lr": 0.5},
        "path": "/x",
        "seed": 3,
    }
    assert scalars_of(logger.log_dir) == {"hp_metric": [(0, -1.0)], "valid/acc": [(7, 0.75)]}
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = events_of(logger.log_dir).summary_metadata["_hparams_/session_start_info"].plugin_data
    recorded = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    # TensorBoard keeps the summary of the first session.
    assert set(recorded) == {"optim/lr", "layers/0/size", "layers/1/size", "path"}
    assert recorded["optim/lr"].number_value == 0.5
    assert recorded["path"].string_value == "/x"


@needs_tensorboard
def test_without_the_default_metric_hyperparameters_make_no_scalar(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"a": 1})
    logger.save()
    logger.finalize("success")
    assert scalars_of(logger.log_dir) == {}
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {"a": 1}


@needs_tensorboard
def test_the_graph_is_drawn_on_request(tmp_path):
    model = torch.nn.Linear(2, 1)
    logger = TensorBoardLogger(tmp_path / "a", log_graph=True)
    with pytest.warns(UserWarning, match="`example_input_array` is NoneType"):
        logger.log_graph(model)
    logger.log_graph(model, torch.ones(3, 2))
    logger.finalize("success")
    assert events_of(logger.log_dir).Tags()["graph"]
    silent = TensorBoardLogger(tmp_path / "b")
    silent.log_graph(model, torch.ones(3, 2))
    silent.save()
    assert not events_of(silent.log_dir).Tags()["graph"]


@needs_tensorboard
@pytest.mark.parametrize("value", ["text", None, torch.ones(2)])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match="metric 'a' is .*takes a number, a tensor of one element"):
        TensorBoardLogger(tmp_path).log_metrics({"a": value}, step=0)


@needs_tensorboard
def test_a_logger_that_was_not_used_makes_no_folder(tmp_path):
    TensorBoardLogger(tmp_path / "logs").finalize("success")
    assert os.listdir(tmp_path) == []


@needs_tensorboard
def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1})
    logger.log_graph(torch.nn.Linear(2, 1), torch.ones(1, 2))
    logger.save()
    logger.finalize("success")
    assert isinstance(logger.experiment, SilentExperiment)
    assert (logger.version, logger.log_dir) == (None, None)
    assert os.listdir(tmp_path) == []


@needs_tensorboard
def test_home_and_variables_in_the_folder_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS", str(tmp_path))
    assert Path(TensorBoardLogger("$EXPERIMENTS/x", version=2).log_dir) == tmp_path / "x/lightning_logs/version_2"


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest)
    )
    with pytest.raises(ImportError, match=r'pip install "espnet3_lite\[tensorboard\]"; or use CSVLogger'):
        TensorBoardLogger(tmp_path)


def test_importing_the_loggers_needs_no_tensorboard():
    script = "import sys; sys.modules['tensorboard'] = None; import espnet3_lite.loggers; print('imported')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "imported\n", run.stderr


def test_a_cut_run_goes_on_in_its_folder_without_the_later_points(tmp_path):
    first = TensorBoardLogger(tmp_path, name="run")
    for step in range(3):
        first.log_metrics({"loss": 3.0 - step}, step=step)
        if step == 1:
            state = first.state_dict()
    first.finalize("success")
    assert (state["version"], state["last_step"]) == (0, 1)
    last_second = int(time.time())
    while int(time.time()) == last_second:  # TensorBoard orders event files by the second in their names
        time.sleep(0.01)

    second = TensorBoardLogger(tmp_path, name="run")
    second.load_state_dict(state)
    second.log_metrics({"loss": 0.25}, step=2)
    second.finalize("success")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 0.25)]
    assert not (tmp_path / "run" / "version_1").exists()
