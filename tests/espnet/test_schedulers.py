"""ESPnet's schedules: the rates that espnet 202611 gives, recorded by running it, and what it refuses or gets wrong.

``data/espnet_schedules.json``: name, arguments, and the rates of two parameter groups (0.2 and 0.05 at first) at each
of 16 updates; for WarmupReduceLROnPlateau what `step` was given, and the rate after it.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from espnet3_lite.espnet import schedulers
from espnet3_lite.exceptions import MisconfigurationException

RECORDED = json.loads((Path(__file__).parent / "espnet_schedules.json").read_text())
CLOSED_FORM = [row for row in RECORDED if row[0] != "WarmupReduceLROnPlateau"]


def _optimizer():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.05}], lr=0.2)


def _rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(("name", "arguments", "expected"), CLOSED_FORM)
def test_rates_are_espnets(name, arguments, expected):
    optimizer = _optimizer()
    scheduler = getattr(schedulers, name)(optimizer, **arguments)
    for rates in expected:
        assert _rates(optimizer) == pytest.approx(rates, rel=1e-12, abs=1e-16)
        assert scheduler.get_last_lr() == _rates(optimizer)
        assert all(type(rate) is float for rate in _rates(optimizer))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("name", "arguments", "expected"), CLOSED_FORM)
def test_a_resumed_schedule_goes_on_where_it_was(name, arguments, expected):
    optimizer = _optimizer()
    scheduler = getattr(schedulers, name)(optimizer, **arguments)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    twin = _optimizer()
    resumed = getattr(schedulers, name)(twin, **arguments)
    twin.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert _rates(twin) == _rates(optimizer)
    for rates in expected[8:]:
        twin.step()
        resumed.step()
        assert _rates(twin) == pytest.approx(rates, rel=1e-12, abs=1e-16)


def _plateau_run(scheduler, optimizer, steps):
    rates = []
    for metric in steps:
        optimizer.step()
        scheduler.step() if metric is None else scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_warmup_and_plateau_are_espnets_also_when_resumed_at_any_step():
    _, arguments, recorded = RECORDED[-1]
    steps, expected = zip(*recorded, strict=True)
    for cut in range(len(steps)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
        scheduler = schedulers.WarmupReduceLROnPlateau(optimizer, **arguments)
        rates = _plateau_run(scheduler, optimizer, steps[:cut])
        twin = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
        resumed = schedulers.WarmupReduceLROnPlateau(twin, **arguments)
        twin.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(scheduler.state_dict())
        rates += _plateau_run(resumed, twin, steps[cut:])
        assert rates == pytest.approx(expected, rel=1e-12)
        assert resumed.get_last_lr() == [expected[-1]]


def test_warmup_that_is_not_from_zero_holds_max_lr():
    """ESPnet's documentation; its code has the optimizer's own rate there, so that the rate jumps twice."""
    optimizer = _optimizer()
    scheduler = schedulers.ExponentialDecayWarmup(optimizer, max_lr=0.4, min_lr=0.1, total_steps=6, warmup_steps=2)
    seen = []
    for _ in range(5):
        seen.append(_rates(optimizer)[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.4, 0.4, 0.4, 0.4 * 0.25**0.25, 0.2])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("WarmupLR", {"warmup_steps": 0}, "warmup_steps=0: it must be above 0"),
        ("NoamLR", {"model_size": -1}, "model_size=-1: it must be above 0"),
        ("WarmupStepLR", {"steps_per_epoch": 0}, "steps_per_epoch=0: it must be at least 1"),
        ("TristageLR", {"hold_ratio": 0.5}, "warmup_ratio + hold_ratio + decay_ratio=1.1: it must be 1"),
        ("TristageLR", {"init_lr_scale": 0}, "init_lr_scale=0: it must be above 0 and at most 1"),
        (
            "LinearWarmupDecayLR",
            {"warmup_steps": 5, "total_steps": 5},
            "total_steps=5: it must be above warmup_steps=5",
        ),
        ("ExponentialDecayWarmup", {"max_lr": 1, "min_lr": 0, "total_steps": 2}, "min_lr=0: it must be above 0"),
        (
            "CosineAnnealingWarmupRestarts",
            {"first_cycle_steps": 2, "warmup_steps": 2},
            "warmup_steps=2: it must be below first_cycle_steps=2",
        ),
        (
            "PiecewiseLinearWarmupLR",
            {"warmup_steps_list": [0, 5, 3], "warmup_lr_list": [0, 1, 2]},
            "warmup_steps_list=[0, 5, 3], warmup_lr_list=[0, 1, 2]: there must be one rate for each step, "
            "and the steps must rise",
        ),
    ],
)
def test_impossible_arguments_are_refused(name, arguments, message):
    with pytest.raises(MisconfigurationException) as caught:
        getattr(schedulers, name)(_optimizer(), **arguments)
    assert str(caught.value) == message


def test_state_loads_with_weights_only(tmp_path):
    scheduler = schedulers.PiecewiseLinearWarmupLR(_optimizer(), [0, 4], [0.0, 0.4])
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["last_epoch"] == 0 and math.isclose(state["_last_lr"][0], 0.1)
