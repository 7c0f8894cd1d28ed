"""The table of the Trainer's arguments: what comes from it, and the messages that say what would do."""

import inspect
import subprocess
import sys
import warnings
from collections import UserDict, UserList
from datetime import timedelta

import pytest
import torch
from quiet import QUIET

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.checks.value_kinds import parse_duration
from espnet3_lite.config.fields import FIELDS
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.loggers import CSVLogger
from espnet3_lite.trainer.settings import SETTINGS

SOUND = {"model": {"_target_": "torch.nn.Identity"}, "optimizer": {"_target_": "torch.optim.SGD"}}


WRONG = [
    ("accelerator", "tpu", "'tpu' is not 'auto', 'cpu', 'gpu', 'cuda' or 'mps'; did you mean 'gpu'?"),
    ("strategy", "ddpp", f"'ddpp' is not {SETTINGS['strategy'].kind.words}; did you mean 'ddp'?"),
    ("devices", 0, "0 is not a number of at least 1, -1 or 'auto' for all, or a list of them"),
    ("devices", [], "[] is not a number of at least 1, -1 or 'auto' for all, or a list of them"),
    ("precision", "bf17", f"'bf17' is not {SETTINGS['precision'].kind.words}; did you mean 'bf16'?"),
    ("max_epochs", 1.5, "1.5 is not a whole number of at least -1 (-1: no limit)"),
    ("max_steps", -5, "-5 is not a whole number of at least -1 (-1: no limit)"),
    ("min_epochs", -1, "-1 is not a whole number of at least 0"),
    ("limit_train_batches", True, "True is not a whole number of at least 0 or a fraction from 0.0 to 1.0"),
    ("limit_val_batches", 2.0, "2.0 is not a whole number of at least 0 or a fraction from 0.0 to 1.0; "
                               "for batches write 2"),
    ("overfit_batches", -1, "-1 is not a whole number of at least 0 or a fraction from 0.0 to 1.0"),
    ("val_check_interval", 0, "0 is not a whole number of at least 1 or a fraction above 0.0 and at most 1.0; "
                              "to leave validation out set limit_val_batches to 0"),
    ("num_sanity_val_steps", -2, "-2 is not a whole number of at least -1 (-1: all batches)"),
    ("log_every_n_steps", -1, "-1 is not a whole number of at least 0 (0: never)"),
    ("gradient_clip_val", -1.0, "-1.0 is not a number of at least 0"),
    ("gradient_clip_val", float("nan"), "nan is not a number of at least 0"),
    ("gradient_clip_algorithm", "nrom", "'nrom' is not 'norm' or 'value'; did you mean 'norm'?"),
    ("deterministic", "maybe", "'maybe' is not true or false or 'warn'"),
    ("inference_mode", 1, "1 is not true or false"),
    ("fast_dev_run", -2, "-2 is not true or false or a number of at least 0"),
    ("compile", 3, "3 is not true or false or a mapping or 'default', 'reduce-overhead', 'max-autotune' or "
     "'max-autotune-no-cudagraphs'"),
    ("plugins", ["x"], "['x'] is not supported; plugins are Lightning's own; leave it out"),
    ("barebones", True, "True is not supported; set logger, enable_checkpointing and enable_progress_bar to false"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "problem"), WRONG)
def test_a_wrong_value_is_refused_with_the_same_words_in_python_and_in_yaml(name, value, problem):
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(**{**QUIET, name: value})
    assert str(raised.value) == f"Trainer: {name}={problem}"
    with pytest.raises(ConfigError) as raised:
        check_config({**SOUND, "trainer": {name: value}})
    assert raised.value.errors == [f"trainer.{name}: {problem}"]


def test_all_wrong_values_come_in_one_message():
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(**{**QUIET, "max_steps": "9", "benchmark": "yes", "barebones": True})
    assert [line.split("=")[0] for line in str(raised.value).splitlines()] == [
        "Trainer: barebones", "Trainer: max_steps", "Trainer: benchmark",
    ]  # fmt: skip


def test_the_signature_is_the_table():
    """It is made from it: names, order and defaults. What a type checker makes of it: `tests/typing`."""
    parameters = inspect.signature(Trainer).parameters
    assert list(parameters) == list(SETTINGS)
    for name, parameter in parameters.items():
        default = SETTINGS[name].default
        assert (parameter.default, type(parameter.default)) == (default, type(default)), name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_a_subclass_has_a_constructor_of_its_own():
    class Mine(Trainer):
        def __init__(self, folder, **settings):
            super().__init__(default_root_dir=folder, **settings)
            self.folder = folder

    assert list(inspect.signature(Mine).parameters) == ["folder", "settings"]
    trainer = Mine("there", **QUIET, max_epochs=3)
    assert (trainer.folder, trainer.default_root_dir, trainer.max_epochs) == ("there", "there", 3)
    with pytest.raises(TypeError, match="positional argument"):
        Trainer(3)


def test_every_default_is_allowed():
    given = {name: setting for name, setting in SETTINGS.items() if setting.default is not None}
    assert [name for name, setting in given.items() if setting.kind.problem(setting.default)] == []


def test_the_documentation_of_the_arguments_is_the_tables():
    text = inspect.getdoc(Trainer.__init__)
    for name, setting in SETTINGS.items():
        line = f"    {name} ({setting.kind.words}; default {setting.default!r}): {setting.meaning}"
        assert line in text.splitlines(), name


def test_every_setting_is_an_attribute_of_the_trainer():
    own = {
        "accelerator",
        "strategy",
        "precision",
        "logger",
        "callbacks",
        "default_root_dir",
        "max_epochs",
        "min_epochs",
    }
    trainer = Trainer(max_epochs=1)
    for name, setting in SETTINGS.items():
        value = getattr(trainer, name)
        assert not isinstance(value, type(setting)), name
        assert name in own or (value, type(value)) == (setting.default, type(setting.default)), name


def test_the_check_of_the_trainers_keys_is_the_tables():
    assert {name: FIELDS[f"trainer.{name}"] for name in SETTINGS} == {n: s.kind for n, s in SETTINGS.items()}
    with pytest.raises(ConfigError, match="trainer.my_own: unknown key"):
        check_config({**SOUND, "trainer": {"my_own": 1}})


def test_the_table_needs_no_torch():
    script = "import sys, espnet3_lite.trainer.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_lightnings_further_arguments_may_be_empty():
    assert Trainer(**QUIET, max_epochs=1, plugins=None, profiler=None, sync_batchnorm=False).max_epochs == 1


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("00:00:00:07", 7), ("01:02:03:04", 93784), ({"minutes": 2, "seconds": 1}, 121),
        (timedelta(hours=1), 3600),
    ],
)  # fmt: skip
def test_durations(given, seconds):
    assert parse_duration(given).total_seconds() == seconds
    assert Trainer(**QUIET, max_time=given).max_time.total_seconds() == seconds


@pytest.mark.parametrize("given", ["1h", "00:00:07", "00:00:00:xx", 90])
def test_what_is_no_duration(given):
    with pytest.raises(MisconfigurationException, match="is not a duration; give 'DD:HH:MM:SS'"):
        parse_duration(given)


@pytest.mark.parametrize("given", [{"hour": 1}, {"hours": "1"}])
def test_what_is_no_duration_in_parts(given):
    with pytest.raises(
        MisconfigurationException, match=r"is not a duration \(.*; give numbers of days, hours, minutes"
    ):
        Trainer(**QUIET, max_time=given)


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (1000, 0)), ({"max_steps": 5}, (-1, 0)), ({"max_time": "00:00:01:00"}, (-1, 0)),
        ({"max_epochs": 3, "max_steps": 5}, (3, 0)), ({"min_steps": 2, "max_epochs": 9}, (9, 1)),
        ({"min_epochs": 4, "max_epochs": 9}, (9, 4)), ({"max_epochs": -1}, (-1, 0)),
    ],
)  # fmt: skip
def test_limits_that_were_not_given(settings, limits):
    trainer = Trainer(**QUIET, **settings)
    assert (trainer.max_epochs, trainer.min_epochs) == limits


class Counts(LiteModule):
    """Stops a fit after its first batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = True
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("seen", 1.0)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_only_a_fit_warns_of_no_limit_and_names_the_users_line():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = Trainer(**QUIET)
        trainer.validate(Counts(), [torch.ones(1)], verbose=False)
        trainer.test(Counts(), [torch.ones(1)], verbose=False)
        assert trainer.predict(Counts(), [torch.ones(1)]) == [torch.ones(1)]
        Trainer(max_epochs=1000, **QUIET).fit(Counts(), [torch.ones(1)], [torch.ones(1)])
    with pytest.warns(UserWarning, match="`max_epochs` was not set") as warned:
        trainer.fit(Counts(), [torch.ones(1)], [torch.ones(1)])
    assert [warning.filename for warning in warned] == [__file__] and trainer.current_epoch == 1


def test_none_equals_absent():
    """But for `check_val_every_n_epoch`, where it has a meaning of its own."""
    names = SETTINGS.keys() - {"check_val_every_n_epoch", "strategy", "precision", "logger", "callbacks"}
    quiet = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = Trainer(**{**dict.fromkeys(SETTINGS), **quiet, "check_val_every_n_epoch": 1})
    plain = Trainer(**quiet)
    assert {name: getattr(trainer, name) for name in names} == {name: getattr(plain, name) for name in names}
    assert trainer.precision_plugin.name == "32-true" and type(trainer.strategy) is type(plain.strategy)
    assert Trainer(**quiet, check_val_every_n_epoch=None).check_val_every_n_epoch is None


def test_containers_of_another_configuration_are_lists_and_dicts():
    """Hydra hands callbacks and loggers to the trainer in OmegaConf's own list."""
    callback = Callback()
    trainer = Trainer(
        logger=UserList([CSVLogger("logs")]), callbacks=UserList([callback]), devices=UserList([0]), accelerator="cpu",
        max_epochs=1, max_time=UserDict(minutes=2), enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger] and callback in trainer.callbacks
    assert (trainer.devices, trainer.max_time) == ([0], timedelta(minutes=2))
    with pytest.raises(MisconfigurationException, match=r"logger\[1\] must be a logger"):
        Trainer(logger=UserList([CSVLogger("logs"), 3]))


@pytest.mark.parametrize(
    ("program", "started"),
    [
        ("lessons/train.py", "--nproc-per-node 2 train.py ...`"),
        ("/usr/bin/espnet3-lite", "--nproc-per-node 2 -m espnet3_lite train ...`"),
        ("site/espnet3_lite/__main__.py", "--nproc-per-node 2 -m espnet3_lite train ...`"),
    ],
)
def test_who_wants_several_processes_is_told_how_to_start_this_program(monkeypatch, program, started):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.warns(UserWarning, match="devices=2, but this is one process") as warned:
        Trainer(devices=2, accelerator="cpu", max_epochs=1, logger=False)
    (said,) = [str(one.message) for one in warned if "one process" in str(one.message)]
    assert said.endswith(started)


def test_who_wants_several_processes_in_a_notebook_is_told_to_start_a_script(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr(sys, "argv", ["site/ipykernel_launcher.py"])
    with pytest.warns(UserWarning, match="start it with `torchrun --nproc-per-node 2 YOUR_SCRIPT.py ...`"):
        Trainer(devices=2, accelerator="cpu", max_epochs=1, logger=False)


@pytest.mark.parametrize(("given", "told"), [("3", True), ("three", False)])
def test_a_number_as_text_is_told_to_be_text(given, told):
    with pytest.raises(MisconfigurationException) as caught:
        Trainer(max_epochs=given)
    assert ("; it is text: leave the quotes out, or in YAML write ${oc.decode:...}" in str(caught.value)) is told


def test_an_unknown_argument_is_told_with_the_nearest_one_at_the_end():
    with pytest.raises(TypeError, match=r"'max_epoch', only \['accelerator.*\]; did you mean 'max_epochs'\?$"):
        Trainer(max_epoch=3)
