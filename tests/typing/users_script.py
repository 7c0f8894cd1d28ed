"""What a user writes, for `test_users_script.py`: a type checker sees real types everywhere, strictly."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, TensorDataset

from espnet3_lite import Callback, LiteDataModule, LiteModule, OptimizationStep, Trainer, load_config, seed_everything
from espnet3_lite.callbacks import EarlyStopping, ModelCheckpoint
from espnet3_lite.loggers import CSVLogger

Batch: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"


class Line(LiteModule):
    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(size, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        self.log("train_loss", loss, prog_bar=True)
        reveal_type(self.trainer)
        reveal_type(self.global_step)
        reveal_type(self.device)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_dict({"val_loss": self.training_step(batch, batch_idx)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def on_train_epoch_end(self) -> None:
        reveal_type(self.current_epoch)


class Data(LiteDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(8, 2), torch.randn(8, 1)), batch_size=4)


class Hello(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        reveal_type(trainer.current_epoch)
        reveal_type(trainer.callback_metrics["val_loss"])
        trainer.should_stop = trainer.current_epoch > 3

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LiteModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        reveal_type(trainer.max_steps)


seed_everything(1)
trainer = Trainer(
    max_epochs=2,
    limit_train_batches=0.5,
    logger=CSVLogger("logs"),
    strategy="auto",
    precision=32,
    max_time={"hours": 1},
    callbacks=[Hello(), ModelCheckpoint(monitor="val_loss"), EarlyStopping("val_loss", patience=3)],
)
module = Line()
trainer.fit(module, datamodule=Data())
reveal_type(trainer.global_step)
reveal_type(trainer.max_epochs)
reveal_type(trainer.default_root_dir)
reveal_type(trainer.logger)
reveal_type(trainer.callbacks)
reveal_type(trainer.optimizers)
reveal_type(trainer.is_global_zero)
reveal_type(trainer.num_val_batches)
reveal_type(trainer.lightning_module)
reveal_type(trainer.validate(module))
reveal_type(trainer.predict(module))
reveal_type(trainer.early_stopping_callback)
assert trainer.checkpoint_callback is not None
reveal_type(trainer.checkpoint_callback.best_model_path)
best = Line.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
reveal_type(best)
reveal_type(OptimizationStep(torch.zeros(()), "generator").name)
reveal_type(load_config("training.yaml"))

trainer.fit(3)  # error: not a module
Trainer(max_epochs="3")  # error: not a number
Trainer(max_epoch=3)  # error: no such argument
trainer.max_epoch  # error: no such attribute
trainer.global_step = 3  # error: a trainer counts by itself
