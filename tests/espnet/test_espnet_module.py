"""`ESPnetModule` and `ESPnetTrainer`: what a model may return, what is logged, which callbacks a file gives."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from espnet3_lite import ESPnetModule, ESPnetTrainer, LiteModule, MisconfigurationException, OptimizationStep, Trainer
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from espnet3_lite.callbacks.base import Callback
from espnet3_lite.callbacks.showing.screen import end_report, results
from espnet3_lite.config import Config
from espnet3_lite.config.rules import selects
from espnet3_lite.config.schema import ConfigError
from espnet3_lite.espnet import status_file
from espnet3_lite.espnet.status_file import StatusFile
from espnet3_lite.loggers import CSVLogger

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}
DEFAULT = [
    "ModelCheckpoint", "ModelCheckpoint", "AverageCheckpointsCallback", "LearningRateMonitor", "MetricsLogger",
    "TQDMProgressBar", "ModelSummary", "StatusFile",
]  # fmt: skip
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}


class Model(torch.nn.Module):
    """Loss: the mean of ``weight * x``. `answer`, if given, makes of (loss, stats, weight) what is returned."""

    def __init__(self, answer=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.answer = answer or (lambda loss, stats, weight: (loss, stats, weight))

    def forward(self, x):
        loss = (self.weight * x).mean()
        return self.answer(loss, {"loss": loss.detach()}, torch.tensor(float(len(x))))


class Gan(torch.nn.Module):
    """Two parts with a parameter each; `answer` makes of the two losses what is returned as the loss."""

    def __init__(self, answer=None):
        super().__init__()
        self.generator, self.discriminator = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        self.answer = answer or (lambda g, d: [OptimizationStep(g, "generator"), OptimizationStep(d, "discriminator")])

    def forward(self, x):
        g, d = self.generator(x).square().mean(), self.discriminator(x).square().mean()
        return self.answer(g, d), {"loss": (g + d).detach(), "none": None}, None


NAMED = {
    "optimizers": {
        "generator": {"optimizer": SGD, "params": "generator"},
        "discriminator": {"optimizer": SGD, "params": "discriminator"},
    }
}


def collate(samples):
    return [str(i) for i in range(len(samples))], {"x": torch.tensor(samples).reshape(-1, 1)}


def loader(*values, size=2):
    return DataLoader(list(values), batch_size=size, collate_fn=collate)


def train(module, exp_dir, train_values=(1.0, 2.0, 3.0, 4.0), valid_values=(1.0, 2.0, 6.0), **settings):
    trainer = ESPnetTrainer(module, exp_dir, {"max_epochs": 1, **QUIET, **settings})
    trainer.fit(loader(*train_values), loader(*valid_values) if valid_values else None)
    return trainer


def names(trainer):
    return [type(callback).__name__ for callback in trainer.trainer.callbacks]


# ---- what a model returns ------------------------------------------------------------------------------------------


def test_values_are_logged_by_mode_and_weighted(tmp_path):
    trainer = train(ESPnetModule(Model(), {"optimizer": {**SGD, "lr": 0.0}}), tmp_path)
    assert trainer.trainer.callback_metrics["train/loss"] == 3.5  # the last batch's
    assert trainer.trainer.callback_metrics["valid/loss"] == 3.0  # (2 * 1.5 + 1 * 6) / 3


def test_none_is_left_out_and_numbers_are_logged(tmp_path):
    model = Model(lambda loss, stats, weight: (loss, {**stats, "nothing": None, "constant": 2}, weight))
    metrics = train(ESPnetModule(model, {"optimizer": SGD}), tmp_path).trainer.callback_metrics
    assert {name for name in metrics if name.startswith("valid/")} == {"valid/loss", "valid/constant"}
    assert metrics["valid/constant"] == 2.0


def test_a_modules_own_log_gets_each_value(tmp_path):
    class Doubles(ESPnetModule):
        def log(self, name, value, **arguments):
            super().log(name, value * 2, **arguments)

    settings = {"optimizer": {**SGD, "lr": 0.0}}
    metrics = train(Doubles(Model(), settings), tmp_path / "overridden").trainer.callback_metrics
    assert (metrics["train/loss"], metrics["valid/loss"]) == (7.0, 6.0)  # 3.5 and 3 without it
    module, given = ESPnetModule(Model(), settings), []
    module.log = lambda name, value, **arguments: given.append((name, arguments))
    train(module, tmp_path / "replaced", valid_values=())
    assert given == [("train/loss", {"prog_bar": True, "batch_size": 2.0})] * 2


def test_without_a_weight_the_batchs_size_counts(tmp_path):
    model = Model(lambda loss, stats, weight: (loss, stats, None))
    trainer = train(ESPnetModule(model, {"optimizer": {**SGD, "lr": 0.0}}), tmp_path)
    assert trainer.trainer.callback_metrics["valid/loss"] == 3.0


def test_the_weight_is_the_models_own(tmp_path):
    model = Model(lambda loss, stats, weight: (loss, stats, torch.tensor(1.0)))
    trainer = train(ESPnetModule(model, {"optimizer": {**SGD, "lr": 0.0}}), tmp_path)
    assert trainer.trainer.callback_metrics["valid/loss"] == 3.75  # (1.5 + 6) / 2


@pytest.mark.parametrize("form", [float, lambda w: np.float32(w), lambda w: np.array([w]), lambda w: w.reshape(1)])
def test_a_weight_and_a_value_may_be_any_one_number(form, tmp_path):
    one = torch.tensor(1.0)
    model = Model(lambda loss, stats, weight: (loss, {"loss": form(stats["loss"])}, form(one)))
    trainer = train(ESPnetModule(model, {"optimizer": {**SGD, "lr": 0.0}}), tmp_path)
    assert trainer.trainer.callback_metrics["valid/loss"] == 3.75


@pytest.mark.parametrize("weight", ["2", torch.ones(2), np.ones(2), [1]])
def test_a_weight_that_is_no_number(weight, tmp_path):
    model = Model(lambda loss, stats, _: (loss, stats, weight))
    with pytest.raises(MisconfigurationException, match="the weight must be a number, a tensor with one element or No"):
        train(ESPnetModule(model, {"optimizer": SGD}), tmp_path)


@pytest.mark.parametrize("value", ["high", torch.ones(2), np.ones(2), [1.0]])
def test_a_value_that_is_no_number_is_named(value, tmp_path):
    model = Model(lambda loss, stats, weight: (loss, {"acc": value}, weight))
    with pytest.raises(ValueError, match="valid/acc"):
        train(ESPnetModule(model, {"optimizer": SGD}), tmp_path, num_sanity_val_steps=1)


@pytest.mark.parametrize(
    ("bad", "shown"), [(float("nan"), "nan"), (torch.tensor(float("inf")), "inf"), (-2.0, "-2.0"), (-1, "-1.0")]
)
def test_a_weight_that_is_not_sound_skips_the_batch_and_says_so(bad, shown, tmp_path):
    """As under torchrun, where it would spoil the mean over the ranks; in validation it would spoil the mean."""
    model = Model(lambda loss, stats, weight: (loss, stats, bad if float(stats["loss"]) == 1.5 else weight))
    module = ESPnetModule(model, {"optimizer": {**SGD, "lr": 0.0}})
    with pytest.warns(UserWarning) as caught:
        trainer = train(module, tmp_path)
    said = [str(warning.message) for warning in caught]
    assert any(f"the weight is {shown}" in text and "batch 0" in text for text in said)
    assert any("batches 0 have a loss that is not finite, or a weight that is negative" in text for text in said)
    assert trainer.trainer.global_step == 1
    assert trainer.trainer.callback_metrics["train/loss"] == 3.5
    assert trainer.trainer.callback_metrics["valid/loss"] == 6.0  # the second batch's alone


def test_a_plain_modules_attribute_of_that_name_is_its_own_affair():
    class Plain(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer, self.batch_weight = torch.nn.Linear(1, 1), torch.tensor([-1.0, float("nan")])

        def training_step(self, batch, batch_idx):
            return self.layer(batch[1]["x"]).mean()

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(Plain(), loader(1.0, 2.0, 3.0), loader(1.0))
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({"x": torch.ones(2, 1), "y": 1}, r"got dict with keys \['x', 'y'\]; is dataloader.collate_fn set"),
        ([torch.ones(2, 1)], "got list of length 1; is"),
        ((torch.ones(2, 1), torch.ones(2)), "got tuple of length 2; is"),
        (torch.ones(2, 1), "got Tensor; is"),
    ],
)
def test_what_is_no_batch(batch, given, tmp_path):
    trainer = ESPnetTrainer(ESPnetModule(Model(), {"optimizer": SGD}), tmp_path, {"max_epochs": 1, **QUIET})
    with pytest.raises(MisconfigurationException, match=rf"a batch must be \(uids, {{name: tensor}}\), {given}"):
        trainer.fit([batch])


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (["speech"], "missing a required argument: 'x'"),
        (["x", "x_lengths"], "got an unexpected keyword argument 'x_lengths'"),
    ],
)
def test_a_batch_whose_keys_are_no_arguments_of_the_model(keys, error, tmp_path):
    trainer = ESPnetTrainer(ESPnetModule(Model(), {"optimizer": SGD}), tmp_path, {"max_epochs": 1, **QUIET})
    message = rf"Model.forward\(x\) does not fit the batch, whose keys are {re.escape(str(keys))}: {error}. The keys of"
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit([(["a"], dict.fromkeys(keys, torch.ones(1, 1)))])


def test_a_type_error_within_a_model_stays_what_it_is(tmp_path):
    def fails(*result):
        raise TypeError("of the model's own")

    with pytest.raises(TypeError, match="^of the model's own(\n|$)"):
        train(ESPnetModule(Model(fails), {"optimizer": SGD}), tmp_path)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *r: r[0], r"Model.forward must return \(loss, stats, weight\), got Tensor"),
        (lambda *r: r[:2], r"Model.forward must return \(loss, stats, weight\), got tuple of length 2"),
        (lambda *r: list(r), r"must return \(loss, stats, weight\), got list of length 3"),
        (lambda *r: (r[0], [r[0]], r[2]), "Model.forward: stats must be a dict of values to log, got list"),
        (lambda *r: (OptimizationStep(r[0], "g"), r[1], r[2]), "or None; got OptimizationStep"),
        (lambda *r: ([r[0]], r[1], r[2]), "or None; got list of"),
    ],
)
def test_what_a_model_must_not_return(answer, message, tmp_path):
    with pytest.raises(MisconfigurationException, match=message):
        train(ESPnetModule(Model(answer), {"optimizer": SGD}), tmp_path)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda g, d: g + d, r"must be an OptimizationStep or a list of them, .* got Tensor"),
        (lambda g, d: [g, d], r"must be an OptimizationStep or a list of them, .* got list of \['Tensor'\]"),
        (lambda g, d: [], "empty list of optimization steps; return at least one of"),
        (lambda g, d: OptimizationStep(g, "generater"), "no such optimizer; .*did you mean 'generator'"),
        (lambda g, d: [OptimizationStep(g, "generator")] * 2, "stands twice in one list"),
    ],
)
def test_what_a_model_with_several_optimizers_must_not_return(answer, message, tmp_path):
    with pytest.raises(MisconfigurationException, match=message):
        train(ESPnetModule(Gan(answer), NAMED), tmp_path)


def test_a_count_of_updates_is_no_mean_and_takes_no_room_in_the_bar(tmp_path):
    trainer = train(ESPnetModule(Gan(), NAMED), tmp_path, max_epochs=3, logger=None).trainer
    names = [f"train/{name}/update_step" for name in ("generator", "discriminator")]
    found = results(trainer)
    assert [found[name] for name in names] == [6.0, 6.0]  # the last epoch's mean is 5.5
    assert found["train/generator/loss"] != float(trainer.callback_metrics["train/generator/loss"])  # that is a mean
    assert [line for line in end_report(trainer) if "update_step" in line] == [f"  {n} 6" for n in sorted(names)]
    assert [name for name in trainer.progress_bar_metrics if "update_step" in name] == []
    with (Path(trainer.loggers[0].log_dir) / "metrics.csv").open() as file:
        logged = next(csv.reader(file))
    assert "train/generator/loss_epoch" in logged and "train/generator/update_step_epoch" not in logged


def test_named_losses_and_updates_are_logged(tmp_path):
    metrics = train(ESPnetModule(Gan(), NAMED), tmp_path).trainer.callback_metrics
    assert {name for name in metrics if name.startswith("train/")} == {
        "train/loss", "train/generator/loss", "train/discriminator/loss", "train/generator/update_step",
        "train/discriminator/update_step",
    }  # fmt: skip
    assert metrics["train/generator/update_step"] == metrics["train/discriminator/update_step"] == 2
    assert float(metrics["valid/generator/loss"] + metrics["valid/discriminator/loss"]) == pytest.approx(
        float(metrics["valid/loss"])
    )


def test_a_tuple_and_a_single_step_will_do(tmp_path):
    both = Gan(lambda g, d: (OptimizationStep(g, "generator"), OptimizationStep(d, "discriminator")))
    trainer = train(ESPnetModule(both, NAMED), tmp_path / "both")
    assert [slot.update_step for slot in trainer.trainer.plan.slots.values()] == [2, 2]
    trainer = train(ESPnetModule(Gan(lambda g, d: OptimizationStep(g, "generator")), NAMED), tmp_path / "one")
    assert [slot.update_step for slot in trainer.trainer.plan.slots.values()] == [2, 0]


def test_the_state_dict_is_the_models_own():
    module = ESPnetModule(Model(), {"optimizer": SGD})
    assert list(module.state_dict()) == ["weight"]
    module.load_state_dict({"weight": torch.tensor([5.0])})
    assert module.model.weight.item() == 5.0


# ---- configuration -------------------------------------------------------------------------------------------------


def test_freeze_param_takes_whole_parts_of_names(caplog):
    caplog.set_level("INFO")
    config = {"optimizer": SGD, "model": {"freeze_param": ["generator", "discriminator.bias", "discr", "nothing.here"]}}
    module = ESPnetModule(Gan(), config)
    trained = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
    assert trained == ["discriminator.weight"]
    assert "model.freeze_param: 'generator' froze 2 parameters" in caplog.text
    assert "model.freeze_param selector 'discr' did not match any model parameter." in caplog.text
    optimizer = module.configure_optimizers()
    assert [parameter.shape for group in optimizer.param_groups for parameter in group["params"]] == [(1, 1)]


def test_espnet2s_freeze_param_at_the_top_freezes_too(caplog):
    caplog.set_level("INFO")
    model = Gan()
    ESPnetModule(model, {"optimizer": SGD, "freeze_param": ["generator.weight", "nothing"]})
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["generator.weight"]
    assert "freeze_param: 'generator.weight' froze 1 parameters" in caplog.text
    assert "freeze_param selector 'nothing' did not match any model parameter." in caplog.text


def test_selectors_match_whole_parts():
    assert selects("generator", "generator.weight") and selects("tts.generator", "model.tts.generator.0.weight")
    assert not selects("generator", "my_generator.weight") and not selects("gen", "generator.weight")


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
def test_the_single_schedulers_interval(interval):
    config = {"optimizer": SGD, "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}}
    returned = ESPnetModule(Model(), {**config, "scheduler_interval": interval}).configure_optimizers()
    assert returned["lr_scheduler"]["interval"] == (interval or "step")
    assert ESPnetModule(Model(), {"optimizer": SGD}).configure_optimizers().defaults["lr"] == 0.1


def test_null_is_as_good_as_absent():
    config = {
        "optimizer": SGD,
        "scheduler": None,
        "optimizers": None,
        "dataset": None,
        "dataloader": None,
        "init": None,
    }
    module = ESPnetModule(Model(), config)
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)
    assert module.train_dataloader is None and module.on_before_optimizer_step is None


def test_monitor_on_a_scheduler_without_a_metric():
    config = {
        "optimizer": SGD, "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1},
        "scheduler_interval": "epoch", "scheduler_monitor": "valid/loss",
    }  # fmt: skip
    with pytest.raises(MisconfigurationException, match="takes no metric"):
        ESPnetModule(Model(), config).configure_optimizers()


def test_mistakes_are_told_together():
    config = {"optimizers": {"generator": {"optimizer": SGD}, "discriminator": {"params": "discriminator"}}}
    with pytest.raises(ConfigError) as error:
        ESPnetModule(Gan(), config).configure_optimizers()
    assert "optimizers.generator" in str(error.value) and "optimizers.discriminator" in str(error.value)


def test_collect_stats_needs_a_place(tmp_path):
    config = {"optimizer": SGD, "dataset": {"_target_": "espnet3.components.data.data_organizer.DataOrganizer"}}
    with pytest.raises(MisconfigurationException, match="stats_dir"):
        ESPnetModule(Model(), config).collect_stats()


def test_a_dataset_without_data(tmp_path):
    config = {"optimizer": SGD, "dataloader": {"train": {"batch_size": 1}, "valid": {"batch_size": 1}}}
    trainer = ESPnetTrainer(ESPnetModule(Model(), config), tmp_path, {**QUIET, "max_epochs": 1})
    with pytest.raises(
        MisconfigurationException, match="`dataloader` but `dataset` gives no 'train' data; name it in dataset.train$"
    ):
        trainer.fit()
    trainer.model.train_dataset = [1]
    with pytest.raises(MisconfigurationException, match="dataset.valid; to train without.*limit_val_batches: 0"):
        trainer.model.val_dataloader()


# ---- the trainer ---------------------------------------------------------------------------------------------------


def module():
    return ESPnetModule(Model(), {"optimizer": SGD})


def test_default_callbacks(tmp_path):
    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1})
    assert sorted(names(trainer)) == sorted(DEFAULT)
    assert isinstance(trainer.trainer.loggers[0], CSVLogger)
    assert trainer.trainer.default_root_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"logger": False}, {"LearningRateMonitor"}),
        ({"logger": []}, {"LearningRateMonitor"}),
        ({"enable_progress_bar": False}, {"TQDMProgressBar"}),
        ({"enable_model_summary": False}, {"ModelSummary"}),
        ({"enable_checkpointing": False}, {"ModelCheckpoint", "AverageCheckpointsCallback"}),
        ({"logger": None, "enable_progress_bar": None, "enable_checkpointing": None, "callbacks": None}, set()),
    ],
)
def test_what_is_switched_off_leaves_out_the_callbacks_that_need_it(settings, missing, tmp_path):
    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1, **settings})
    assert sorted(names(trainer)) == sorted(name for name in DEFAULT if name not in missing)


def test_callbacks_of_the_configuration_come_beside_the_default_ones(tmp_path):
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "valid/loss", "patience": 7}
    timer = {"_target_": "lightning.pytorch.callbacks.Timer", "duration": "00:01:00:00"}
    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1, "callbacks": [stop, timer]})
    assert sorted(names(trainer)) == sorted([*DEFAULT, "EarlyStopping", "Timer"])
    assert [c.patience for c in trainer.trainer.callbacks if isinstance(c, EarlyStopping)] == [7]
    trainer = ESPnetTrainer(module(), tmp_path, Config.create({"max_epochs": 1, "callbacks": timer}))
    assert any(isinstance(callback, Timer) for callback in trainer.trainer.callbacks)


def test_criteria_and_intervals(tmp_path):
    settings = {"max_epochs": 1, "log_every_n_steps": 30}
    trainer = ESPnetTrainer(module(), tmp_path, settings, [["valid/acc", 2, "max"], ["valid/loss", 5, "min"]])
    best = [(c.monitor, c.save_top_k, c.mode) for c in trainer.trainer.checkpoint_callbacks if c.monitor]
    assert best == [("valid/acc", 2, "max"), ("valid/loss", 5, "min")]
    assert [c.refresh_rate for c in trainer.trainer.callbacks if isinstance(c, TQDMProgressBar)] == [30]
    last = next(callback for callback in trainer.trainer.checkpoint_callbacks if callback.monitor is None)
    assert isinstance(last, ModelCheckpoint) and (last.dirpath, last.save_last) == (str(tmp_path), "link")


def test_a_list_of_loggers(tmp_path):
    loggers = [
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path), "name": name}
        for name in ("first", "second")
    ]
    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1, "logger": loggers})
    assert [logger.name for logger in trainer.trainer.loggers] == ["first", "second"]
    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1, "logger": loggers[1]})
    assert [logger.name for logger in trainer.trainer.loggers] == ["second"]


def test_null_means_batches_over_epochs_in_one_place_alone(tmp_path):
    trainer = ESPnetTrainer(module(), tmp_path, {"check_val_every_n_epoch": None, "val_check_interval": 5})
    assert (trainer.trainer.check_val_every_n_epoch, trainer.trainer.val_check_interval) == (None, 5)
    trainer = ESPnetTrainer(module(), tmp_path, {"check_val_every_n_epoch": None, "val_check_interval": None})
    assert (trainer.trainer.check_val_every_n_epoch, trainer.trainer.val_check_interval) == (1, 1.0)


@pytest.mark.parametrize("setting", [{"gradient_clip_val": 1.0}, {"gradient_clip_algorithm": "value"}])
def test_clipping_for_several_optimizers_belongs_to_each(setting, tmp_path):
    name = next(iter(setting))
    with pytest.raises(MisconfigurationException, match=f"trainer.{name}.*optimizers.<name>.{name}"):
        ESPnetTrainer(ESPnetModule(Gan(), NAMED), tmp_path, setting)


@pytest.mark.parametrize("setting", [{"gradient_clip_val": 0}, {"gradient_clip_algorithm": "norm"}])
def test_settings_that_say_nothing_of_clipping_are_let_pass(setting, tmp_path):
    trainer = train(ESPnetModule(Gan(), NAMED), tmp_path, **setting)
    assert trainer.trainer.global_step == 2


def test_init_stands_at_the_top(tmp_path):
    with pytest.raises(MisconfigurationException, match="trainer.init: `init` belongs to the top"):
        ESPnetTrainer(module(), tmp_path, {"init": "xavier_uniform"})


def test_an_unknown_setting(tmp_path):
    with pytest.raises(TypeError, match="max_epoch.*max_epochs"):
        ESPnetTrainer(module(), tmp_path, {"max_epoch": 3})


def test_the_status_of_a_run(tmp_path):
    train(module(), tmp_path, max_epochs=2)
    status = json.loads((tmp_path / "status.json").read_text())
    assert {key: status[key] for key in ("call", "status", "epoch", "global_step", "error", "signal")} == {
        "call": "fit", "status": "finished", "epoch": 1, "global_step": 4, "error": None, "signal": None,
    }  # fmt: skip
    with pytest.raises(MisconfigurationException):
        train(ESPnetModule(Model(lambda *r: r[0]), {"optimizer": SGD}), tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "failed" and status["error"].startswith("MisconfigurationException: Model.forward")


def test_validate_gives_the_means(tmp_path):
    trainer = ESPnetTrainer(module(), tmp_path, dict(QUIET))
    assert trainer.validate(loader(1.0, 2.0, 6.0), verbose=False) == [{"valid/loss": 3.0}]


def test_the_folder_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(module(), None)
    assert sorted(path.name for path in Path("exp").iterdir()) == [
        "epoch0_step2_valid.loss.ckpt", "last.ckpt", "status.json", "step2.ckpt", "valid.loss.ave_1best.pth",
    ]  # fmt: skip


def test_the_status_is_the_fits_alone_and_a_resumed_one_says_where_it_is(tmp_path):
    train(module(), tmp_path, enable_checkpointing=True)
    before = (tmp_path / "status.json").read_bytes()
    ESPnetTrainer(module(), tmp_path, {"max_epochs": 1}).validate(loader(1.0))
    assert (tmp_path / "status.json").read_bytes() == before
    seen = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(json.loads((tmp_path / "status.json").read_text()))

    resumed = ESPnetTrainer(module(), tmp_path, {"max_epochs": 3, "logger": False})
    resumed.trainer.callbacks = [*resumed.trainer.callbacks, Looks()]
    resumed.fit(loader(1.0, 2.0, 3.0, 4.0), loader(1.0), ckpt_path=tmp_path / "last.ckpt")
    assert [(s["status"], s["epoch"], s["global_step"]) for s in seen] == [("running", 1, 2)]


@pytest.mark.parametrize(("every", "steps"), [(1e9, [0, 0, 2, 2, 4, 4]), (0.0, [0, 1, 2, 3, 4, 5])])
def test_the_status_of_a_run_that_runs_says_where_it_is(every, steps, tmp_path, monkeypatch):
    """What a reader sees, and what stays after a kill: each epoch, and within one as time goes by."""
    monkeypatch.setattr(status_file, "WRITE_EVERY", every)
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(json.loads((tmp_path / "status.json").read_text()))

    trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 3, "logger": False, "callbacks": None})
    trainer.trainer.callbacks = [*trainer.trainer.callbacks, Looks()]
    trainer.fit(loader(1.0, 2.0, 3.0, 4.0), loader(1.0))
    assert {state["status"] for state in seen} == {"running"}
    assert [(state["epoch"], state["epochs_done"]) for state in seen] == [(n, n) for n in (0, 0, 1, 1, 2, 2)]
    assert [state["global_step"] for state in seen] == steps
    ended = json.loads((tmp_path / "status.json").read_text())
    assert [ended[key] for key in ("status", "epoch", "epochs_done")] == ["finished", 2, 3]


def test_the_status_tells_a_failure_from_a_signal(tmp_path):
    class Ends(Callback):
        def __init__(self, act):
            super().__init__()
            self.act = act

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.act()

    def fail():
        raise ValueError("the data are broken")

    def interrupt():
        raise KeyboardInterrupt

    found = []
    for act, error in ((fail, ValueError), (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
                       (interrupt, SystemExit)):  # fmt: skip
        trainer = ESPnetTrainer(module(), tmp_path, {"max_epochs": 1, "logger": False})
        trainer.trainer.callbacks = [*trainer.trainer.callbacks, Ends(act)]
        with pytest.raises(error):
            trainer.fit(loader(1.0, 2.0, 3.0, 4.0), loader(1.0))
        status = json.loads((tmp_path / "status.json").read_text())
        found.append((status["status"], status["signal"], status["error"]))
    assert found == [
        ("failed", None, "ValueError: the data are broken"), ("interrupted", "SIGTERM", None),
        ("interrupted", None, "KeyboardInterrupt: "),
    ]  # fmt: skip


def test_a_status_that_cannot_be_written_is_warned_about_and_no_more(tmp_path):
    trainer = ESPnetTrainer(module(), tmp_path / "exp", {"max_epochs": 1, "logger": False})
    (tmp_path / "file").touch()
    status = next(callback for callback in trainer.trainer.callbacks if isinstance(callback, StatusFile))
    status.path = tmp_path / "file" / "status.json"
    with pytest.warns(UserWarning, match="file/status.json: could not be written: .*"):
        trainer.fit(loader(1.0), loader(1.0))
    assert trainer.trainer.global_step == 1


def test_fast_dev_run_writes_nothing(tmp_path):
    ESPnetTrainer(module(), tmp_path / "exp", {"fast_dev_run": True}).fit(loader(1.0), loader(1.0))
    assert list(tmp_path.iterdir()) == []
