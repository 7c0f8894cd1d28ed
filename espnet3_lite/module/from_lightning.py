"""Modules that were written for Lightning: what would silently do nothing here is an error that says what to write."""

from __future__ import annotations

from torch import nn

from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, is_lightnings, parentheses_missing

#: Lightning 1's methods that Lightning 2 refuses, and what takes their place.
_REMOVED = {
    f"{step}_epoch_end": f"`on_{hook}_epoch_end(self)`, which gets no outputs: keep what you need in "
    f"`{step}_step`, such as `self.outputs.append(...)`"
    for step, hook in {"training": "train", "validation": "validation", "test": "test"}.items()
}
#: Those that Lightning 2 no longer calls; a program may have methods of these names that it calls itself.
_UNCALLED = {
    **{f"{step}_step_end": f"the end of `{step}_step`" for step in ("training", "validation", "test")},
    "on_epoch_start": "`on_train_epoch_start` or `on_validation_epoch_start`",
    "on_epoch_end": "`on_train_epoch_end` or `on_validation_epoch_end`",
    "on_batch_start": "`on_train_batch_start`",
    "on_batch_end": "`on_train_batch_end`",
    **dict.fromkeys(("on_pretrain_routine_start", "on_pretrain_routine_end"), "`on_fit_start`"),
    **dict.fromkeys(("on_train_dataloader", "on_val_dataloader", "on_test_dataloader"), "`setup`"),
    "on_hpc_save": "`on_save_checkpoint`",
    "on_hpc_load": "`on_load_checkpoint`",
    "tbptt_split_batch": "a `training_step` with `self.automatic_optimization = False` that splits the batch itself",
    "get_progress_bar_dict": "`self.log(..., prog_bar=True)`, or a progress bar whose `get_metrics` you override",
}


def refuse_removed_hooks(module: nn.Module) -> None:
    """Look for methods of Lightning 1, and warn of those that the program may be calling itself.

    (Arguments that do not fit: `callbacks/users_hooks.py`.)

    Raises:
        MisconfigurationException: each of the others, and what to write instead.
    """
    name = type(module).__name__
    problems = []
    for method, instead in {**_UNCALLED, **_REMOVED}.items():
        if not callable(getattr(module, method, None)):
            continue
        if method in _REMOVED:
            problems.append(f"`{name}.{method}` is Lightning 1's and is not called; write {instead}")
        else:
            rank_zero_warn(
                f"`{name}.{method}` was a hook of Lightning 1's, and the trainer does not call it. Unless your code "
                f"does, write {instead}"
            )
    if problems:
        raise MisconfigurationException("; ".join(problems))


def refuse_other_data(data: object, kind: type) -> None:
    """A data module is one of ours: Lightning's own lack what ours have, and loaders have a place of their own.

    Raises:
        TypeError: this is none of `kind`, nor None.
    """
    if data is not None and not isinstance(data, kind):
        hint = parentheses_missing(data) or hint_for(data, "LightningDataModule")
        hint = hint or "; give loaders by the arguments of their names, or as the second one"
        raise TypeError(f"`datamodule` must be a `LiteDataModule`, got `{type(data).__qualname__}`{hint}")


def hint_for(value: object, ours: str) -> str:
    """The end of a message about an object of Lightning's own class where ours is wanted; empty for other objects.

    Args:
        value: The object.
        ours: What our class is called in `espnet3_lite.compat`.
    """
    if not any(map(is_lightnings, type(value).__mro__)):
        return ""
    return (
        f"; it is derived from Lightning's own class: take `{ours}` from `espnet3_lite.compat`, which has the same "
        f"methods (`python -m espnet3_lite.compat FILE` changes the imports)"
    )
