"""Record ESPnet3's `EMACallback` under Lightning: its averages over 200 steps, and a checkpoint to go on from. By hand:

    python tests/golden/make_ema.py

It needs espnet 202611 and lightning 2.6.6. With ``--resume FILE OUTPUT`` it goes on from a checkpoint, Lightning's or
ours, to the end, and writes what it saw to OUTPUT; a test marked `reference` has it do so with our file.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
OUTPUT = HERE / "ema"


def library():
    """`ema_lab`'s library of ESPnet3 and Lightning."""
    import lightning.pytorch as lightning
    from espnet3.components.callbacks.ema import EMACallback

    return SimpleNamespace(
        Trainer=lightning.Trainer,
        Module=lightning.LightningModule,
        Callback=lightning.Callback,
        EMACallback=EMACallback,
    )


def main():
    sys.path.insert(0, str(HERE.parent / "helpers"))
    import ema_lab

    if sys.argv[1:2] == ["--resume"]:
        _, _, file, output = sys.argv
        with tempfile.TemporaryDirectory() as folder:
            Path(output).write_text(json.dumps(ema_lab.run(library(), Path(folder), ckpt_path=file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        (OUTPUT / "run.json").write_text(json.dumps(ema_lab.run(library(), Path(folder)), indent=1) + "\n")
        ema_lab.run(library(), Path(folder), epochs=10)
        (Path(folder) / "epoch10.ckpt").rename(OUTPUT / "lightning_epoch10.ckpt")


if __name__ == "__main__":
    main()
