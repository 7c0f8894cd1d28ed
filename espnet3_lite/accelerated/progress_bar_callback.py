"""`ProgressBarCallback`: pytorch-accelerated's name for `TQDMProgressBar`."""

from espnet3_lite.callbacks.tqdm_progress import TQDMProgressBar


class ProgressBarCallback(TQDMProgressBar):
    """A progress bar for each training and evaluation epoch: `TQDMProgressBar` under pytorch-accelerated's name.

    Example:
        >>> ProgressBarCallback().refresh_rate
        1
    """
