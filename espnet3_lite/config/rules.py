"""What the keys of a training configuration say about each other: one function a rule.

A rule gets the report (its ``settings`` to read, its `add` to complain) and the model where it is built. Not
here: what one key alone may be (`fields`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from espnet3_lite.checks.signatures import metric_of_step
from espnet3_lite.checks.value_kinds import one_of
from espnet3_lite.config.fields import OBJECT, REFUSED
from espnet3_lite.config.targets import (
    HOW_TO_INSTALL_ESPNET,
    TargetError,
    find_target,
    is_installed,
    unknown_arguments,
)
from espnet3_lite.config.yaml_text import KeyPath, dotted_name
from espnet3_lite.exceptions import nearest
from espnet3_lite.trainer.settings import LOGGER_NAMES

if TYPE_CHECKING:
    from torch.nn import Module

    from espnet3_lite.config.schema import Report

UNRESOLVED = object()
"""Stands in the settings for a value whose interpolation failed."""


def is_resolved(value: Any) -> bool:
    """False where a value, or one inside of it, could not be resolved: the mistake is elsewhere."""
    if isinstance(value, dict | list):
        return all(map(is_resolved, value.values() if isinstance(value, dict) else value))
    return value is not UNRESOLVED


BUILT = ("model", "dataset", "optimizer", "scheduler", "optimizers", "schedulers", "dataloader", "trainer",
         "sampler", "batch_sampler")  # fmt: skip
"""The keys below which every ``_target_`` is looked for."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _blocks(report: Report, key: str) -> dict[str, dict]:
    """The named blocks of ``optimizers`` or ``schedulers``, as far as they are mappings."""
    block = report.settings.get(key)
    return {name: inner for name, inner in block.items() if isinstance(inner, dict)} if isinstance(block, dict) else {}


def one_or_several(report: Report, module: Module | None) -> None:
    """``optimizer`` and ``scheduler``, or ``optimizers`` and ``schedulers``: never a mixture."""
    settings = report.settings
    both = False
    for one, other in (("optimizer", "optimizers"), ("scheduler", "schedulers")):
        if one in settings and other in settings:
            both = True
            report.add((other,), f"stands beside {one!r}; remove one of them, or set it to null")
    for key, missing in (("schedulers", "optimizers"), ("scheduler", "optimizer")):
        partner = {"optimizers": "optimizer", "optimizer": "optimizers"}[missing]
        if key in settings and missing not in settings and partner in settings and not both:
            report.add((key,), f"goes with {missing!r}, but the configuration has {partner!r}")
    if (
        "optimizer" not in settings
        and not settings.get("optimizers")
        and not _makes_its_optimizer(settings.get("model"))
    ):
        report.add(("optimizer",), "is missing; give one optimizer, or several by name in 'optimizers'")


def _makes_its_optimizer(model: Any) -> bool:
    """True where the model is a `LiteModule` of a user's own, whose `configure_optimizers` does that."""
    try:
        target = find_target(model["_target_"]) if isinstance(model, dict) and "_target_" in model else None
    except TargetError:
        return False  # reported by `targets`
    bases = target.__mro__ if isinstance(target, type) else ()  # by name: this room imports no module
    own = any("configure_optimizers" in vars(base) for base in bases if base.__name__ != "LiteModule")
    return own and "LiteModule" in {base.__name__ for base in bases}


def named_blocks(report: Report, module: Module | None) -> None:
    """Each named block has its necessary keys, and the schedulers are named as the optimizers are."""
    for key, needed in (("optimizers", ("optimizer", "params")), ("schedulers", ("scheduler",))):
        for name, block in _blocks(report, key).items():
            for part in needed:
                if part not in block:
                    hint = " (text: a dotted part of the names of its parameters)" if part == "params" else ""
                    report.add((key, name), f"the key {part!r} is missing{hint}")
            if block.get("params") == "":
                report.add((key, name, "params"), "'' selects nothing; name a dotted part of the parameters' names")
    optimizers, schedulers = report.settings.get("optimizers"), report.settings.get("schedulers")
    trainer = report.settings.get("trainer")
    gan = isinstance(trainer, dict) and "gan" in trainer
    if gan and set(optimizers if isinstance(optimizers, dict) else ()) != {"generator", "discriminator"}:
        report.add(("trainer", "gan"), "needs two optimizers, named 'generator' and 'discriminator', in 'optimizers'")
    if isinstance(optimizers, dict) and isinstance(schedulers, dict):
        for name in schedulers:
            if name not in optimizers:
                hint = nearest(name, optimizers) or f"; there are {', '.join(map(repr, optimizers))}"
                report.add(("schedulers", name), f"there is no optimizer of this name{hint}")
        for name in optimizers:
            if name not in schedulers:
                report.add(
                    ("schedulers",),
                    f"the optimizer {name!r} has no scheduler here; give it one, or leave out the block",
                )


def single_keys_with_several(report: Report, module: Module | None) -> None:
    """Settings that speak of one optimizer do not go with several."""
    settings = report.settings
    if "optimizers" not in settings:
        return
    for key, place in (("scheduler_interval", "interval"), ("scheduler_monitor", "monitor")):
        if key in settings:
            report.add(
                (key,),
                f"is for one optimizer; with 'optimizers' write schedulers.<name>.{place}, and null here",
            )
    trainer = settings.get("trainer", {})
    if not isinstance(trainer, dict):
        return
    for key, harmless in (
        ("gradient_clip_val", 0),
        ("gradient_clip_algorithm", "norm"),
        ("accumulate_grad_batches", 1),
    ):
        value = trainer.get(key, harmless)
        if value != harmless and value is not UNRESOLVED:
            own = "accum_grad_steps" if key == "accumulate_grad_batches" else key
            report.add(
                ("trainer", key),
                f"{value!r} does not go with several optimizers; write optimizers.<name>.{own} instead",
            )
    if "fsdp" in str(trainer.get("strategy")).lower():
        report.add(("trainer", "strategy"), "'fsdp' takes one optimizer; use ddp with 'optimizers'")


def monitors(report: Report, module: Module | None) -> None:
    """``monitor`` goes with a scheduler that takes a metric, and one that needs a metric has it."""
    settings = report.settings
    if "scheduler_monitor" in settings and "scheduler" not in settings and "optimizers" not in settings:
        report.add(("scheduler_monitor",), "has no use without 'scheduler'; give one, or leave this out")
    found: list[tuple[KeyPath, KeyPath, Any, Any]] = [
        (("scheduler",), ("scheduler_monitor",), settings.get("scheduler"), settings.get("scheduler_monitor"))
    ]
    for name, block in _blocks(report, "schedulers").items():
        path = ("schedulers", name)
        found.append(((*path, "scheduler"), (*path, "monitor"), block.get("scheduler"), block.get("monitor")))
    for scheduler_path, monitor_path, scheduler, monitor in found:
        target = scheduler.get("_target_") if isinstance(scheduler, dict) else None
        try:
            if target in (None, UNRESOLVED):
                continue
            parameter = metric_of_step(find_target(target))
        except TargetError:
            continue  # reported by `targets`
        if parameter is None and monitor is not None:
            report.add(
                monitor_path, f"{monitor!r} has no use: {dotted_name(target)}.step() takes no metric; leave it out"
            )
        if parameter is not None and parameter.default is parameter.empty and monitor is None:
            key = monitor_path[-1]
            report.add(
                scheduler_path,
                f"{dotted_name(target)} steps on a metric; name it in {key!r}, for example {key}: valid/loss",
            )


def criteria(report: Report, module: Module | None) -> None:
    """``best_model_criterion``: a list of [metric, how many to keep, min or max]."""
    items = report.settings.get("best_model_criterion")
    if not isinstance(items, list):
        return
    if len(items) == 3 and isinstance(items[0], str):
        report.add(("best_model_criterion",), f"{items!r} is one criterion; write a list of such lists: [{items!r}]")
        return
    seen: dict[tuple[Any, Any], int] = {}
    for index, item in enumerate(items):
        path = ("best_model_criterion", index)
        if not is_resolved(item):
            continue
        if not isinstance(item, list) or len(item) != 3:
            report.add(
                path,
                f"{item!r} is not [metric, how many to keep, mode], such as ['valid/loss', 3, 'min']",
            )
            continue
        metric, keep, mode = item
        if not isinstance(metric, str) or not metric:
            report.add((*path, 0), f"{metric!r} is not a metric's name such as 'valid/loss'")
        if not isinstance(keep, int) or isinstance(keep, bool) or (keep < 1 and keep != -1):
            report.add((*path, 1), f"{keep!r} is not a number of checkpoints of at least 1, or -1 for all")
        if mode not in ("min", "max"):
            report.add((*path, 2), f"{mode!r} is not 'min' or 'max'{nearest(str(mode), ['min', 'max'])}")
        if (metric, mode) in seen:
            report.add(
                path,
                f"{metric!r} with {mode!r} is criterion {seen[metric, mode]} already; keep one of the two",
            )
        seen.setdefault((metric, mode), index)


def model_source(report: Report, module: Module | None) -> None:
    """A model can be built: by ``_target_``, or by an espnet2 ``task`` where espnet is installed."""
    settings = report.settings
    if module is not None:
        return
    if "model" not in settings:
        report.add(("model",), "is missing; name its class in model._target_")
    elif "task" in settings:
        if settings["task"] is not UNRESOLVED and not is_installed("espnet2"):
            report.add(
                ("task",),
                f"{settings['task']!r} builds the model with espnet2: {HOW_TO_INSTALL_ESPNET}; or name the "
                f"model's class in model._target_ and leave task out",
            )
    elif isinstance(settings["model"], dict) and "_target_" not in settings["model"]:
        report.add(("model",), "the key '_target_' is missing: the dotted name of the model's class")


def targets(report: Report, module: Module | None) -> None:
    """Every ``_target_`` can be imported, and takes the arguments that stand beside it."""
    skipped = {("model",)} if module is not None or "task" in report.settings else set()
    for key in BUILT:
        for path, node in _with_target((key,), report.settings.get(key)):
            if path in skipped:
                continue
            name = node["_target_"]
            try:
                target = find_target(name)
            except TargetError as error:
                report.add((*path, "_target_"), str(error))
                continue
            if not callable(target):
                report.add((*path, "_target_"), f"{name!r} is no class or function")
                continue
            own = ("freeze_param",) if path == ("model",) else ()
            names = [part for part in node if not part.startswith("_") and part not in own]
            for unknown in unknown_arguments(target, names):
                instead = REFUSED.get(".".join(map(str, (*path, unknown))))
                hint = f"; {instead}" if instead else nearest(unknown, list(inspect.signature(target).parameters))
                report.add((*path, unknown), f"{dotted_name(name)} takes no argument {unknown!r}{hint}")


def _with_target(path: KeyPath, node: Any) -> Iterable[tuple[KeyPath, dict]]:
    if isinstance(node, dict):
        if "_target_" in node and node["_target_"] is not UNRESOLVED:
            yield path, node
        for key, value in node.items():
            yield from _with_target((*path, key), value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _with_target((*path, index), value)


def numbers_in_quotes(report: Report, module: Module | None) -> None:
    """An optimizer's or scheduler's number that YAML reads as text, such as ``lr: "1e-3"``."""
    found: list[tuple[KeyPath, Any]] = [((key,), report.settings.get(key)) for key in ("optimizer", "scheduler")]
    for key in ("optimizers", "schedulers"):
        part = key.removesuffix("s")
        found += [((key, name, part), block.get(part)) for name, block in _blocks(report, key).items()]
    for path, block in found:
        for name, value in block.items() if isinstance(block, dict) else ():
            if isinstance(value, str) and _NUMBER.fullmatch(value):
                report.add((*path, name), f"{value!r} is text, not a number; write it without quotes, "
                           f"or ${{oc.decode:...}} around what makes it")  # fmt: skip


def callbacks_and_loggers(report: Report, module: Module | None) -> None:
    """Each entry of ``trainer.callbacks`` and ``trainer.logger`` can be built, and is what it should be."""
    trainer = report.settings.get("trainer")
    if not isinstance(trainer, dict):
        return
    for key, kind in (("callbacks", "Callback"), ("logger", "Logger")):
        given = trainer.get(key)
        entries = [((key, i), entry) for i, entry in enumerate(given)] if isinstance(given, list) else [((key,), given)]
        for place, entry in entries:
            path = ("trainer", *place)
            if isinstance(given, list):
                report.check_value(path, entry, OBJECT if key == "callbacks" else OBJECT | one_of(*LOGGER_NAMES))
            name = entry.get("_target_") if isinstance(entry, dict) else None
            try:
                target = None if name in (None, UNRESOLVED) else find_target(name)
            except TargetError:
                continue  # reported by `targets`
            # By name: this room imports no callbacks. A function that makes one may be named too.
            if not isinstance(target, type) or kind in {base.__name__ for base in target.__mro__}:
                continue
            if kind != "Logger" or not (hasattr(target, "log_metrics") and hasattr(target, "log_hyperparams")):
                report.add((*path, "_target_"), f"{dotted_name(name)} is no {kind}")


def selects(selector: str, name: str) -> bool:
    """True where `selector` is one or more whole dotted parts of a parameter's name, anywhere in it.

    >>> selects("generator", "tts.generator.0.weight"), selects("generator", "my_generator.weight")
    (True, False)
    """
    return re.search(rf"(^|\.){re.escape(selector)}(\.|$)", name) is not None


def selected(names: Iterable[str], selector: str) -> list[str]:
    """The parameter names that a selector matches: whole dotted parts, anywhere in the name.

    >>> selected(["tts.generator.0.weight", "my_generator.weight"], "generator")
    ['tts.generator.0.weight']
    """
    return [name for name in names if selects(selector, name)]


def _longer_selector(names: list[str], chosen: dict[str, str]) -> str:
    """For two selectors that overlap, the end of a message with a longer one that selects its own share."""
    for name, other in (tuple(chosen), tuple(chosen)[::-1]):
        avoided = selected(names, chosen[other])
        kept = [parameter for parameter in selected(names, chosen[name]) if parameter not in avoided]
        parts = kept[0].split(".") if kept else []
        spans = [(start, start + length) for length in range(1, len(parts)) for start in range(len(parts) - length + 1)]
        for start, end in spans:  # the shortest first
            candidate = ".".join(parts[start:end])
            if selected([candidate], chosen[name]) and selected(names, candidate) == kept:
                return f"; {candidate!r} in optimizers.{name}.params would tell them apart"
    return ""


def selectors(report: Report, module: Module | None) -> None:
    """With the model at hand: every trainable parameter belongs to exactly one of several optimizers."""
    if module is None or not _blocks(report, "optimizers"):
        return
    named = [(name, p) for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    names, numbers = [name for name, _ in named], {name: id(parameter) for name, parameter in named}
    owner: dict[int, tuple[str, str]] = {}
    chosen = {
        name: block["params"]
        for name, block in _blocks(report, "optimizers").items()
        if isinstance(block.get("params"), str) and block["params"]
    }
    for name, selector in chosen.items():
        path = ("optimizers", name, "params")
        matched = selected(names, selector)
        if not matched:
            parts = {part for parameter in names for part in parameter.split(".")[:-1] if not part.isdigit()}
            report.add(path, f"{selector!r} selects no trainable parameter{nearest(selector, parts)}")
        for parameter in matched:
            other, first = owner.setdefault(numbers[parameter], (name, parameter))
            if other != name:
                tied = "" if first == parameter else f" under its other name {first!r}"
                report.add(
                    path,
                    f"{selector!r} selects {parameter!r}, and so does optimizers.{other}.params {chosen[other]!r}{tied}"
                    f"{_longer_selector(names, {name: selector, other: chosen[other]}) if not tied else ''}",
                )
                break
    if len(chosen) == len(report.settings["optimizers"]):
        reached = {numbers[name] for selector in chosen.values() for name in selected(names, selector)}
        left = [name for name in names if numbers[name] not in reached]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            report.add(("optimizers",), f"no optimizer selects {', '.join(map(repr, left[:3]))}{more}")


RULES: tuple[Callable[[Report, Module | None], None], ...] = (
    model_source,
    one_or_several,
    named_blocks,
    single_keys_with_several,
    monitors,
    criteria,
    numbers_in_quotes,
    targets,
    callbacks_and_loggers,
    selectors,
)
"""The rules, in the order in which their complaints are listed."""
