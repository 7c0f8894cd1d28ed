"""`check_config`: broken configurations with the messages that a user sees, and sound ones that must pass."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softmax

from espnet3_lite import LiteModule
from espnet3_lite.config import Config, load_config
from espnet3_lite.config.fields import FIELDS
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.exceptions import MisconfigurationException

ONE = """
model: {_target_: torch.nn.Identity}
optimizer: {_target_: torch.optim.SGD, lr: 0.1}
"""
SEVERAL = """
model: {_target_: torch.nn.Identity}
optimizers:
  generator: {optimizer: {_target_: torch.optim.SGD, lr: 0.1}, params: generator}
  discriminator: {optimizer: {_target_: torch.optim.SGD, lr: 0.1}, params: discriminator}
"""

BASES = {"nothing": "", "one optimizer": ONE, "several optimizers": SEVERAL}


def _broken():
    """The cases in ``broken/``: a base, what is added to it, and the messages, one a line."""
    for path in sorted((Path(__file__).parent / "broken").glob("*.txt")):
        for case in path.read_text().split("==== ")[1:]:
            base, _, rest = case.partition("\n")
            text, _, errors = rest.partition("\n----\n")
            yield pytest.param(BASES[base], text, errors.splitlines(), id=f"{path.stem}: {text}")


def _load(tmp_path, monkeypatch, base, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "training.yaml").write_text(text)
    return load_config("base.yaml", "training.yaml")


@pytest.mark.parametrize(("base", "text", "errors"), list(_broken()))
def test_a_broken_configuration_gives_exactly_these_messages(tmp_path, monkeypatch, base, text, errors):
    monkeypatch.delenv("NO_SUCH_VARIABLE_HERE", raising=False)
    with pytest.raises(ConfigError) as caught:
        check_config(_load(tmp_path, monkeypatch, base, text))
    assert caught.value.errors == errors
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    assert str(caught.value) == "\n  ".join([f"{count} in the configuration:", *errors])


def test_all_mistakes_of_a_file_come_in_one_message(tmp_path, monkeypatch):
    text = (
        "trainer:\n  max_epoch: 3\n  precision: 17\noptimiser: x\nseed: ${sed}\nbest_model_criterion: [[a, 1, best]]\n"
    )
    with pytest.raises(MisconfigurationException) as caught:
        check_config(_load(tmp_path, monkeypatch, ONE, text))
    assert [error.partition(":")[0] for error in caught.value.errors] == [
        "seed (training.yaml, line 5)",
        "optimiser (training.yaml, line 4)",
        "trainer.precision (training.yaml, line 3)",
        "trainer.max_epoch (training.yaml, line 2)",
        "best_model_criterion[0][2] (training.yaml, line 6)",
    ]
    assert pickle.loads(pickle.dumps(caught.value)).errors == caught.value.errors


SOUND = [
    (ONE, ""),
    (ONE, "trainer:\nscheduler:\nscheduler_monitor:\noptimizers:\nschedulers:\nseed:\ninit:\nparallel:\n"),
    (ONE, "trainer: {devices: '${num_device}', logger: false, max_time: '00:12:00:00'}\nnum_device: 2\n"),
    (ONE, "trainer: {limit_train_batches: 0.5, limit_val_batches: 3, val_check_interval: 0.25, precision: 16}\n"),
    (ONE, "trainer: {callbacks: [{_target_: espnet3_lite.callbacks.Timer}], sync_batchnorm: false, profiler: null}\n"),
    (ONE, "scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}\nscheduler_monitor: valid/loss\n"),
    (ONE, "scheduler: {_target_: espnet2.schedulers.warmup_lr.WarmupLR, warmup_steps: 9}\nscheduler_interval: step\n"),
    (ONE, "scheduler: {_target_: espnet2.schedulers.warmup_reducelronplateau.WarmupReduceLROnPlateau, patience: 1}\n"),
    (ONE, "best_model_criterion: [[valid/loss, 3, min], [valid/loss, 1, max], [valid/acc, -1, max]]\n"),
    (ONE, "model: {_target_: torch.nn.Linear, in_features: 1, out_features: 1, freeze_param: [weight]}\n"),
    (ONE, "dataloader: {train: {batch_size: 4, num_workers: 0, pin_memory: true, iter_factory: null}, valid: {}}\n"),
    (ONE, "inference_dir: x\nmetrics: [1]\nencoder_size: 3\nmode: fast\nupload_model: {broken: '${no.such.key}'}\n"),
    (ONE, "fit: {ckpt_path: exp/last.ckpt}\nparallel: {env: local, n_workers: 8, options: {memory_limit: 1GB}}\n"),
    (SEVERAL, ""),
    (SEVERAL, "trainer: {gan: {generator_first: true, skip_discriminator_prob: 0.5, no_forward_run: false}}"),
    (SEVERAL, "trainer: {gradient_clip_val: 0, gradient_clip_algorithm: norm, strategy: ddp}\n"),
    (
        SEVERAL,
        "schedulers:\n"
        "  discriminator: {scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}, monitor: valid/d_loss}\n"
        "  generator: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}, interval: step}\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("base", "text"), SOUND)
def test_a_sound_configuration_passes(tmp_path, monkeypatch, base, text):
    config = _load(tmp_path, monkeypatch, base, text)
    before = config.to_container(resolve=False)
    assert check_config(config) is None
    assert config.to_container(resolve=False) == before


def _one_loader(text):
    return f"dataloader: {{train: {text}, valid: {{}}}}"


def _batches(text):
    factory = "espnet2.iterators.sequence_iter_factory.SequenceIterFactory"
    return _one_loader(f"{{iter_factory: {{_target_: {factory}, batches: {{{text}, shape_files: [a]}}}}}}")


@pytest.mark.parametrize(
    "text",
    [
        _batches("type: unsorted, batch_size: 2, batch_bins: 0"),
        _one_loader("{num_shards: 1, batch_size: 2}"),
        "freeze_param: [encoder, 'decoder.output']",
        "dataloader: {train: {batch_size: 2}}\ntrainer: {limit_val_batches: 0}",
        "dataloader: {train: {batch_size: 2}}\nfit: {val_dataloaders: {_target_: builtins.list}}",
        "trainer: {max_time: {hours: 1.5, minutes: 3}, logger: {_target_: lightning.pytorch.loggers.CSVLogger}}",
        "sampler: {_target_: builtins.list}\ndataloader: {train: {shuffle: false}, valid: {}}",
        "batch_sampler: {_target_: builtins.list}\ndataloader: {train: {batch_size: 1, drop_last: false}, valid: {}}",
        _batches("_target_: torch.utils.data.BatchSampler, sampler: s, batch_size: 2, drop_last: false").replace(
            ", shape_files: [a]", ""
        ),
    ],
)
def test_neighbours_of_the_broken_keys_pass(tmp_path, monkeypatch, text):
    check_config(_load(tmp_path, monkeypatch, ONE, text))


def test_a_failed_interpolation_inside_of_a_list_or_mapping_is_reported_alone(tmp_path, monkeypatch):
    text = (
        "model: {freeze_param: ['${nope}', 3]}\n"
        "trainer: {callbacks: ['${nope}'], colour: '${nope}', profiler: ['${nope}']}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_config(_load(tmp_path, monkeypatch, ONE, text))
    missing = "'${nope}' names a key that is missing: the configuration has no 'nope'"
    assert caught.value.errors == [
        f"model.freeze_param[0] (training.yaml, line 1): {missing}",
        f"trainer.callbacks[0] (training.yaml, line 2): {missing}",
        f"trainer.colour (training.yaml, line 2): {missing}",
        f"trainer.profiler[0] (training.yaml, line 2): {missing}",
        "trainer.colour (training.yaml, line 2): unknown key",
    ]


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("optimizer_g", None),
        ("datasets", "datasets: unknown key; did you mean 'dataset'?"),
        ("scheduler_intervall", "scheduler_intervall: unknown key; did you mean 'scheduler_interval'?"),
        ("models", "models: unknown key; did you mean 'model'?"),
        ("units", None),
        ("train_config", None),
    ],
)
def test_top_level_keys_are_complained_of_only_where_clearly_misspelt(key, complaint):
    config = {"model": {"_target_": "torch.nn.Identity"}, "optimizer": {"_target_": "torch.optim.SGD"}, key: "x"}
    if complaint is None:
        check_config(config)
    else:
        with pytest.raises(ConfigError) as caught:
            check_config(config)
        assert caught.value.errors == [complaint]
    check_config({**config, "note": f"${{{key}}}"})  # what others refer to is a variable of the user's own


def test_a_failed_interpolation_is_reported_once_and_leads_to_no_further_complaint():
    config = {"model": "${modle}", "optimizer": "${sgd}", "sgd": {"_target_": "${lost}", "lr": 1}, "trainer": "${gone}"}
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert caught.value.errors == [
        "model: '${modle}' names a key that is missing: the configuration has no 'modle'; did you mean 'model'?",
        "sgd._target_: '${lost}' names a key that is missing: the configuration has no 'lost'",
        "trainer: '${gone}' names a key that is missing: the configuration has no 'gone'",
    ]


class Gan(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tts = torch.nn.ModuleDict({"generator": torch.nn.Linear(1, 1), "discriminator": torch.nn.Linear(1, 1)})
        self.my_generator = torch.nn.Linear(1, 1)
        self.my_generator.requires_grad_(False)


def _several(**selectors):
    blocks = {
        name: {"optimizer": {"_target_": "torch.optim.SGD"}, "params": params} for name, params in selectors.items()
    }
    return Config.create({"optimizers": blocks})


def test_with_the_model_at_hand_its_own_keys_are_not_needed():
    check_config(_several(g="generator", d="discriminator"), module=Gan())
    check_config(Config.create({"optimizer": {"_target_": "torch.optim.SGD"}}), module=Gan())


@pytest.mark.parametrize(
    ("selectors", "errors"),
    [
        (
            {"g": "generator", "d": "discriminater"},
            [
                "optimizers.d.params: 'discriminater' selects no trainable parameter; did you mean 'discriminator'?",
                "optimizers: no optimizer selects 'tts.discriminator.weight', 'tts.discriminator.bias'",
            ],
        ),
        (
            {"g": "tts", "d": "discriminator"},
            [
                "optimizers.d.params: 'discriminator' selects 'tts.discriminator.weight', and so does "
                "optimizers.g.params 'tts'; 'tts.generator' in optimizers.g.params would tell them apart",
            ],
        ),
        ({"g": "generator"}, ["optimizers: no optimizer selects 'tts.discriminator.weight', 'tts.discriminator.bias'"]),
        (
            {"g": "generator", "d": "my_generator"},
            [
                "optimizers.d.params: 'my_generator' selects no trainable parameter; did you mean 'generator'?",
                "optimizers: no optimizer selects 'tts.discriminator.weight', 'tts.discriminator.bias'",
            ],
        ),
        (
            {"g": "generator", "d": ""},
            [
                "optimizers.d.params: '' selects nothing; name a dotted part of the parameters' names",
            ],
        ),
    ],
)
def test_selectors_are_checked_against_the_model(selectors, errors):
    with pytest.raises(ConfigError) as caught:
        check_config(_several(**selectors), module=Gan())
    assert caught.value.errors == errors


def test_the_table_of_keys_is_well_formed():
    for path, kind in FIELDS.items():
        assert re.fullmatch(r"[a-z_*]+(\.[a-z_*]+)*", path), path
        parent = path.rpartition(".")[0]
        assert not parent or parent in FIELDS, f"{path} has no parent in the table"
        assert kind.words and kind.accepts(object) in (True, False)


class Steps(LiteModule):
    """Makes its optimizer itself."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_configuration_made_in_python_may_hold_classes_and_objects():
    sgd, plateau = torch.optim.SGD, torch.optim.lr_scheduler.ReduceLROnPlateau
    sound = {"model": {"_target_": torch.nn.Identity}, "optimizer": {"_target_": sgd, "lr": 0.1}, "act": torch.nn.ReLU,
             "made": object(), "lengths": "${made}"}  # fmt: skip
    check_config(sound)
    check_config({"model": {"_target_": Steps}})
    with pytest.raises(ConfigError) as caught:
        check_config({**sound, "optimizer": {"_target_": sgd, "rate": 0.1}, "scheduler": {"_target_": plateau}})
    assert [str(error) for error in caught.value.errors] == [
        "scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau steps on a metric; name it in 'scheduler_monitor', "
        "for example scheduler_monitor: valid/loss",
        "optimizer.rate: torch.optim.sgd.SGD takes no argument 'rate'",
    ]


def test_a_class_is_written_by_the_name_that_finds_it_again():
    config = Config.create({"optimizer": {"_target_": torch.optim.SGD}, "act": softmax, "of": len})
    assert (
        config.to_yaml()
        == "optimizer:\n  _target_: torch.optim.sgd.SGD\nact: torch.nn.functional.softmax\nof: builtins.len\n"
    )
    with pytest.raises(MisconfigurationException, match="YAML cannot hold a function"):
        Config.create({"act": lambda x: x}).to_yaml()
