"""Means, sums and counts of logged values, whatever type they and their weights come in, against plain Python."""

import math
from types import SimpleNamespace

import pytest
import torch
from metrics_lab import log, metrics_in
from weights_parts import Net, loader, trainer_of

from espnet3_lite import ESPnetModule
from espnet3_lite.metrics.logged_value import LogArguments, LoggedValue, reduce_over_ranks

VALUES = [float(i) for i in range(60)]
WEIGHTS = [100 + i for i in range(60)]
TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
)  # fmt: skip


def mean_of(pairs, **arguments):
    metrics = metrics_in()
    for value, weight in pairs:
        log(metrics, "x", value, on_epoch=True, on_step=False, batch_size=weight, **arguments)
    return metrics.end_epoch()["x"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_weight_of_any_type_is_summed_without_loss(dtype, shape):
    weights = [torch.full(shape, 1 if dtype == torch.int8 else weight).to(dtype) for weight in WEIGHTS]
    exact = sum(float(w) * v for w, v in zip(weights, VALUES, strict=True)) / sum(map(float, weights))
    assert float(mean_of(zip(VALUES, weights, strict=True))) == pytest.approx(exact, rel=1e-6)
    assert float(mean_of((1.0, weight) for weight in weights)) == 1.0


@pytest.mark.parametrize("dtype", TYPES)
def test_a_value_of_any_type_is_averaged_without_loss(dtype):
    values = [torch.tensor(value).to(dtype) for value in VALUES]
    exact = sum(float(v) * w for v, w in zip(values, WEIGHTS, strict=True)) / sum(WEIGHTS)
    assert float(mean_of(zip(values, WEIGHTS, strict=True))) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0), torch.tensor(0.0), torch.tensor(0.0, dtype=torch.half)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 7.0])
def test_what_has_no_weight_has_no_say(weight, value):
    assert mean_of([(value, weight), (2.0, 3), (4.0, 1)]) == 2.5
    assert mean_of([(2.0, 3), (torch.tensor(value), weight)]) == 2.0


def test_where_nothing_has_weight_the_mean_is_nan():
    assert math.isnan(mean_of([(1.0, 0)]))


def test_a_value_that_is_nan_and_has_weight_is_seen():
    assert math.isnan(mean_of([(math.nan, 1), (2.0, 3)]))


@pytest.mark.parametrize("number", [67128463, -67128463, 2**53 - 1, 3])
@pytest.mark.parametrize("make", [int, torch.tensor, lambda number: torch.tensor([number])])
def test_integers_stay_exact(number, make):
    metrics = metrics_in()
    log(metrics, "count", make(number))
    log(metrics, "sum", make(number), on_epoch=True, on_step=False, reduce_fx="sum")
    log(metrics, "largest", make(number), on_epoch=True, on_step=False, reduce_fx="max")
    log(metrics, "mean", make(number), on_epoch=True, on_step=False)
    assert (
        int(metrics.callback["count"]) == int(metrics.logged["count"]) == int(metrics.step_values()["count"]) == number
    )
    logged = metrics.end_epoch()
    assert {name: int(value) for name, value in logged.items()} == dict.fromkeys(("sum", "largest", "mean"), number)


def test_a_sum_of_large_integers_is_exact():
    metrics = metrics_in()
    for number in (67128463, 1, 1):
        log(metrics, "sum", number, on_epoch=True, on_step=False, reduce_fx="sum")
    assert int(metrics.end_epoch()["sum"]) == 67128465


@pytest.mark.parametrize(
    "weight", [-4, -0.5, math.nan, math.inf, torch.tensor(-4), torch.tensor(math.nan), torch.tensor([1, 2]), "two", [3]]
)
def test_a_batch_size_that_is_no_weight_is_an_error(weight):
    with pytest.raises(ValueError, match=r"self.log\('x', ..., batch_size=.*one finite number, at least 0"):
        mean_of([(1.0, weight)])


def test_the_weight_of_a_batch_is_judged_by_the_vote_which_skips_it():
    """`ESPnetModule` logs before the ranks have seen that a weight is unsound: that is no error of `log`."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x, weight):
            loss = self.layer(x).square().mean()
            return loss, {"loss": loss.detach(), "one": 1.0}, weight

    batches = [(["a"], {"x": torch.ones(1, 1), "weight": weight}) for weight in (2.0, -1.0, torch.tensor(-1.0))]
    module = ESPnetModule(Model(), {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    trainer = trainer_of(max_epochs=1)
    with pytest.warns(UserWarning, match="the weight is -1.0"):
        trainer.fit(module, batches)
    assert trainer.global_step == 1


@pytest.mark.parametrize("how, expected", [("min", 1.0), ("max", 3.0), ("sum", 6.0), ("mean", 1.5)])
@pytest.mark.parametrize("nan_at", [None, 0, 1])
def test_ranks_are_reduced_alike_in_any_order(how, expected, nan_at):
    totals = [1.0, 3.0, 2.0]
    if nan_at is not None:
        totals[nan_at] = math.nan
    key = ("training_step", "x", None)
    arguments = LogArguments(False, True, False, True, how, False, False, True, False)
    row = {"arguments": arguments, "on_step": False, "on_epoch": True, "metric": None}
    parts = [{key: {**row, "total": total, "weight": 1 + rank % 2}} for rank, total in enumerate(totals)]
    strategy = SimpleNamespace(gather_objects=lambda mine: parts, root_device=torch.device("cpu"))
    entries = {key: LoggedValue("x", "training_step", arguments)}
    metrics = SimpleNamespace(loader_suffix="")
    reduce_over_ranks(entries, SimpleNamespace(strategy=strategy, lightning_module=None, metrics=metrics))
    value = float(entries[key].epoch_value())
    assert math.isnan(value) if nan_at is not None else value == expected


def test_the_best_checkpoint_is_not_decided_by_a_weight_in_a_narrow_type():
    class Weighed(Net):
        def validation_step(self, batch, batch_idx):
            self.log("one", 1.0, batch_size=torch.tensor(200, dtype=torch.uint8))

    trainer = trainer_of(max_epochs=1)
    trainer.fit(Weighed(), loader(), loader())
    assert trainer.callback_metrics["one"] == 1.0
