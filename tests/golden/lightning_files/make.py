"""Record small checkpoints as real Lightning writes them. Run once, by hand, where Lightning is installed:

    python make.py

Neither the package nor its tests import this file; its own imports of Lightning and OmegaConf stay in
functions, so that it can be collected without them.
"""

import argparse
import collections
import datetime
import pathlib
import pickle
import tempfile
from pathlib import Path

import numpy
import torch

HERE = Path(__file__).parent


def module_classes():
    """The modules that are trained; classes made here, since their bases need Lightning."""
    import lightning.pytorch as lightning

    class Base(lightning.LightningModule):
        """A model in a wrapper, with a loss that has a buffer of its own."""

        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 1)
            self.register_buffer("loss_scale", torch.ones(1))

        def training_step(self, batch, batch_idx):
            loss = self.model(batch).pow(2).mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("valid/loss", self.model(batch).pow(2).mean())

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Wrapper(Base):
        """All hyper-parameters in one object."""

        def __init__(self, hparams):
            super().__init__()
            self.save_hyperparameters(hparams)

    class Arguments(Base):
        """Keeps its constructor's arguments by name, each of its own type."""

        def __init__(self, conf, items):
            super().__init__()
            self.save_hyperparameters()

    return Wrapper, Arguments


def train_and_save(name, module, callbacks):
    import lightning.pytorch as lightning

    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(6, 2), batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            default_root_dir=folder,
        )
        trainer.fit(module, data, data)
        trainer.save_checkpoint(HERE / name)


def many_types():
    """One of each harmless type that people put into hyper-parameters."""
    return argparse.Namespace(
        rate=1e-3,
        path=pathlib.PosixPath("/data/x"),
        pure_path=pathlib.PurePosixPath("a/b"),
        float32=numpy.float32(0.5),
        float64=numpy.float64(2.5),
        int64=numpy.int64(3),
        boolean=numpy.bool_(True),
        array=numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        fortran=numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        big_endian=numpy.array([1, 2], dtype=">i4"),
        default_dict=collections.defaultdict(list, {"a": [1]}),
        ordered=collections.OrderedDict(a=1),
        duration=datetime.timedelta(seconds=3),
        date=datetime.datetime(2024, 1, 2),
        members={1, 2},
        frozen=frozenset({1}),
        queue=collections.deque([1, 2]),
        section=slice(1, 2),
        inner=argparse.Namespace(depth=1),
        shape=(torch.Size([2]), torch.float32, torch.device("cpu")),
    )


class Touch:
    """Unpickled without restraint, it makes a file in the working folder."""

    def __reduce__(self):
        return Path.touch, (Path("run_by_a_pickle"),)


def main():
    from lightning.pytorch import callbacks
    from omegaconf import OmegaConf

    wrapper, arguments = module_classes()
    conf = OmegaConf.create({"a": {"b": 1, "c": [1, 2.5, None, "x", "${a.b}", True]}, "p": "${a.b}"})
    train_and_save(
        "omegaconf.ckpt",
        arguments(conf=conf, items=conf.a.c),
        [
            callbacks.EarlyStopping("valid/loss"),
            callbacks.ModelCheckpoint(train_time_interval=datetime.timedelta(hours=1)),
            callbacks.Timer(duration="00:01:00:00"),
            callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1),
        ],
    )
    train_and_save(
        "omegaconf_at_the_top.ckpt",
        wrapper(conf),
        [callbacks.ModelCheckpoint(monitor="valid/loss", save_top_k=2)],
    )
    train_and_save("many_types.ckpt", wrapper(many_types()), [callbacks.WeightAveraging()])
    torch.save({"epoch": 0, "state_dict": {}, "hyper_parameters": {"x": Touch()}}, HERE / "malicious.ckpt")
    (HERE / "malicious.metadata").write_bytes(pickle.dumps(Touch()))


if __name__ == "__main__":
    main()
