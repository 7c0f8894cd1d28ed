"""The check of a whole training configuration, before anything is built: all mistakes at once.

Here: `check_config`, and the checks of single keys against the tables in `fields`. Next door: what
    keys say about each other (`rules`). Not here: reading files (`config`), building (`targets`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from espnet3_lite.checks.value_kinds import Kind
from espnet3_lite.config.container import Config, ConfigList
from espnet3_lite.config.environment import masked, masked_repr
from espnet3_lite.config.fields import CLOSED, FIELDS, MORE_KEYS, REFUSED
from espnet3_lite.config.interpolation import InterpolationError, is_interpolated
from espnet3_lite.config.loader_rules import LOADER_RULES
from espnet3_lite.config.rules import RULES, UNRESOLVED, is_resolved
from espnet3_lite.config.yaml_text import KeyPath, format_path
from espnet3_lite.exceptions import MisconfigurationException, nearest

if TYPE_CHECKING:
    from torch.nn import Module

_TOP_LEVEL = frozenset(path.partition(".")[0] for path in FIELDS)


class ConfigError(MisconfigurationException):
    """A configuration that cannot be trained with: ``errors`` has each mistake, the message all of them."""

    def __init__(self, errors: list[str]):
        self.errors = errors
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__("\n  ".join([f"{count} in the configuration:", *errors]))

    def __reduce__(self):
        return type(self), (self.errors,)


class Report:
    """The mistakes found so far.

    Attributes:
        config: What is checked.
        settings: Its training keys as plain dicts and lists, null left out, interpolations resolved (where
            that fails, which is reported by itself, `rules.UNRESOLVED`).
        errors: One text for each mistake.
    """

    def __init__(self, config: Config):
        self.config = config
        self.errors: list[str] = []
        self.settings: dict[str, Any] = {}
        for key in config:
            if key in _TOP_LEVEL and (value := self._resolved(config, key)) is not None:
                self.settings[key] = value

    def add(self, path: KeyPath, problem: str) -> None:
        """Note a mistake at a key, once."""
        location = self.config.location(*path)
        error = masked(f"{format_path(path)}{f' ({location})' if location else ''}: {problem}")
        if error not in self.errors:
            self.errors.append(error)

    def check_value(self, path: KeyPath, value: Any, kind: Kind) -> None:
        """Note a value that is not of its kind; one that could not be resolved is a mistake already."""
        if is_resolved(value) and (problem := kind.problem(value)):
            self.add(path, problem.replace(repr(value), masked_repr(value)))

    def check_known(self, path: KeyPath, value: Any, known: Collection[str]) -> None:
        """Note a key, with its value, that is not among the known ones."""
        if path[-1] not in known:
            is_scalar = not isinstance(value, dict | list) and value is not UNRESOLVED
            shown = f" (its value is {masked_repr(value)})" if is_scalar else ""
            self.add(path, f"unknown key{shown}{nearest(str(path[-1]), known)}")

    def _resolved(self, view: Config | ConfigList, key: Any) -> Any:
        try:
            value = view[key]
            if isinstance(value, Config | ConfigList) and is_interpolated(view.raw(key)):
                value = _without_null(value.to_container())  # it stands elsewhere; a failure in there ends it here
        except InterpolationError as error:
            self.add(error.path, error.problem)
            return UNRESOLVED
        if isinstance(value, ConfigList):
            return [self._resolved(value, index) for index in range(len(value))]
        if isinstance(value, Config):
            items = {name: self._resolved(value, name) for name in value}
            return {name: item for name, item in items.items() if item is not None}
        return value


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def check_config(config: Mapping[str, Any], module: "Module | None" = None) -> None:
    """Check a training configuration as ESPnet3 has it, and report every mistake in one error.

    Checked are types and allowed values, names (unknown keys of ``trainer``, ``optimizers.<name>``,
    ``dataloader``, ...; keys at the top level only where they are clearly misspelt), interpolations,
    ``_target_`` and their arguments, and what keys say about each other. Keys of other ESPnet3 stages are
    left alone. null counts as absent.

    Args:
        config: A `Config` (errors then give file and line) or a mapping.
        module: The model, where it is already built: ``model`` may then be absent, and the parameters that
            each of several optimizers selects are checked too.

    Raises:
        ConfigError: One or more mistakes.

    >>> check_config({"model": {"_target_": "torch.nn.Identity"}, "trainer": {"max_epoch": 3}})
    Traceback (most recent call last):
        ...
    espnet3_lite.config.schema.ConfigError: 2 errors in the configuration:
      trainer.max_epoch: unknown key (its value is 3); did you mean 'max_epochs'?
      optimizer: is missing; give one optimizer, or several by name in 'optimizers'
    """
    report = Report(config if isinstance(config, Config) else Config.create(config))
    _check_top_level(report)
    _check_values(report)
    _check_names(report)
    for rule in (*RULES, *LOADER_RULES):
        rule(report, module)
    if report.errors:
        raise ConfigError(report.errors)


def _matches(settings: Any, pattern: list[str], path: KeyPath = ()) -> Iterable[tuple[KeyPath, Any]]:
    """All (path, value) in the settings that a pattern such as ``optimizers.*.params`` describes."""
    if not pattern:
        yield path, settings
    elif isinstance(settings, dict):
        for key in settings if pattern[0] == "*" else [pattern[0]] if pattern[0] in settings else []:
            yield from _matches(settings[key], pattern[1:], (*path, key))


def _check_values(report: Report) -> None:
    for pattern, kind in FIELDS.items():
        for path, value in _matches(report.settings, pattern.split(".")):
            report.check_value(path, value, kind)


def _check_names(report: Report) -> None:
    for pattern in CLOSED:
        known = {
            path.removeprefix(pattern + ".").partition(".")[0] for path in FIELDS if path.startswith(pattern + ".")
        }
        known.update(MORE_KEYS.get(pattern, ()))
        for path, mapping in _matches(report.settings, pattern.split(".")):
            for key, value in mapping.items() if isinstance(mapping, dict) else ():
                instead = REFUSED.get(f"{pattern}.{key}")
                if instead is None:
                    report.check_known((*path, key), value, known)
                elif value is not False:
                    shown = f"{value!r} is" if is_resolved(value) else "is"
                    report.add((*path, key), f"{shown} not supported; {instead}")


def _check_top_level(report: Report) -> None:
    """Unknown keys at the top are the user's own, unless they look misspelt and nothing refers to them."""
    text = repr(report.config.to_container(resolve=False))  # which may hold objects, in a program
    for key in report.config:
        if key in _TOP_LEVEL or report.config.raw(key) is None or re.search(rf"\$\{{\s*{re.escape(str(key))}\b", text):
            continue
        meant = max(_TOP_LEVEL, key=lambda known: SequenceMatcher(None, str(key), known).ratio())
        ratio = SequenceMatcher(None, str(key), meant).ratio()
        is_variant = str(key).startswith((f"{meant}_", f"{meant}-"))
        if not is_variant and (ratio >= 0.85 and len(str(key)) >= 6 or ratio >= 0.8 and meant not in report.settings):
            report.add((key,), f"unknown key; did you mean {meant!r}?")
