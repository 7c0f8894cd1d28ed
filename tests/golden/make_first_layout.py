"""Writes `first_layout/`: checkpoints in layout 1 of our own state. Run by the last commit that wrote it, d778399.

python tests/golden/make_first_layout.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from first_layout_run import Line, loaders, weights_of

from espnet3_lite import Callback, Trainer

#: Where in the second epoch each file was saved, and by which batch.
PLACES = {
    "on_train_epoch_start": None,
    "on_train_batch_start": 1,
    "on_train_batch_end": 2,
    "on_validation_start": None,
    "on_validation_end": None,
    "on_train_epoch_end": None,
}


class Save(Callback):
    def __init__(self, folder):
        self.folder = folder


for place, batch in PLACES.items():

    def save(self, trainer, pl_module, *rest, place=place, batch=batch):
        if trainer.current_epoch == 1 and not trainer.sanity_checking and (batch is None or rest[-1] == batch):
            trainer.save_checkpoint(self.folder / f"{place}.ckpt")

    setattr(Save, place, save)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=Save(folder),
    )  # fmt: skip
    module = Line()
    trainer.fit(module, *loaders())
    (folder / "end.json").write_text(json.dumps(weights_of(trainer, module)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
