"""A second name: the trainer takes it for its progress bar."""

from espnet3_lite import Trainer
from espnet3_lite.callbacks import ProgressBarCallback, TQDMProgressBar


def test_it_stands_for_the_default_bar():
    trainer = Trainer(max_epochs=1, callbacks=ProgressBarCallback(), logger=False, enable_model_summary=False,
                      enable_checkpointing=False, accelerator="cpu")  # fmt: skip
    assert [type(callback) for callback in trainer.callbacks] == [ProgressBarCallback]
    assert isinstance(trainer.progress_bar_callback, TQDMProgressBar)
