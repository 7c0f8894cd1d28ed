"""The hooks that users define: a name that is never called is warned about, arguments that do not fit are an error.

Both are found before anything runs. Without this a misspelt hook, or one of Lightning 1, would silently do nothing, and
wrong arguments would end a run in Python's words, perhaps after hours.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from espnet3_lite.checks.signatures import takes, taking
from espnet3_lite.distributed.rank import rank_zero_warn
from espnet3_lite.exceptions import MisconfigurationException, nearest

_PACKAGE = __name__.partition(".")[0]
#: How hooks are called, and what is easily written for them.
_LIKE_A_HOOK = re.compile(
    r"on_\w+|\w+_(step|dataloader)s?|(prepare|transfer|configure|optimizer|lr_scheduler)_\w+|set_?up\w*|tear_?down\w*"
)
#: What the steps are called with: as much of it as each takes.
_OF_A_STEP = ("batch", "batch_idx", "dataloader_idx")
_INSTEAD_OF_OPTIMIZER_IDX = (
    "`optimizer_idx` was Lightning 1's: with several optimizers set `self.automatic_optimization = False`, and step "
    "those that `self.optimizers()` gives"
)
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
_STEPS = {"training_step": 2, "validation_step": 3, "test_step": 3, "predict_step": 3}


def check_hooks(owner: object) -> None:
    """Look at the hooks of a module or data module.

    Raises:
        MisconfigurationException: hooks that the trainer could not call, each with how to write it; hooks of Lightning
            1; or a module whose ``__init__`` does not call that of its base.
    """
    ours = _base_of(owner)
    if isinstance(owner, torch.nn.Module):
        _check_registered(owner)
        _refuse_lightning_1(owner)
    _warn_about_misspelt(owner, ours)
    hooks = (name for name in dir(ours) if _LIKE_A_HOOK.fullmatch(name))
    _refuse([problem for name in hooks for problem in _problems(owner, name, getattr(ours, name))])


def check_arguments(callback: object, base: type, listeners: dict[str, Callable[..., Any] | None]) -> None:
    """Look at a callback's hooks; those that are called in a way of their own (by pytorch-accelerated's) are left out.

    Args:
        callback: Whose.
        base: `Callback`, whose methods have the arguments that the trainer hands over.
        listeners: What is called at each event, where the callback defines something.

    Raises:
        MisconfigurationException: hooks that the trainer could not call, each with how to write it.
    """
    own = (name for name, listener in listeners.items() if listener == getattr(callback, name, None) is not None)
    _refuse([problem for name in own for problem in _problems(callback, name, getattr(base, name))])


def as_evaluated(module: object, word: str, loaders: int, hooks: Mapping[str, list[Callable[..., Any]]]) -> Any:
    """A module's evaluation step, as its loop calls it: with several loaders with the loader's index, else without.

    Args:
        module: Whose.
        word: ``validation``, ``test`` or ``predict``.
        loaders: How many there are.
        hooks: For each event what is called at it.

    Returns:
        (batch, batch_idx) to its output; with several loaders (batch, batch_idx, dataloader_idx).

    Raises:
        RuntimeError: the step, or a hook of a batch, takes no index where there is one, or demands one where there is
            none. (It is Lightning's kind of error.)
    """
    names, name = list(_OF_A_STEP[: 2 + (loaders > 1)]), f"{word}_step"
    step = getattr(module, name)
    fits = takes(step, "dataloader_idx", place=2) if loaders > 1 else _step_fits(inspect.signature(step), tuple(names))
    wrong = [] if fits else [(module, name, ["self"])]
    for event, first in (("start", []), ("end", ["outputs"])):
        for hook in hooks[name := f"on_{word}_batch_{event}"]:
            if not _binds(inspect.signature(hook), [*first, *names]):
                of_callback = isinstance(hook, functools.partial)  # trainer and module are filled in
                owner = getattr(hook.func if isinstance(hook, functools.partial) else hook, "__self__", module)
                wrong.append((owner, name, ["self", *(["trainer", "pl_module"] if of_callback else []), *first]))
    for owner, name, given in wrong:
        there = f"there are {loaders} loaders, but" if loaders > 1 else "there is one loader, and no index of it, but"
        raise RuntimeError(
            f"{there} {type(owner).__name__}.{name} {'takes no' if loaders > 1 else 'demands'} `dataloader_idx`; write "
            f"`def {name}({', '.join([*given, 'batch', 'batch_idx'])}, dataloader_idx=0)`"
        )
    return taking(step, names)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise MisconfigurationException("\n".join(problems))


def _base_of(owner: object) -> type:
    """Our nearest class: what it defines is what the trainer calls."""
    return next((kind for kind in type(owner).__mro__ if _is_ours(kind.__module__)), object)


def _check_registered(module: torch.nn.Module) -> None:
    """What a module is made of is known to torch."""
    if "_modules" not in vars(module):
        kind = type(module).__name__
        raise MisconfigurationException(f"{kind}.__init__ must call super().__init__() before anything else")
    known = {id(parameter) for parameter in module.parameters()}
    for place, part in module.named_modules():
        lists = {name: value for name, value in vars(part).items() if isinstance(value, (list, tuple))}
        for name, value in lists.items():
            kept = [one for one in value if isinstance(one, torch.nn.Module)]
            if any(p.requires_grad and id(p) not in known for one in kept for p in one.parameters()):
                rank_zero_warn(
                    f"{'.'.join(filter(None, (type(module).__name__, place, name)))} is a {type(value).__name__} of "
                    f"modules, in which torch finds none: they are not moved to a device, saved, or given to an "
                    f"optimizer with self.parameters(). Make it a torch.nn.ModuleList; or freeze them, if they "
                    f"are not to be trained"
                )


def _refuse_lightning_1(module: torch.nn.Module) -> None:
    """Methods of Lightning 1 are not called, and some of them only the program itself may be calling."""
    name = type(module).__name__
    defined = [method for method in (*_UNCALLED, *_REMOVED) if callable(getattr(module, method, None))]
    for method in (method for method in defined if method in _UNCALLED):
        rank_zero_warn(
            f"`{name}.{method}` was a hook of Lightning 1's, and the trainer does not call it. Unless your code "
            f"does, write {_UNCALLED[method]}"
        )
    problems = [
        f"`{name}.{method}` is Lightning 1's and is not called; write {_REMOVED[method]}"
        for method in defined
        if method in _REMOVED
    ]
    _refuse(["; ".join(problems)] if problems else [])


def _warn_about_misspelt(owner: object, ours: type) -> None:
    """Users have methods of their own: nothing is said where no hook is near, or where they define the nearest too."""
    hooks = [name for name in dir(ours) if _LIKE_A_HOOK.fullmatch(name)]
    theirs = {name: kind for kind in type(owner).__mro__ if kind not in ours.__mro__ for name in vars(kind)}
    for name, kind in theirs.items():
        if name not in hooks and _LIKE_A_HOOK.fullmatch(name) and callable(getattr(owner, name, None)):
            if (hint := nearest(name, hooks, alike=0.85)) and hint.split("'")[1] not in theirs:
                rank_zero_warn(f"{kind.__qualname__}.{name} is not a hook that the trainer calls{hint}")


def _problems(owner: object, name: str, base: Callable[..., Any]) -> Iterator[str]:
    """What is wrong with one hook, if it is a user's: nothing, or how to write it."""
    method = getattr(owner, name, None)  # None on an instance stands for a hook that is not there
    function = getattr(method, "__func__", method)
    if method is None or not callable(function) or _is_ours(getattr(function, "__module__", None)):
        return
    try:
        written = inspect.signature(function)
    except (TypeError, ValueError):  # not written in Python: nothing can be known of it
        return
    first, bound = next(iter(written.parameters), ""), function is not method
    signature = inspect.signature(method) if first or not bound else written  # `def hook():` has not even a `self`
    if name in _STEPS:
        wanted = _OF_A_STEP[: _STEPS[name]]
        fits, shown = _step_fits(signature, wanted), ", ".join(wanted[:2])
        fits = fits and not (bound and first == "batch")  # `self` was forgotten
    else:
        arguments = [argument for argument in inspect.signature(base).parameters.values() if argument.name != "self"]
        needed = [
            argument.name for argument in arguments if argument.name != "dataloader_idx" or not _optional(argument)
        ]
        fits = any(_binds(signature, names) for names in (needed, [argument.name for argument in arguments]))
        shown = ", ".join(needed)
    of_lightning_1 = "optimizer_idx" in written.parameters
    if not fits or of_lightning_1 or (bound and not first):
        called = f"with ({shown})" if shown else "without arguments"
        by_instance = [] if name in vars(owner) else ["self"]  # a function that was set on it gets none
        how = ", ".join([*by_instance, *([shown] if shown else [])])
        more = f"; {_INSTEAD_OF_OPTIMIZER_IDX}" if of_lightning_1 else ""
        yield (
            f"{type(owner).__name__}.{name}{written} does not fit: the trainer calls it {called}. Write "
            f"`def {name}({how})`{more}"
        )


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == _PACKAGE


def _optional(argument: inspect.Parameter) -> bool:
    return argument.default is not argument.empty


def _binds(signature: inspect.Signature, names: list[str]) -> bool:
    try:
        signature.bind(*names)
    except TypeError:
        return False
    return True


def _step_fits(signature: inspect.Signature, names: tuple[str, ...]) -> bool:
    """A step takes the batch, and demands nothing but these arguments, by place or by name."""
    parameters = list(signature.parameters.values())
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and not _optional(p)]
    open_end = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    takes_batch = bool(by_place) or open_end or "batch" in signature.parameters
    return takes_batch and sum(not _optional(p) for p in by_place) <= len(names) and set(by_name) <= set(names)
