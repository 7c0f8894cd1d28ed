"""Writes `lightning_trainer.json`: what Lightning does in every case of `trainer_cases_*`. Needs lightning 2.6.6.

Run it with an interpreter that has Lightning::

    python tests/golden/make_lightning_trainer.py
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "helpers"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def lightning_library() -> SimpleNamespace:
    """Lightning's classes under the names that the cases use."""
    from lightning import pytorch
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers.logger import Logger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return SimpleNamespace(
        LightningModule=pytorch.LightningModule, LightningDataModule=pytorch.LightningDataModule,
        Trainer=pytorch.Trainer, Callback=pytorch.Callback, Logger=Logger, ModelCheckpoint=ModelCheckpoint,
        EarlyStopping=EarlyStopping,
    )  # fmt: skip


def main(pattern: str = "") -> None:
    """Run the cases whose name contains `pattern`, and write or update the file."""
    import trainer_cases  # noqa: F401 - enters them
    from trainer_lab import CASES, run_case

    path = HERE / "lightning_trainer.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    recorded = {name: recorded.get(name) for name in CASES}
    failed = []
    for name in CASES:
        if pattern in name:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    recorded[name] = run_case(name, lightning_library(), Path(folder))
                except Exception as error:
                    failed.append(f"{name}: {type(error).__name__}: {error}")
    lines = (f"{json.dumps(name)}: {json.dumps(notes, separators=(',', ':'))}" for name, notes in recorded.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(len(CASES), "cases,", path.stat().st_size, "bytes")
    print(*failed, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
