"""What a call tells: hyperparameters to the loggers, and the results of an evaluation, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet3_lite.trainer.trainer import Trainer


def log_hyperparameters(trainer: Trainer) -> None:
    """Hand the module's and the data module's hyperparameters to the loggers."""
    values: dict[str, Any] = {}
    for owner in (trainer.datamodule, trainer.lightning_module):
        if owner is not None and trainer.state.fn == "fit":
            owner._warn_of_hparams_left_out()
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            values.update(owner.hparams_initial)
    if values:
        trainer.tell_loggers("log_hyperparams", values)
    trainer.tell_loggers("save")


def print_results(results: list[dict[str, float]], word: str) -> None:
    """The results of `validate` or `test`, a line a value."""
    for index, result in enumerate(results):
        title = f"{word} metric" + (f" (loader {index})" if len(results) > 1 else "")
        width = max((len(name) for name in (*result, title)), default=0)
        print(f"{title:<{width}}  value")
        for name, value in sorted(result.items()):
            print(f"{name:<{width}}  {value:.6g}")
