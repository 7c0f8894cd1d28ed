"""The hooks of a module: every event of the callbacks, without the trainer and module arguments, and a few of its own.

All do nothing until overridden, and what is not overridden is not called. The order is in `trainer/hook_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.loaders.transfer import move

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


class DataHooks:
    """What a module and a data module have in common. The data module's are called first, or in the module's place."""

    def setup(self, stage: str) -> None:
        """Before anything else of a call; `stage` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, stage: str) -> None:
        """At the end of a call."""

    def prepare_data(self) -> None:
        """Download or convert data: called once per machine (local rank 0), the others wait. Keep no state here."""

    def train_dataloader(self) -> Any:
        """Return the training loader."""
        raise NotImplementedError(f"{type(self).__name__} does not define train_dataloader")

    def val_dataloader(self) -> Any:
        """Return the validation loader, or a list of them."""
        raise NotImplementedError(f"{type(self).__name__} does not define val_dataloader")

    def test_dataloader(self) -> Any:
        """Return the test loader, or a list of them."""
        raise NotImplementedError(f"{type(self).__name__} does not define test_dataloader")

    def predict_dataloader(self) -> Any:
        """Return the loader for predictions, or a list of them."""
        raise NotImplementedError(f"{type(self).__name__} does not define predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, while it is still where the loader left it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on `device`; override it for batches of your own classes."""
        return move(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, on its device (augmentation, say)."""
        return batch


class ModuleHooks(DataHooks, torch.nn.Module):
    """The hooks of `LiteModule`. On each event the callbacks are called first, then the module."""

    if TYPE_CHECKING:  # what LiteModule has
        trainer: Trainer
        clip_gradients: Callable[..., torch.Tensor | None]

    def configure_model(self) -> None:
        """Create layers that are too large to create in ``__init__``: called after `setup` in each call of the trainer,
        and by `load_from_checkpoint`."""

    def on_fit_start(self) -> None:
        """The model stands on its device and the optimizers are made."""

    def on_fit_end(self) -> None:
        """After `on_train_end`."""

    def on_train_start(self) -> None:
        """Before the first epoch."""

    def on_train_end(self) -> None:
        """After the last epoch."""

    def on_train_epoch_start(self) -> None:
        """At the start of an epoch."""

    def on_train_epoch_end(self) -> None:
        """At the end of an epoch, after its validation."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Return -1 to leave out this batch and the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """`outputs`: a dict with `loss`; empty where the step returned None, None where the batch was skipped."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """`loss` is what is propagated."""

    def on_after_backward(self) -> None:
        """Gradients are there, not yet clipped."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are unscaled, not yet clipped."""

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the gradients of the last window are cleared."""

    # Those of an evaluation: of a validation, a test and a prediction.

    def on_validation_start(self) -> None:
        """Before each validation (test, prediction)."""

    def on_validation_end(self) -> None:
        """After it."""

    def on_validation_epoch_start(self) -> None:
        """Before its first batch."""

    def on_validation_epoch_end(self) -> None:
        """After its last batch."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """With the batch on its device."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`outputs` is what `validation_step` (`test_step`, `predict_step`) returned."""

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end
    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to the checkpoint what you want to find in `on_load_checkpoint`."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read; the weights are loaded after this."""

    def restore_named_optimizers(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the named optimizers' counters in `checkpoint`, a file that another program wrote."""

    # ---- switching between training and evaluation -----------------------------------------------------------------

    def on_validation_model_eval(self) -> None:
        """How the module is put into evaluation mode; by default all submodules, as ``eval()`` does."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """How it comes back; by default every submodule gets the mode that it had before."""
        self.trainer.evaluation_loop.restore_training_mode()

    def on_validation_model_zero_grad(self) -> None:
        """Free gradients before a validation; called only where no accumulation window is open."""
        self.zero_grad()

    # The same for a test; after a prediction every submodule gets back its mode without a hook.
    on_test_model_eval = on_predict_model_eval = on_validation_model_eval
    on_test_model_train = on_validation_model_train

    # ---- parts of a step -------------------------------------------------------------------------------------------

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """How gradients are computed from `loss` with one optimizer; more arguments are those of `manual_backward`."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch's

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer, optimizer_closure: Callable[[], Any]
    ) -> None:
        """How an optimizer steps. `optimizer_closure()` computes the loss and its gradients, and returns the loss.

        As in Lightning, an override must run the closure, by itself or by ``optimizer.step(closure=...)``.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """How gradients are cleared."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """How a scheduler steps; `metric` is the monitored value, or None."""
        scheduler.step() if metric is None else scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """How gradients are clipped before a step; call `clip_gradients` from an override."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
