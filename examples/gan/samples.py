"""A callback of one's own: a picture of what the generator makes, every few epochs."""

from pathlib import Path

import torch

from espnet3_lite import Callback


class SampleGrid(Callback):
    """Write ``epoch010.png``: ten generated images of each digit, a row a digit.

    The noise is the same each time, so that the pictures show how the same images develop.

    Args:
        output_dir: Folder of the pictures.
        every_n_epochs: An epoch's number, counted from 1, must be a multiple of this. Default 10.

    >>> SampleGrid("exp/gan/samples").is_due(current_epoch=9)
    True
    """

    def __init__(self, output_dir: str, every_n_epochs: int = 10):
        self.output_dir = Path(output_dir)
        self.every_n_epochs = every_n_epochs

    def is_due(self, current_epoch: int) -> bool:
        """Whether the epoch ``current_epoch``, counted from 0, ends with a picture."""
        return (current_epoch + 1) % self.every_n_epochs == 0

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        # Rank zero alone writes. `generate` makes no collective, so the other ranks need not take part.
        if trainer.is_global_zero and self.is_due(trainer.current_epoch):
            save_grid(pl_module.model, self.output_dir / f"epoch{trainer.current_epoch + 1:03d}.png")


@torch.no_grad()
def save_grid(model: torch.nn.Module, path: Path) -> None:
    """Write 10 x 10 images of a `DigitGan`; its mode and torch's global random state stay as they are.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.image import imsave
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "espnet3_lite[plot]"') from error
    label = torch.arange(10).repeat_interleave(10).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    images = model.generate(label, torch.Generator().manual_seed(0)).cpu()  # (100, 8, 8)
    model.train(was_training)
    # a frame of one pixel around each: (row, column, height, width)
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1)).reshape(10, 10, 10, 10)
    grid = framed.permute(0, 2, 1, 3).reshape(100, 100).repeat_interleave(4, 0).repeat_interleave(4, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, grid.numpy(), cmap="gray", vmin=0, vmax=1)
