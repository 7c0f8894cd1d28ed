"""Names of checkpoint files, as recorded from Lightning 2.6.6."""

import pytest
import torch
from line_model import Line
from quiet import quiet_trainer

from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.callbacks.checkpoints.checkpoint_files import pattern_of
from espnet3_lite.exceptions import MisconfigurationException


@pytest.mark.parametrize(
    ("arguments", "metrics", "call", "expected"),
    [  # recorded from Lightning
        ({}, {"epoch": 3, "step": 10}, {}, "epoch=3-step=10.ckpt"),
        ({"auto_insert_metric_name": False}, {"epoch": 3, "step": 10}, {}, "3-10.ckpt"),
        ({"filename": "{epoch:03d}"}, {"epoch": 5}, {}, "epoch=005.ckpt"),
        ({"filename": "{epoch}-{val_loss:.2f}"}, {"epoch": 2, "val_loss": 0.123456}, {}, "epoch=2-val_loss=0.12.ckpt"),
        ({"filename": "{epoch}-{val_loss:.2f}"}, {"epoch": 2}, {"filename": "{epoch:d}"}, "epoch=2.ckpt"),
        ({"filename": "{missing:d}"}, {}, {}, "missing=0.ckpt"),
        ({"filename": "{a/b:.1f}x{a}"}, {"a/b": torch.tensor(1.25), "a": 2}, {}, "a/b=1.2xa=2.ckpt"),
        (
            {"filename": "e{epoch}_l{v/l:.2f}", "auto_insert_metric_name": False},
            {"epoch": 1, "v/l": 3.0}, {}, "e1_l3.00.ckpt",
        ),
        ({"filename": "{epoch}"}, {"epoch": 1}, {"ver": 3}, "epoch=1-v3.ckpt"),
        ({"filename": "{epoch}"}, {"epoch": 1}, {"prefix": "test"}, "test-epoch=1.ckpt"),
        ({"filename": "plain"}, {}, {"ver": 1, "prefix": "p"}, "p-plain-v1.ckpt"),
    ],
)  # fmt: skip
def test_names(arguments, metrics, call, expected):
    assert ModelCheckpoint(**arguments).format_checkpoint_name(metrics, **call) == expected


def test_a_format_that_does_not_fit_is_named():
    callback = ModelCheckpoint(filename="{valid/loss:02d}")
    with pytest.raises(MisconfigurationException, match=r"'\{valid/loss:02d\}' cannot show 0.5"):
        callback.format_checkpoint_name({"valid/loss": 0.5})


@pytest.mark.parametrize(
    ("template", "insert_names", "name", "matches"),
    [
        ("step{step}", False, "step12.ckpt", True),
        ("step{step}", False, "step12-v3.ckpt", True),
        ("step{step}", False, "epoch1_step12_valid.loss.ckpt", False),
        ("step{step}", False, "step12.ckpt.part", False),
        ("{epoch}-{step}", True, "epoch=1-step=20.ckpt", True),
        ("{epoch}-{step}", True, "1-20.ckpt", False),
        ("{epoch}-{valid/loss:.1f}", True, "epoch=1-valid/loss=0.5.ckpt", True),
        ("{epoch}-{valid/loss:.1f}", False, "1-0.5.ckpt", True),
        ("{epoch}-{valid/loss:.1f}", False, "1-a/0.5.ckpt", False),
        ("last", True, "last.ckpt", True),
        ("last", True, "last-v1.ckpt", True),
        ("last", True, "lastly.ckpt", False),
        ("a+b{step}", False, "a+b3.ckpt", True),
        ("a+b{step}", False, "aab3.ckpt", False),
    ],
)
def test_names_are_recognised(template, insert_names, name, matches):
    pattern = pattern_of(template, insert_names, "=", "-v", ".ckpt")
    assert bool(pattern.fullmatch(name)) is matches


def test_a_class_for_lightning_finds_its_file_system_and_saves_by_the_trainer(tmp_path):
    """NeMo's `NeMoModelCheckpoint` is written so."""
    seen = []

    class Theirs(ModelCheckpoint):
        def file_exists(self, filepath, trainer):
            return trainer.strategy.broadcast(self._fs.exists(filepath))

        def _save_checkpoint(self, trainer, filepath):
            seen.append(self._fs.exists(filepath))
            trainer.save_checkpoint(filepath, self.save_weights_only, storage_options=None)
            seen.append(self._fs.exists(filepath))
            with pytest.raises(MisconfigurationException, match=r"storage_options={'a': 1}\): they are for a Check"):
                trainer.save_checkpoint(filepath, storage_options={"a": 1})

    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[Theirs(tmp_path)])
    trainer.fit(Line(), [torch.ones(1, 1)])
    assert seen == [False, True]
