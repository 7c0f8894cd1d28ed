"""`check_config`: broken configurations with the messages that a user sees, and sound ones that must pass."""

import pickle
import re

import pytest
import torch

from espnet3_lite.config import Config, load_config
from espnet3_lite.config.fields import FIELDS, TRAINER_ARGUMENTS
from espnet3_lite.config.schema import ConfigError, check_config
from espnet3_lite.exceptions import MisconfigurationException

EMPTY = ""
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

BROKEN = [
    (
        ONE,
        "trainer: {max_epoch: 3}",
        [
            "trainer.max_epoch (training.yaml, line 1): unknown key (its value is 3); did you mean 'max_epochs'?",
        ],
    ),
    (
        ONE,
        "trainer: {max_epochs: ten}",
        [
            "trainer.max_epochs (training.yaml, line 1): 'ten' is not a whole number of at least -1",
        ],
    ),
    (
        ONE,
        "trainer: {colour: blue}",
        [
            "trainer.colour (training.yaml, line 1): unknown key (its value is 'blue')",
        ],
    ),
    (
        ONE,
        "trainer: {enable_progress_bar: 1}",
        [
            "trainer.enable_progress_bar (training.yaml, line 1): 1 is not true or false",
        ],
    ),
    (
        ONE,
        "trainer: {limit_train_batches: 1.5}",
        [
            (
                "trainer.limit_train_batches (training.yaml, line 1): 1.5 is not a whole number of at least 0 "
                "or a fraction from 0.0 to 1.0"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {val_check_interval: 0}",
        [
            (
                "trainer.val_check_interval (training.yaml, line 1): 0 is not a whole number of at least 1 or a "
                "fraction above 0.0 and at most 1.0"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {accumulate_grad_batches: 0}",
        [
            "trainer.accumulate_grad_batches (training.yaml, line 1): 0 is not a whole number of at least 1",
        ],
    ),
    (
        ONE,
        "trainer: {gradient_clip_algorithm: nrom}",
        [
            (
                "trainer.gradient_clip_algorithm (training.yaml, line 1): 'nrom' is not 'norm' or 'value'; did "
                "you mean 'norm'?"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {gradient_clip_val: -1.0}",
        [
            "trainer.gradient_clip_val (training.yaml, line 1): -1.0 is not a number of at least 0",
        ],
    ),
    (
        ONE,
        "trainer: {precision: 16-true}",
        [
            (
                "trainer.precision (training.yaml, line 1): '16-true' is not '32-true', '64-true', "
                "'bf16-mixed', '16-mixed', '32', '64', 'bf16', '16', 32, 64 or 16; for half precision use "
                "bf16-mixed or 16-mixed"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {precision: bf16-mixd}",
        [
            (
                "trainer.precision (training.yaml, line 1): 'bf16-mixd' is not '32-true', '64-true', "
                "'bf16-mixed', '16-mixed', '32', '64', 'bf16', '16', 32, 64 or 16; did you mean 'bf16-mixed'?"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {strategy: deepspeed_stage_2}",
        [
            (
                "trainer.strategy (training.yaml, line 1): 'deepspeed_stage_2' is not 'auto', 'ddp', "
                "'fsdp' or 'ddp_find_unused_parameters_true'; DeepSpeed is not supported: use fsdp with "
                "one optimizer, ddp with several"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {strategy: {_target_: lightning.pytorch.strategies.DeepSpeedStrategy}}",
        [
            (
                "trainer.strategy (training.yaml, line 1): {'_target_': "
                "'lightning.pytorch.strategies.DeepSpeedStrategy'} is not 'auto', 'ddp', "
                "'fsdp' or 'ddp_find_unused_parameters_true'; DeepSpeed is not supported: use fsdp with "
                "one optimizer, ddp with several"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {strategy: ddp_spawn}",
        [
            (
                "trainer.strategy (training.yaml, line 1): 'ddp_spawn' is not 'auto', 'ddp', 'fsdp' or "
                "'ddp_find_unused_parameters_true'"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {accelerator: tpu}",
        [
            (
                "trainer.accelerator (training.yaml, line 1): 'tpu' is not 'auto', 'cpu', 'gpu' or "
                "'cuda'; did you mean 'gpu'?"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {max_time: '1:00:00'}",
        [
            (
                "trainer.max_time (training.yaml, line 1): '1:00:00' is not a duration 'DD:HH:MM:SS' or a "
                "mapping such as {hours: 2}"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {profiler: simple}",
        [
            (
                "trainer.profiler (training.yaml, line 1): 'simple' is not supported; there is no profiler; "
                "wrap the run in torch.profiler.profile(), or leave it out"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {plugins: [x]}",
        [
            (
                "trainer.plugins (training.yaml, line 1): ['x'] is not supported; plugins are Lightning's own; "
                "leave it out"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {sync_batchnorm: true}",
        [
            (
                "trainer.sync_batchnorm (training.yaml, line 1): True is not supported; use "
                "torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) in the model"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {devices: 0}",
        [
            (
                "trainer.devices (training.yaml, line 1): 0 is not a number of at least 1, -1 or 'auto' for "
                "all, or a list of them"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {callbacks: [{_target_: torch.nope.EarlyStopping}]}",
        [
            (
                "trainer.callbacks[0]._target_ (training.yaml, line 1): 'torch.nope.EarlyStopping': 'torch' has "
                "no 'nope'; did you mean 'ne'?"
            ),
        ],
    ),
    (
        ONE,
        "trainer: {callbacks: 3}",
        [
            "trainer.callbacks (training.yaml, line 1): 3 is not a mapping with _target_ or a list",
        ],
    ),
    (
        ONE,
        "trainer: [1]",
        [
            "trainer (training.yaml, line 1): [1] is not a mapping",
        ],
    ),
    (
        ONE,
        "optimiser: {_target_: torch.optim.SGD, lr: 0.1}",
        [
            "optimiser (training.yaml, line 1): unknown key; did you mean 'optimizer'?",
        ],
    ),
    (
        ONE,
        "trianer: {max_epochs: 3}",
        [
            "trianer (training.yaml, line 1): unknown key; did you mean 'trainer'?",
        ],
    ),
    (
        ONE,
        "seed: -1",
        [
            "seed (training.yaml, line 1): -1 is not a whole number of at least 0",
        ],
    ),
    (
        ONE,
        "seed: abc",
        [
            "seed (training.yaml, line 1): 'abc' is not a whole number of at least 0",
        ],
    ),
    (
        ONE,
        "init: xavier_unifrom",
        [
            (
                "init (training.yaml, line 1): 'xavier_unifrom' is not 'xavier_uniform', 'xavier_normal', "
                "'kaiming_uniform', 'kaiming_normal' or 'normal'; did you mean 'xavier_uniform'?"
            ),
        ],
    ),
    (
        ONE,
        "optimizers: {g: {optimizer: {_target_: torch.optim.SGD}, params: g}}",
        [
            "optimizers (training.yaml, line 1): stands beside 'optimizer'; remove one of them, or set it to null",
        ],
    ),
    (
        ONE,
        (
            "scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}\n"
            "schedulers: {g: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}}}"
        ),
        [
            "schedulers (training.yaml, line 2): stands beside 'scheduler'; remove one of them, or set it to null",
        ],
    ),
    (
        ONE,
        "optimizer: null",
        [
            "optimizer (training.yaml, line 1): is missing; give one optimizer, or several by name in 'optimizers'",
        ],
    ),
    (
        ONE,
        "optimizer: {_target_: torch.optim.Adm, lr: 0.1}",
        [
            (
                "optimizer._target_ (training.yaml, line 1): 'torch.optim.Adm': 'torch.optim' has no 'Adm'; did "
                "you mean 'Adam'?"
            ),
        ],
    ),
    (
        ONE,
        "optimizer: {_target_: torch.optim.SGD, lr: 0.1, weight_decy: 0.1}",
        [
            (
                "optimizer.weight_decy (training.yaml, line 1): torch.optim.SGD takes no argument "
                "'weight_decy'; did you mean 'weight_decay'?"
            ),
        ],
    ),
    (
        ONE,
        "scheduler: {_target_: torch.optim.lr_scheduler.StepLR, stepsize: 1}",
        [
            (
                "scheduler.stepsize (training.yaml, line 1): torch.optim.lr_scheduler.StepLR takes no argument "
                "'stepsize'; did you mean 'step_size'?"
            ),
        ],
    ),
    (
        ONE,
        ("scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}\nscheduler_interval: epochs"),
        [
            "scheduler_interval (training.yaml, line 2): 'epochs' is not 'step' or 'epoch'; did you mean 'epoch'?",
        ],
    ),
    (
        ONE,
        ("scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}\nscheduler_monitor: valid/loss"),
        [
            (
                "scheduler_monitor (training.yaml, line 2): 'valid/loss' has no use: "
                "torch.optim.lr_scheduler.StepLR.step() takes no metric; leave it out"
            ),
        ],
    ),
    (
        ONE,
        "scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}",
        [
            (
                "scheduler (training.yaml, line 1): torch.optim.lr_scheduler.ReduceLROnPlateau steps on a "
                "metric; name it in 'scheduler_monitor', for example scheduler_monitor: valid/loss"
            ),
        ],
    ),
    (
        ONE,
        "best_model_criterion: [[valid/loss, 3]]",
        [
            (
                "best_model_criterion[0] (training.yaml, line 1): ['valid/loss', 3] is not [metric, how many to "
                "keep, mode], such as ['valid/loss', 3, 'min']"
            ),
        ],
    ),
    (
        ONE,
        "best_model_criterion: [valid/loss, 3, min]",
        [
            (
                "best_model_criterion (training.yaml, line 1): ['valid/loss', 3, 'min'] is one criterion; write "
                "a list of such lists: [['valid/loss', 3, 'min']]"
            ),
        ],
    ),
    (
        ONE,
        "best_model_criterion: [[valid/loss, 3, mim]]",
        [
            "best_model_criterion[0][2] (training.yaml, line 1): 'mim' is not 'min' or 'max'; did you mean 'min'?",
        ],
    ),
    (
        ONE,
        "best_model_criterion: [[valid/loss, 0, min]]",
        [
            (
                "best_model_criterion[0][1] (training.yaml, line 1): 0 is not a number of checkpoints of at "
                "least 1, or -1 for all"
            ),
        ],
    ),
    (
        ONE,
        "best_model_criterion: [[valid/loss, 3, min], [valid/loss, 5, min]]",
        [
            (
                "best_model_criterion[1] (training.yaml, line 1): 'valid/loss' with 'min' is criterion 0 "
                "already; keep one of the two"
            ),
        ],
    ),
    (
        ONE,
        "fit: {ckpt_paht: last}",
        [
            "fit.ckpt_paht (training.yaml, line 1): unknown key (its value is 'last'); did you mean 'ckpt_path'?",
        ],
    ),
    (
        ONE,
        "fit: {weights_only: true}",
        [
            (
                "fit.weights_only (training.yaml, line 1): True is not supported; checkpoints are always read "
                "with weights_only=True; leave it out"
            ),
        ],
    ),
    (
        ONE,
        ("seed: ${sed}\nexp_dir: exp/${exp_tg}\nexp_tag: a"),
        [
            (
                "seed (training.yaml, line 1): '${sed}' names a key that is missing: the configuration has no "
                "'sed'; did you mean 'seed'?"
            ),
            (
                "exp_dir (training.yaml, line 2): 'exp/${exp_tg}' names a key that is missing: the "
                "configuration has no 'exp_tg'; did you mean 'exp_tag'?"
            ),
        ],
    ),
    (
        ONE,
        ("exp_dir: ${exp_tag}\nexp_tag: ${exp_dir}"),
        [
            "exp_dir (training.yaml, line 1): the interpolations go round in a cycle: exp_dir -> exp_tag -> exp_dir",
            "exp_tag (training.yaml, line 2): the interpolations go round in a cycle: exp_tag -> exp_dir -> exp_tag",
        ],
    ),
    (
        ONE,
        "stats_dir: ${oc.env:NO_SUCH_VARIABLE_HERE}/stats",
        [
            (
                "stats_dir (training.yaml, line 1): the environment variable 'NO_SUCH_VARIABLE_HERE' is not set "
                "and no default is given"
            ),
        ],
    ),
    (
        ONE,
        "dataloader: {train: {batchsize: 4}, valid: {}}",
        [
            (
                "dataloader.train.batchsize (training.yaml, line 1): unknown key (its value is 4); did you mean "
                "'batch_size'?"
            ),
        ],
    ),
    (
        ONE,
        "dataloader: {train: {batch_distribution: per-gpu}, valid: {}}",
        [
            (
                "dataloader.train.batch_distribution (training.yaml, line 1): 'per-gpu' is not 'per_gpu' or "
                "'global'; did you mean 'per_gpu'?"
            ),
        ],
    ),
    (
        ONE,
        "dataloader: {valid: {iter_factory: {_target_: builtins.dict, batches: {type: numels, batch_bins: 0}}}}",
        [
            (
                "dataloader.valid.iter_factory.batches.type (training.yaml, line 1): 'numels' is not "
                "'unsorted', 'sorted', 'folded', 'length' or 'numel'; did you mean 'numel'?"
            ),
            (
                "dataloader.valid.iter_factory.batches.batch_bins (training.yaml, line 1): 0 is not a whole "
                "number of at least 1"
            ),
            (
                "dataloader.valid.iter_factory.batches (training.yaml, line 1): the key 'shape_files' is missing, "
                "which type: numels needs"
            ),
        ],
    ),
    (
        ONE,
        "dataloader: {train: {multiple_iterator: true}, valid: {}}",
        [
            (
                "dataloader.train.multiple_iterator (training.yaml, line 1): True is not supported; use sharded "
                "data sets (total_shards, dist_world_size)"
            ),
        ],
    ),
    (
        ONE,
        "dataloader: {valdi: {batch_size: 4}}",
        [
            "dataloader.valdi (training.yaml, line 1): unknown key; did you mean 'valid'?",
        ],
    ),
    (
        ONE,
        "model: {_target_: no_such_package.Model}",
        [
            (
                "model._target_ (training.yaml, line 1): 'no_such_package.Model': there is no package "
                "'no_such_package'; is it installed, or its folder on PYTHONPATH?"
            ),
        ],
    ),
    (
        ONE,
        "model: {_target_: torch.nn.Linear, in_features: 3, out_feature: 2}",
        [
            (
                "model.out_feature (training.yaml, line 1): torch.nn.Linear takes no argument 'out_feature'; "
                "did you mean 'out_features'?"
            ),
        ],
    ),
    (
        ONE,
        "model: null",
        [
            "model (training.yaml, line 1): is missing; name its class in model._target_",
        ],
    ),
    (
        ONE,
        "task: espnet2.tasks.asr.ASRTask",
        [
            (
                "task (training.yaml, line 1): 'espnet2.tasks.asr.ASRTask' builds the model with espnet2, which "
                "is not installed; install it, or name the model's class in model._target_ and leave task out"
            ),
        ],
    ),
    (
        ONE,
        "model: {_target_: torch.nn.Identity, freeze_param: encoder}",
        [
            "model.freeze_param (training.yaml, line 1): 'encoder' is not a list of texts",
        ],
    ),
    (
        SEVERAL,
        (
            "schedulers:\n"
            "  generator: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}}\n"
            "  decoder: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}}"
        ),
        [
            (
                "schedulers.decoder (training.yaml, line 3): there is no optimizer of this name; there are "
                "'generator', 'discriminator'"
            ),
            (
                "schedulers (training.yaml, line 1): the optimizer 'discriminator' has no scheduler here; give "
                "it one, or leave out the block"
            ),
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {params: null}}",
        [
            (
                "optimizers.generator (training.yaml, line 1): the key 'params' is missing (text: a dotted part "
                "of the names of its parameters)"
            ),
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {optimizer: null}}",
        [
            "optimizers.generator (training.yaml, line 1): the key 'optimizer' is missing",
        ],
    ),
    (
        SEVERAL,
        "schedulers: {generator: {interval: step}, discriminator: "
        "{scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}}}",
        [
            "schedulers.generator (training.yaml, line 1): the key 'scheduler' is missing",
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {accum_grad_steps: 0, step_every_n_iters: -2}}",
        [
            "optimizers.generator.accum_grad_steps (training.yaml, line 1): 0 is not a whole number of at least 1",
            "optimizers.generator.step_every_n_iters (training.yaml, line 1): -2 is not a whole number of at least 1",
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {gradient_clip_algorithm: values}}",
        [
            (
                "optimizers.generator.gradient_clip_algorithm (training.yaml, line 1): 'values' is not 'norm' "
                "or 'value'; did you mean 'value'?"
            ),
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {accum_grad_step: 2}}",
        [
            (
                "optimizers.generator.accum_grad_step (training.yaml, line 1): unknown key (its value is 2); "
                "did you mean 'accum_grad_steps'?"
            ),
        ],
    ),
    (
        SEVERAL,
        (
            "schedulers:\n"
            "  generator: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}, interval: batch}\n"
            "  discriminator: {scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}}"
        ),
        [
            "schedulers.generator.interval (training.yaml, line 2): 'batch' is not 'step' or 'epoch'",
            (
                "schedulers.discriminator.scheduler (training.yaml, line 3): "
                "torch.optim.lr_scheduler.ReduceLROnPlateau steps on a metric; name it in 'monitor', for "
                "example monitor: valid/loss"
            ),
        ],
    ),
    (
        SEVERAL,
        ("scheduler_interval: step\nscheduler_monitor: valid/loss"),
        [
            (
                "scheduler_interval (training.yaml, line 1): is for one optimizer; with 'optimizers' write "
                "schedulers.<name>.interval, and null here"
            ),
            (
                "scheduler_monitor (training.yaml, line 2): is for one optimizer; with 'optimizers' write "
                "schedulers.<name>.monitor, and null here"
            ),
        ],
    ),
    (
        SEVERAL,
        "trainer: {gradient_clip_val: 1.0, gradient_clip_algorithm: value, accumulate_grad_batches: 2, strategy: fsdp}",
        [
            (
                "trainer.gradient_clip_val (training.yaml, line 1): 1.0 does not go with several optimizers; "
                "write optimizers.<name>.gradient_clip_val instead"
            ),
            (
                "trainer.gradient_clip_algorithm (training.yaml, line 1): 'value' does not go with several "
                "optimizers; write optimizers.<name>.gradient_clip_algorithm instead"
            ),
            (
                "trainer.accumulate_grad_batches (training.yaml, line 1): 2 does not go with several "
                "optimizers; write optimizers.<name>.accum_grad_steps instead"
            ),
            "trainer.strategy (training.yaml, line 1): 'fsdp' takes one optimizer; use ddp with 'optimizers'",
        ],
    ),
    (
        SEVERAL,
        "scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}",
        [
            "scheduler (training.yaml, line 1): goes with 'optimizer', but the configuration has 'optimizers'",
        ],
    ),
    (
        SEVERAL,
        (
            "schedulers:\n"
            "  generator: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}, monitor: valid/loss}\n"
            "  discriminator: {scheduler: {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}}"
        ),
        [
            (
                "schedulers.generator.monitor (training.yaml, line 2): 'valid/loss' has no use: "
                "torch.optim.lr_scheduler.StepLR.step() takes no metric; leave it out"
            ),
        ],
    ),
    (
        SEVERAL,
        "optimizers: {generator: {params: [a]}}",
        [
            "optimizers.generator.params (training.yaml, line 1): ['a'] is not text",
        ],
    ),
    (
        EMPTY,
        ("model: {size: 3}\noptimizer: {lr: 0.1}"),
        [
            "optimizer (training.yaml, line 2): {'lr': 0.1} is not a mapping with _target_",
            "model (training.yaml, line 1): the key '_target_' is missing: the dotted name of the model's class",
        ],
    ),
    (
        EMPTY,
        "",
        [
            "model: is missing; name its class in model._target_",
            "optimizer: is missing; give one optimizer, or several by name in 'optimizers'",
        ],
    ),
]


def _load(tmp_path, monkeypatch, base, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "training.yaml").write_text(text)
    return load_config("base.yaml", "training.yaml")


@pytest.mark.parametrize(("base", "text", "errors"), BROKEN, ids=[text for _, text, _ in BROKEN])
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


MORE_BROKEN = [
    (
        _one_loader("{num_iters_per_epoch: 5}"),
        "dataloader.train.num_iters_per_epoch",
        "5 is not supported; it belongs under iter_factory",
    ),
    (
        _one_loader("{iter_factory: {_target_: builtins.dict, num_iters_per_epoch: 0}}"),
        "dataloader.train.iter_factory.num_iters_per_epoch",
        "0 is not a whole number of at least 1",
    ),
    (
        _batches("type: sorted, batch_size: 2, min_batch_sise: 2"),
        "dataloader.train.iter_factory.batches.min_batch_sise",
        "unknown key (its value is 2); did you mean 'min_batch_size'?",
    ),
    (
        _batches("type: sorted, batch_size: 2, sort_in_batch: asc"),
        "dataloader.train.iter_factory.batches.sort_in_batch",
        "'asc' is not 'ascending' or 'descending'",
    ),
    (
        _batches("type: numel"),
        "dataloader.train.iter_factory.batches",
        "the key 'batch_bins' is missing, which type: numel needs",
    ),
    (
        _batches("type: folded, batch_size: 2"),
        "dataloader.train.iter_factory.batches",
        "the key 'fold_lengths' is missing, which type: folded needs",
    ),
    (
        _batches("type: folded, batch_size: 2, fold_lengths: [8, 9]"),
        "dataloader.train.iter_factory.batches.fold_lengths",
        "[8, 9] is not one length for each of the 1 shape_files",
    ),
    (_batches("batch_size: 2"), "dataloader.train.iter_factory.batches", "the key 'type' is missing"),
    (
        _one_loader("{batch_distribution: global}"),
        "dataloader.train.batch_distribution",
        "'global' needs an iter_factory; without one there is per_gpu only",
    ),
    (
        _one_loader("{batch_distribution: global, iter_factory: {_target_: builtins.dict, shuffle_within_batch: yes}}"),
        "dataloader.train.batch_distribution",
        "'global' does not go with iter_factory.shuffle_within_batch: true; remove one of them",
    ),
    (
        "dataloader: {train: {batch_size: 2}}",
        "dataloader",
        "the key 'valid' is missing; to train without validation, set trainer.limit_val_batches: 0",
    ),
    (
        "sampler: {_target_: builtins.list}\ndataloader: {train: {shuffle: true}, valid: {}}",
        "dataloader.train.shuffle",
        "True does not go with the 'sampler' at the top; leave it out",
    ),
    (
        "batch_sampler: {_target_: builtins.list}\ndataloader: {train: {batch_size: 2}, valid: {}}",
        "dataloader.train.batch_size",
        "2 does not go with the 'batch_sampler' at the top; leave it out",
    ),
    (
        "sampler: {_target_: builtins.list}\nbatch_sampler: {_target_: builtins.list}",
        "batch_sampler",
        "stands beside 'sampler'; keep one of the two",
    ),
    (
        "parallel: {env: local, n_worker: 2}",
        "parallel.n_worker",
        "unknown key (its value is 2); did you mean 'n_workers'?",
    ),
    ("parallel: {n_workers: 0}", "parallel.n_workers", "0 is not a whole number of at least 1"),
    ("trainer: {callbacks: [3]}", "trainer.callbacks[0]", "3 is not a mapping with _target_"),
    ("trainer: {callbacks: [{monitor: x}]}", "trainer.callbacks[0]", "{'monitor': 'x'} is not a mapping with _target_"),
    (
        "trainer: {callbacks: [{_target_: builtins.dict}]}",
        "trainer.callbacks[0]._target_",
        "builtins.dict is no Callback",
    ),
    (
        "trainer: {callbacks: {_target_: lightning.pytorch.loggers.CSVLogger}}",
        "trainer.callbacks._target_",
        "lightning.pytorch.loggers.CSVLogger is no Callback",
    ),
    (
        "trainer: {logger: [{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: x}]}",
        "trainer.logger[0]._target_",
        "lightning.pytorch.callbacks.EarlyStopping is no Logger",
    ),
    ("trainer: {logger: [{save_dir: x}]}", "trainer.logger[0]", "{'save_dir': 'x'} is not a mapping with _target_"),
    ("trainer: {max_time: {hour: 1}}", "trainer.max_time.hour", "unknown key (its value is 1); did you mean 'hours'?"),
    ("trainer: {max_time: {hours: '1'}}", "trainer.max_time.hours", "'1' is not a number of at least 0"),
    (
        "trainer: {strategy: ddp_find_unused_parameters_false}",
        "trainer.strategy",
        "'ddp_find_unused_parameters_false' is not 'auto', 'ddp', 'fsdp' or 'ddp_find_unused_parameters_true'; "
        "did you mean 'ddp'? It looks for no unused parameters",
    ),
    (
        "trainer: {strategy: {_target_: lightning.pytorch.strategies.DDPStrategy, find_unused_parameters: true}}",
        "trainer.strategy",
        "{'_target_': 'lightning.pytorch.strategies.DDPStrategy', 'find_unused_parameters': True} is not "
        "'auto', 'ddp', 'fsdp' or 'ddp_find_unused_parameters_true'; write ddp_find_unused_parameters_true",
    ),
    (
        "trainer: {callbacks: [{_target_: espnet3.components.callbacks.ema.EMACallback}]}",
        "trainer.callbacks[0]._target_",
        "'espnet3.components.callbacks.ema.EMACallback': espnet3_lite has no 'EMACallback'; "
        "use EMAWeightAveraging; where espnet is installed, ESPNET3_LITE_USE_ESPNET=1 in the environment gives "
        "espnet's own",
    ),
    (
        "optimizer: {_target_: torch.optim.SGD, lr: '1e-3'}",
        "optimizer.lr",
        "'1e-3' is text, not a number; write it without quotes, or ${oc.decode:...} around what makes it",
    ),
    (
        "scheduler_monitor: valid/loss",
        "scheduler_monitor",
        "has no use without 'scheduler'; give one, or leave this out",
    ),
    ("model: {_target_: 5}", "model._target_", "5 is not a dotted Python name such as 'torch.optim.Adam'"),
]


@pytest.mark.parametrize(("text", "place", "problem"), MORE_BROKEN, ids=[place for _, place, _ in MORE_BROKEN])
def test_a_broken_key_gives_exactly_this_message(tmp_path, monkeypatch, text, place, problem):
    with pytest.raises(ConfigError) as caught:
        check_config(_load(tmp_path, monkeypatch, ONE, text))
    line = text.count("\n") + 1
    assert caught.value.errors == [f"{place} (training.yaml, line {line}): {problem}"]


@pytest.mark.parametrize(
    "text",
    [
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
        "trainer.profiler (training.yaml, line 2): is not supported; there is no profiler; wrap the run in "
        "torch.profiler.profile(), or leave it out",
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


def test_the_caller_may_name_further_trainer_arguments():
    config = {"model": {"_target_": "torch.nn.Identity"}, "optimizer": {"_target_": "torch.optim.SGD"}}
    config["trainer"] = {"my_own": 1, "max_epochs": 3}
    check_config(config, trainer_arguments=["my_own"])
    with pytest.raises(ConfigError, match="trainer.my_own: unknown key"):
        check_config(config)


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


def test_every_documented_trainer_argument_is_known():
    documented = """accelerator devices num_nodes strategy precision logger callbacks max_epochs min_epochs max_steps
    min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches fast_dev_run
    overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps
    enable_checkpointing
    enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val gradient_clip_algorithm
    deterministic benchmark inference_mode use_distributed_sampler detect_anomaly
    reload_dataloaders_every_n_epochs default_root_dir profiler plugins check_grad_finite
    async_save auto_resume compile"""
    assert TRAINER_ARGUMENTS == set(documented.split())


def test_the_table_of_keys_is_well_formed():
    for path, kind in FIELDS.items():
        assert re.fullmatch(r"[a-z_*]+(\.[a-z_*]+)*", path), path
        parent = path.rpartition(".")[0]
        assert not parent or parent in FIELDS, f"{path} has no parent in the table"
        assert kind.words and kind.accepts(object) in (True, False)
