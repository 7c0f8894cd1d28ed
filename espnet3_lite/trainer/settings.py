"""What `Trainer` accepts: each argument checked, with a message that says what would do. No behaviour."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from espnet3_lite.exceptions import MisconfigurationException, nearest

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
STRATEGIES = ("auto", "ddp", "fsdp", "ddp_find_unused_parameters_true")


def refuse_unknown(unknown: dict[str, Any], known: list[str]) -> None:
    """Raise a `TypeError` that names the nearest argument, as for any misspelt keyword."""
    if unknown:
        name = next(iter(unknown))
        raise TypeError(f"Trainer() got an unexpected argument {name!r}{nearest(name, known)}. Known are: {known}")


def check_settings(settings: dict[str, Any]) -> None:
    """Check every argument of `Trainer` on its own; all errors in one message.

    Raises:
        MisconfigurationException: naming each argument, its value and what is allowed.
    """
    errors = [message for name, rule in _RULES.items() if (message := rule(name, settings[name]))]
    given = settings["val_check_interval"]
    if settings["check_val_every_n_epoch"] is None and isinstance(given, float) and given != 1.0:
        errors.append(
            "`val_check_interval` should be an integer when `check_val_every_n_epoch=None`, "
            f"found {settings['val_check_interval']!r}"
        )
    if settings["fast_dev_run"] is not False and isinstance(settings["fast_dev_run"], (bool, int)):
        if settings["fast_dev_run"] < 0:
            errors.append(f"fast_dev_run={settings['fast_dev_run']!r} must be True, False or a number of batches")
    if errors:
        raise MisconfigurationException("\n".join(f"Trainer: {error}" for error in errors))


def _fraction_or_count(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        return f"{name}={value!r} must be a number of batches (int) or a fraction from 0.0 to 1.0"
    if isinstance(value, float) and value > 1.0:
        return f"{name}={value!r}: a float is a fraction from 0.0 to 1.0; for batches give an int ({int(value)})"
    return ""


def _interval(name: str, value: Any) -> str:
    if value == 0 and not isinstance(value, bool):
        return f"{name}={value!r} must be positive; to leave validation out set limit_val_batches=0"
    return _fraction_or_count(name, value)


def _whole(low: int, none: bool = True, extra: str = "") -> Any:
    def rule(name: str, value: Any) -> str:
        if value is None and none:
            return ""
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            return f"{name}={value!r} must be a whole number, at least {low}{extra}{' (or None)' if none else ''}"
        return ""

    return rule


def _one_of(*allowed: Any) -> Any:
    def rule(name: str, value: Any) -> str:
        if value in allowed:
            return ""
        shown = ", ".join(map(repr, allowed))
        return f"{name}={value!r} must be one of {shown}{nearest(str(value), [str(a) for a in allowed])}"

    return rule


def _flag(name: str, value: Any) -> str:
    return "" if value is None or isinstance(value, bool) else f"{name}={value!r} must be True or False"


def _clip(name: str, value: Any) -> str:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0):
        return ""
    return f"{name}={value!r} must be a number, at least 0 (or None for no clipping)"


def _strategy(name: str, value: Any) -> str:
    if isinstance(value, str) and "deepspeed" in value.lower():
        return f"{name}={value!r} is not supported; use strategy='fsdp' (torch's FSDP2) for sharded training"
    if value == "ddp_find_unused_parameters_false":
        return f"{name}={value!r} is not supported; use 'ddp', which looks for no unused parameters"
    return _one_of(*STRATEGIES)(name, value)


def _devices(name: str, value: Any) -> str:
    if value in ("auto", -1, "-1") or isinstance(value, list):
        return ""
    good = isinstance(value, (int, str)) and not isinstance(value, bool) and str(value).isdigit() and int(value) > 0
    return "" if good else f"{name}={value!r} must be a number of devices per machine, a list of indices, or 'auto'"


def _unsupported(name: str, value: Any) -> str:
    return "" if value in (None, [], ()) else f"{name}={value!r} is not supported; leave it out (None)"


_RULES = {
    "accelerator": _one_of(*ACCELERATORS),
    "strategy": _strategy,
    "devices": _devices,
    "num_nodes": _whole(1, none=False),
    "max_epochs": _whole(-1, extra=" (-1: no limit)"),
    "min_epochs": _whole(0),
    "max_steps": _whole(-1, none=False, extra=" (-1: no limit)"),
    "min_steps": _whole(0),
    "limit_train_batches": _fraction_or_count,
    "limit_val_batches": _fraction_or_count,
    "limit_test_batches": _fraction_or_count,
    "limit_predict_batches": _fraction_or_count,
    "overfit_batches": _fraction_or_count,
    "val_check_interval": _interval,
    "check_val_every_n_epoch": _whole(1),
    "num_sanity_val_steps": _whole(-1, none=False, extra=" (-1: all batches)"),
    "log_every_n_steps": _whole(0, none=False, extra=" (0: never)"),
    "accumulate_grad_batches": _whole(1, none=False),
    "gradient_clip_val": _clip,
    "gradient_clip_algorithm": _one_of(None, "norm", "value"),
    "reload_dataloaders_every_n_epochs": _whole(0, none=False, extra=" (0: never)"),
    "deterministic": _one_of(None, True, False, "warn"),
    "benchmark": _flag,
    "inference_mode": _flag,
    "use_distributed_sampler": _flag,
    "detect_anomaly": _flag,
    "enable_checkpointing": _flag,
    "enable_progress_bar": _flag,
    "enable_model_summary": _flag,
    "check_grad_finite": _flag,
    "async_save": _flag,
    "auto_resume": _flag,
    "profiler": _unsupported,
    "plugins": _unsupported,
}


def parse_duration(value: Any) -> timedelta | None:
    """A timedelta from one, from a dict of its arguments, or from ``"DD:HH:MM:SS"``; None stays None.

    >>> parse_duration("00:01:30:00")
    datetime.timedelta(seconds=5400)
    """
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, dict):
        try:
            return timedelta(**value)
        except TypeError as error:
            raise MisconfigurationException(
                f"{value!r} is not a duration ({error}); give numbers of days, hours, minutes or seconds"
            ) from error
    parts = str(value).strip().split(":")
    if isinstance(value, str) and len(parts) == 4 and all(part.isdigit() for part in parts):
        days, hours, minutes, seconds = map(int, parts)
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    raise MisconfigurationException(
        f"{value!r} is not a duration; give 'DD:HH:MM:SS', a timedelta, or a dict such as {{'minutes': 90}}"
    )
