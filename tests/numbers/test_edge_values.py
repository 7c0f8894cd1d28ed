"""Edge values for what compares, averages, clips, prunes and stops, against plain torch."""

import copy
import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import update_bn
from weights_parts import trainer_of

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMACallback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from espnet3_lite.callbacks.checkpoints.averaging import average_state_dicts
from espnet3_lite.espnet import schedulers
from espnet3_lite.optim.clipping import clip_gradients, largest_gradient

GRADIENTS = {
    "plain": [[3.0, 4.0]], "zero": [[0.0, 0.0]], "one element": [[5.0]], "empty": [[]], "none": [None],
    "infinite": [[math.inf, 1.0]], "nan": [[math.nan, 1.0]], "nan first": [[math.nan], [1.0]],
    "several": [[1.0], [2.0, 2.0]],
}  # fmt: skip


def optimizer_with(gradients, dtype, frozen=False):
    parameters = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(1 if gradient is None else len(gradient), dtype=dtype))
        parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
        parameter.requires_grad_(not frozen)
        parameters.append(parameter)
    return torch.optim.SGD(parameters, lr=0.1), parameters


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("frozen", [False, True])
def test_clipping_equals_torchs(name, dtype, algorithm, frozen):
    optimizer, parameters = optimizer_with(GRADIENTS[name], dtype, frozen)
    _, expected = optimizer_with(GRADIENTS[name], dtype, frozen)
    norm = clip_gradients(optimizer, 1.0, algorithm)
    if algorithm == "norm":
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(expected, 1.0), equal_nan=True)
    else:
        assert norm is None
        if name != "none":  # torch fails there
            torch.nn.utils.clip_grad_value_(expected, 1.0)
    for one, other in zip(parameters, expected, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_largest_gradient_is_finite_where_all_are(name):
    _, parameters = optimizer_with(GRADIENTS[name], torch.float32)
    values = [value for gradient in GRADIENTS[name] for value in gradient or ()]
    assert math.isfinite(float(largest_gradient(parameters))) == all(map(math.isfinite, values))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_sparse_gradient_is_clipped_as_a_dense_one(algorithm):
    def embedding(sparse):
        torch.manual_seed(0)
        layer = torch.nn.Embedding(5, 2, sparse=sparse)
        layer(torch.tensor([1, 3, 1])).square().sum().backward()
        return layer

    sparse, dense = embedding(True), embedding(False)
    found = clip_gradients(torch.optim.SGD(sparse.parameters(), lr=0.1), 0.5, algorithm)
    expected = clip_gradients(torch.optim.SGD(dense.parameters(), lr=0.1), 0.5, algorithm)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)
    assert found is None if algorithm == "value" else torch.isclose(found, expected)


@pytest.mark.parametrize(
    "values, mode, check_finite, stops_at, waits",
    [
        ([math.nan, 1.0], "min", True, 0, 0),
        ([math.nan, 1.0, 0.5], "min", False, None, 0),
        ([math.nan, math.nan], "min", False, 1, 2),
        ([math.inf, 1.0], "min", False, None, 0),
        ([-math.inf, 1.0, 2.0], "min", False, 2, 2),
        ([1.0, 1.0, 1.0], "min", True, 2, 2),
        ([1.0, 1.0, 1.0], "max", True, 2, 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_early_stopping_on_edge_values(values, mode, check_finite, stops_at, waits, dtype):
    stopping = EarlyStopping("x", patience=2, mode=mode, check_finite=check_finite)
    stopped = [stopping._evaluate_stopping_criteria(torch.tensor(value, dtype=dtype))[0] for value in values]
    assert (stopped.index(True) if True in stopped else None) == stops_at
    assert stopping.wait_count == waits


class Halves(LiteModule):
    """Shared, frozen and half-precision parameters."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.to(dtype)

    def training_step(self, batch, batch_idx):
        return self.second(self.first(batch.to(self.dtype))).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_average_of_shared_frozen_and_half_parameters(dtype):
    module, seen = Halves(dtype), []
    module.on_train_batch_end = lambda *_: seen.append(module.first.weight.detach().clone())
    trainer_of(EMAWeightAveraging(decay=0.5), max_epochs=1).fit(module, [torch.ones(1, 2)] * 3)
    expected = seen[0]
    for value in seen[1:]:
        expected = 0.5 * expected + 0.5 * value
    torch.testing.assert_close(module.first.weight.detach(), expected)
    assert module.second.weight is module.first.weight
    assert module.frozen.tolist() == [1.0, 1.0] and module.first.weight.dtype == dtype


def test_pruning_of_equal_values_takes_the_asked_share():
    class Equal(Halves):
        def __init__(self):
            super().__init__(torch.float32)
            self.second = torch.nn.Linear(2, 2)
            torch.nn.init.ones_(self.first.weight)

    module = Equal()
    pruning = ModelPruning(
        "l1_unstructured", [(module.first, "weight")], amount=0.5, use_lottery_ticket_hypothesis=False
    )
    trainer_of(pruning, max_epochs=1, limit_train_batches=1).fit(module, [torch.ones(1, 2)] * 2)
    assert int((module.first.weight == 0).sum()) == 2


# ---- what ranks and stops: a value that is logged once an epoch ------------------------------------------------------

NAN, INF = math.nan, math.inf


def tensors(dtype, *values):
    return [torch.tensor(value, dtype=dtype) for value in values]


# The values; the epochs whose files stay of two, the best one first, by min and by max; where EarlyStopping(patience=1)
# ends by min (after how many epochs).
LOGGED = {
    "NaN first": (tensors(torch.float32, NAN, 2, 1), [2, 1], [1, 2], 1),
    "all NaN": (tensors(torch.float32, NAN, NAN, NAN), [0, 1], [0, 1], 1),
    "infinities": (tensors(torch.float32, INF, -INF, 1), [1, 2], [0, 2], 1),
    "equal": (tensors(torch.float32, 1, 1, 1), [0, 1], [0, 1], 2),
    "close in float64": (tensors(torch.float64, 1, 1 + 1e-12, 1 - 1e-12), [2, 0], [1, 0], 2),
    "float16": (tensors(torch.float16, 3, 1, 2), [1, 2], [0, 2], 3),
    "bfloat16": (tensors(torch.bfloat16, 3, 1, 2), [1, 2], [0, 2], 3),
    "int": ([3, 1, 2], [1, 2], [0, 2], 3),
    "large int64": (tensors(torch.int64, 2**40 + 2, 2**40, 2**40 + 1), [1, 2], [0, 2], 3),
    "uint8": (tensors(torch.uint8, 3, 1, 2), [1, 2], [0, 2], 3),
    "bool": ([True, False, True], [1, 0], [0, 2], 3),
    "bool tensor": (tensors(torch.bool, 1, 0, 1), [1, 0], [0, 2], 3),
    "one element": (tensors(torch.float32, [3], [1], [2]), [1, 2], [0, 2], 3),
}


class Logs(LiteModule):
    def __init__(self, values):
        super().__init__()
        self.values, self.weight = values, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("x", self.values[self.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "x"}}


def fit_logged(values, *callbacks, **settings):
    trainer, data = trainer_of(*callbacks, max_epochs=3, **settings), [torch.ones(1)]
    trainer.fit(Logs(values), data, data)
    return trainer


@pytest.mark.parametrize("name", LOGGED)
def test_files_are_ranked_by_edge_values_and_a_plateau_is_torchs(tmp_path, name):
    values, by_min, by_max, _ = LOGGED[name]
    for mode, expected in (("min", by_min), ("max", by_max)):
        save = ModelCheckpoint(tmp_path / mode, "{epoch}", monitor="x", mode=mode, save_top_k=2)
        trainer = fit_logged(values, save, enable_checkpointing=True)
        worst = INF if mode == "min" else -INF
        scores = {epoch: float(values[epoch]) for epoch in expected}
        scores = {str(tmp_path / mode / f"epoch={n}.ckpt"): worst if s != s else s for n, s in scores.items()}
        assert {path: float(score) for path, score in save.best_k_models.items()} == scores
        assert save.best_model_path == next(iter(scores))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = ReduceLROnPlateau(optimizer, patience=0)
    for value in values:
        plateau.step(float(value))
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", LOGGED)
def test_a_run_is_stopped_by_edge_values(name):
    values, *_, epochs = LOGGED[name]
    assert fit_logged(values, EarlyStopping("x", patience=1)).current_epoch == epochs


@pytest.mark.parametrize(
    "value", [torch.tensor([]), torch.ones(2), torch.tensor(1j), 1j], ids=["empty", "two", "complex", "complex number"]
)
def test_what_cannot_be_compared_cannot_be_logged(value):
    with pytest.raises(ValueError, match="single element|real number|cannot be logged"):
        fit_logged([value] * 3)


# ---- what averages: tensors of every kind ----------------------------------------------------------------------------


class Kinds(Halves):
    """`Halves`, and what has no mean: its values change with each batch."""

    def __init__(self, dtype=torch.float64):
        super().__init__(dtype)
        self.count = torch.nn.Parameter(torch.arange(3), requires_grad=False)
        self.scalar, self.empty = torch.nn.Parameter(torch.ones((), dtype=dtype)), torch.nn.Parameter(torch.ones(0))
        others = torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([True, False]), torch.ones(2, dtype=torch.int64)
        for name, buffer in zip(("bytes", "mask", "whole"), others, strict=True):
            self.register_buffer(name, buffer)
        self.register_buffer("eighths", torch.ones(2).to(torch.float8_e4m3fn))
        self.register_buffer("halves", torch.ones(2, dtype=torch.float16))
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex128))
        self.register_buffer("none", None)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for tensor in (self.count, self.bytes, self.whole, self.halves, self.complex):
                tensor.add_(1)
            self.mask.logical_not_()
            self.eighths.copy_((self.eighths.float() + 1).to(self.eighths.dtype))
        return super().training_step(batch, batch_idx) + self.scalar.square() + self.empty.sum()


class Follow(Callback):
    """All tensors at the start, after each step, and where an epoch begins."""

    def __init__(self):
        self.steps, self.starts = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(copy.deepcopy(pl_module.state_dict()))


def mean(tensors):
    return sum(tensors[1:], tensors[0]) / len(tensors)


def moving(tensors):
    average = tensors[0]
    for tensor in tensors[1:]:
        average = 0.5 * average + 0.5 * tensor
    return average


#: The callback; what it averages of which moments; whether buffers, too.
AVERAGES = {
    "exponential": (lambda: EMAWeightAveraging(decay=0.5), moving, "steps", True),
    "mean": (lambda: WeightAveraging(), mean, "steps", True),
    "mean of parameters": (lambda: WeightAveraging(use_buffers=False), mean, "steps", False),
    "torch's own of lists": (
        lambda: WeightAveraging(multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)), moving, "steps", True,
    ),
    "SWA": (lambda: StochasticWeightAveraging(0.25, swa_epoch_start=1), mean, "starts", False),
}  # fmt: skip


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_floats_are_averaged_and_everything_else_is_the_newest(name, dtype):
    make, formula, moments, buffers = AVERAGES[name]
    module, follow = Kinds(dtype), Follow()
    trainer_of(follow, make(), max_epochs=2).fit(module, [torch.ones(1, 2)] * 3)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    exact = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {}
    for key, value in module.state_dict().items():
        averaged = value.dtype.itemsize > 1 and (value.is_floating_point() or value.is_complex())
        if averaged and (buffers or key in parameters):
            expected = formula([state[key] for state in getattr(follow, moments)])
            torch.testing.assert_close(value, expected, **(exact if value.dtype == dtype else {}))
        else:
            assert torch.equal(value.float(), follow.steps[-1][key].float()), key
    assert module.second.weight is module.first.weight
    assert module.count.tolist() == [6, 7, 8] and module.eighths.float().tolist() == [7.0, 7.0]


def test_espnets_average_takes_tensors_of_every_kind():
    module, follow, ema = Kinds(), Follow(), EMACallback(decay=0.5, update_after_step=0, update_every=1, min_value=0.5)
    trainer_of(follow, ema, max_epochs=2).fit(module, [torch.ones(1, 2)] * 3)
    average = ema._average.module.state_dict()
    # torch's first update copies; so does the callback's own first step
    torch.testing.assert_close(average["first.weight"], moving([state["first.weight"] for state in follow.steps]))
    assert average["eighths"].float().tolist() == [2.0, 2.0] and average["count"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_swas_statistics_are_torchs_update_bn(dtype):
    class Norms(Kinds):
        def __init__(self):
            super().__init__(dtype)
            self.norm = torch.nn.BatchNorm1d(2, dtype=dtype)
            self.fixed = torch.nn.BatchNorm1d(2, dtype=dtype, track_running_stats=False)

        def forward(self, x):
            return self.fixed(self.norm(self.first(x)))

        def training_step(self, batch, batch_idx):
            return self(batch).square().mean()

    batches = list(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).to(dtype))
    module, follow = Norms(), Follow()
    trainer_of(follow, StochasticWeightAveraging(0.25, swa_epoch_start=1), max_epochs=2).fit(module, batches)
    plain = Norms()
    plain.load_state_dict(module.state_dict())
    update_bn(batches, plain)
    torch.testing.assert_close(module.norm.running_mean, plain.norm.running_mean)
    torch.testing.assert_close(module.norm.running_var, plain.norm.running_var)
    torch.testing.assert_close(module.first.weight, mean([state["first.weight"] for state in follow.starts[:2]]))


@pytest.mark.parametrize("decay", [NAN, -0.1, 1.1])
def test_a_decay_that_is_none_is_refused(decay):
    for make in (EMAWeightAveraging, EMACallback):
        with pytest.raises(MisconfigurationException, match=f"{make.__name__}.*decay={decay}"):
            make(decay=decay)


def test_files_with_nan_infinite_and_empty_tensors_are_averaged_as_torch_does():
    rows = torch.tensor([[NAN, INF, INF, 1.0], [1.0, 1.0, -INF, 1.0]])
    files = {str(n): {"rows": row, "empty": torch.ones(0), "one": row[3:]} for n, row in enumerate(rows)}
    result = average_state_dicts(files)
    torch.testing.assert_close(result["rows"], rows.mean(0), equal_nan=True, rtol=0, atol=0)
    assert result["empty"].shape == (0,) and result["one"].tolist() == [1.0]


# ---- what prunes -----------------------------------------------------------------------------------------------------


def pruned(module, *arguments, **settings):
    callback = ModelPruning(*arguments, use_lottery_ticket_hypothesis=False, **settings)
    trainer_of(callback, max_epochs=2).fit(module, [torch.ones(1, 2, dtype=module.dtype)] * 2)
    return module


@pytest.mark.parametrize("function", ["l1_unstructured", "random_unstructured"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_shared_parameter_keeps_one_mask(function, everywhere):
    """Each of its modules had a mask of its own: they trained with different weights, and ended with the overlap."""

    class Tied(Halves):
        def on_train_batch_start(self, batch, batch_idx):
            if self.current_epoch:
                assert torch.equal(self.first.weight_mask, self.second.weight_mask)
                assert torch.equal(self.first.weight, self.second.weight)

    module = pruned(Tied(torch.float64), function, None, ["weight"], everywhere, amount=0.5)
    assert module.second.weight is module.first.weight
    if not everywhere:  # a half of four, then a half of the two that are left
        assert int((module.first.weight == 0).sum()) == 3


class Weighted(Halves):
    """A part with a parameter of another kind, called `weight`."""

    def __init__(self, weight):
        super().__init__(torch.float32)
        self.other = torch.nn.Module()
        self.other.weight = torch.nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(
    "weight, local",
    [
        (torch.tensor([1, 2, 3, 4]), [1, 2, 3, 4]),
        (torch.tensor([True, False]), [True, False]),
        (torch.ones(0), []),
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), [0.0, 0.0, 0.0, 4.0]),
        (torch.tensor([8.0], dtype=torch.float16), [8.0]),
    ],
    ids=["integers", "bool", "empty", "frozen", "one half"],
)
def test_pruning_parameters_of_every_kind(weight, local, everywhere):
    module = pruned(Weighted(weight), "l1_unstructured", None, ["weight"], everywhere, amount=0.5)
    assert module.other.weight.dtype == weight.dtype
    if not everywhere or not weight.is_floating_point():
        assert module.other.weight.tolist() == local
    assert int((module.first.weight == 0).sum()) > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(pruning_fn="l1_unstructured", amount=NAN), "amount=nan; give a fraction"),
        (dict(pruning_fn="l1_unstructured", amount=1.5), "amount=1.5; give a fraction"),
        (dict(pruning_fn="l1_unstructured", amount=-1), "amount=-1; give a fraction"),
        (dict(pruning_fn="l1_unstructured", amount=True), "`amount` should be"),
        (dict(pruning_fn="l1_unstructured", amount=99), "amount=99: amount=99 should be smaller"),
        (dict(pruning_fn="l1_unstructured", amount=lambda epoch: NAN), "L1Unstructured, amount=nan: cannot convert"),
        (
            dict(pruning_fn="ln_structured", use_global_unstructured=False, pruning_dim=0, pruning_norm=2),
            r"ln_structured with pruning_dim=0 needs .* 2 dim.* \['first.bias', 'second.bias'\] have fewer",
        ),
        (
            dict(
                pruning_fn="random_structured", use_global_unstructured=False, pruning_dim=-3,
                parameter_names=["weight"],
            ),
            r"pruning_dim=-3 .* \['first.weight', 'second.weight'\] have fewer",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_an_error_of_ours(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        pruned(Halves(torch.float64), **arguments)


def test_pruning_nothing_is_an_error():
    with pytest.raises(MisconfigurationException, match="no module inside of Logs has a floating-point parameter"):
        trainer_of(ModelPruning("l1_unstructured"), max_epochs=1).fit(Logs([0]), [torch.ones(1)])


# ---- windows and groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("scheduling", [{1: 2}, {0: 5}, {0: 3, 1: 1}])
def test_windows_by_epoch_are_those_of_a_plain_loop(scheduling, count, sparse):
    """Also of more batches than an epoch has, of one batch, and with sparse gradients."""

    class Words(LiteModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(4, 2, sparse=sparse, dtype=torch.float64)

        def training_step(self, batch, batch_idx):
            return self.table(batch).square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = list(torch.tensor([[1, 1], [2, 1], [3, 2]])[:count])
    module, plain = Words(), Words()
    trainer_of(GradientAccumulationScheduler(scheduling), max_epochs=3).fit(module, batches)
    optimizer = plain.configure_optimizers()
    for epoch in range(3):
        window = {**{0: 1}, **scheduling}[max(start for start in {0, *scheduling} if start <= epoch)]
        for index, batch in enumerate(batches):
            if index % window == 0:
                optimizer.zero_grad()
            (plain.training_step(batch, index) / window).backward()
            if (index + 1) % window == 0 or index + 1 == count:
                optimizer.step()
    torch.testing.assert_close(module.table.weight, plain.table.weight, rtol=0, atol=1e-15)


class Spine(LiteModule):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.head = kind, torch.nn.Linear(2, 2)
        self.backbone = torch.nn.Identity() if kind == "empty" else torch.nn.Linear(2, 2)
        if kind == "shared":
            self.head.weight = self.backbone.weight

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch)).square().mean()

    def configure_optimizers(self):
        held = [p for p in self.parameters() if p.requires_grad or self.kind == "all held"]
        return torch.optim.SGD(held, lr=torch.tensor(0.5) if self.kind == "tensor" else 0.5)


@pytest.mark.parametrize(
    "kind, groups, last",
    [
        ("plain", [1, 2, 2, 2, 2, 2], [0.5, 0.05, 0.1, 0.2, 0.4, 0.5]),
        ("tensor", [1, 2, 2, 2, 2, 2], [0.5, 0.05, 0.1, 0.2, 0.4, 0.5]),
        ("shared", [1, 2, 2, 2, 2, 2], [0.5, 0.05, 0.1, 0.2, 0.4, 0.5]),
        ("empty", [1] * 6, [0.5] * 6),  # no group joins: the head's rate was overwritten by a tenth of it
        ("all held", [1] * 6, [0.5] * 6),
    ],
)
def test_a_backbones_rate_is_no_others(kind, groups, last):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])

    rates = []
    trainer_of(BackboneFinetuning(1), Rates(), max_epochs=6).fit(Spine(kind), [torch.ones(1, 2)])
    assert [len(row) for row in rates] == groups
    assert [row[0] for row in rates] == [0.5] * 6
    assert [row[-1] for row in rates] == pytest.approx(last)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_group_that_joins_is_weighed_and_clipped_with_the_others(clip):
    class Joins(Spine):
        accumulate_by_weight = True

        def training_step(self, batch, batch_idx):
            self.batch_weight = len(batch)
            return super().training_step(batch, batch_idx)

    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    batches = [rows[:2], rows[2:3], rows[3:]]
    settings = {} if clip is None else {"gradient_clip_val": clip}
    module, plain = Joins("plain").double(), Joins("plain").double()
    batches = [batch.double() for batch in batches]
    trainer_of(BackboneFinetuning(1), max_epochs=3, accumulate_grad_batches=2, **settings).fit(module, batches)
    optimizer = torch.optim.SGD(plain.head.parameters(), lr=0.5)
    for epoch in range(3):
        if epoch == 1:
            optimizer.add_param_group({"params": list(plain.backbone.parameters()), "lr": 0.05})
        elif epoch == 2:
            optimizer.param_groups[1]["lr"] = 0.1
        for window in (batches[:2], batches[2:]):
            plain.zero_grad()
            plain.head(plain.backbone(torch.cat(window))).square().mean().backward()
            if clip is not None:
                held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                torch.nn.utils.clip_grad_norm_(held, clip)
            optimizer.step()
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


SCHEDULES = {
    "WarmupLR": {"warmup_steps": 4}, "NoamLR": {"model_size": 4, "warmup_steps": 4},
    "WarmupStepLR": {"warmup_steps": 2, "steps_per_epoch": 2},
    "PiecewiseLinearWarmupLR": {"warmup_steps_list": [0, 4], "warmup_lr_list": [0.0, 0.4]},
    "TristageLR": {"max_steps": 12, "warmup_ratio": 0.3, "hold_ratio": 0.2, "decay_ratio": 0.5},
    "LinearWarmupDecayLR": {"warmup_steps": 4, "total_steps": 12},
    "ExponentialDecayWarmup": {"max_lr": 0.2, "min_lr": 0.1, "total_steps": 10},
    "CosineAnnealingWarmupRestarts": {"first_cycle_steps": 8, "warmup_steps": 2},
    "WarmupReduceLROnPlateau": {"warmup_steps": 4},
}  # fmt: skip


def rates_of(name, lr, *empty_groups):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, *({"params": [], **group} for group in empty_groups)]
    optimizer = torch.optim.SGD(groups, lr=lr)
    scheduler, rates = getattr(schedulers, name)(optimizer, **SCHEDULES[name]), []
    for _ in range(12):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_with_an_empty_group_and_with_rates_of_every_kind(name):
    alone = rates_of(name, 1.0)
    assert len({rate for (rate,) in alone}) > 2
    assert rates_of(name, 1) == alone
    assert rates_of(name, 1.0, {}, {}) == [row * 3 for row in alone]
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)):
        found = [rate for (rate,) in rates_of(name, torch.tensor(1.0, dtype=dtype))]
        assert found == pytest.approx([rate for (rate,) in alone], rel=close, abs=close / 10)


@pytest.mark.parametrize(
    "name, argument, value",
    [
        *((name, "warmup_steps", NAN) for name in SCHEDULES if "warmup_steps" in SCHEDULES[name]),
        *((name, "warmup_steps", INF) for name in SCHEDULES if "warmup_steps" in SCHEDULES[name]),
        ("NoamLR", "model_size", INF), ("WarmupStepLR", "gamma", NAN), ("TristageLR", "max_steps", NAN),
        ("TristageLR", "max_steps", INF), ("TristageLR", "max_steps", 0), ("LinearWarmupDecayLR", "total_steps", INF),
        ("PiecewiseLinearWarmupLR", "warmup_lr_list", [0.0, NAN]), ("PiecewiseLinearWarmupLR", "warmup_lr_list", []),
        ("PiecewiseLinearWarmupLR", "warmup_steps_list", [0, INF]), ("ExponentialDecayWarmup", "max_lr", INF),
        ("ExponentialDecayWarmup", "total_steps", INF), ("CosineAnnealingWarmupRestarts", "max_lr", NAN),
        ("CosineAnnealingWarmupRestarts", "gamma", NAN), ("CosineAnnealingWarmupRestarts", "warmup_steps", -1),
        ("WarmupReduceLROnPlateau", "factor", NAN), ("WarmupReduceLROnPlateau", "mode", "best"),
        ("WarmupReduceLROnPlateau", "min_lr", [0.0, 0.0]),
    ],
)  # fmt: skip
def test_a_schedule_refuses_what_makes_no_rates(name, argument, value):
    """Each gave NaN as a rate, one that never changes, or an error of torch's or Python's own."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(MisconfigurationException, match=argument):
        getattr(schedulers, name)(optimizer, **{**SCHEDULES[name], argument: value})


@pytest.mark.parametrize("values", [[NAN] * 4, [INF] * 4, [1.0] * 4, [3.0, NAN, 2.0, 2.0], [-INF, 0.0, 0.0, 0.0]])
def test_a_warm_up_with_a_plateau_cuts_as_torchs(values):
    plain, ours = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2))
    expected, scheduler = ReduceLROnPlateau(plain, patience=1), schedulers.WarmupReduceLROnPlateau(ours, 1, patience=1)
    scheduler.step()
    for value in values:
        expected.step(value)
        scheduler.step(torch.tensor(value))
        assert ours.param_groups[0]["lr"] == plain.param_groups[0]["lr"]


@pytest.mark.parametrize(
    "make, argument, value",
    [
        *((EarlyStopping, name, NAN) for name in (
            "patience", "min_delta", "stopping_threshold", "divergence_threshold",
        )),
        (EarlyStopping, "patience", -1), (ModelCheckpoint, "save_top_k", NAN), (ModelCheckpoint, "save_top_k", 1.5),
        (StochasticWeightAveraging, "swa_lrs", INF), (StochasticWeightAveraging, "swa_lrs", NAN),
        (StochasticWeightAveraging, "annealing_epochs", -1), (StochasticWeightAveraging, "swa_epoch_start", NAN),
        (BackboneFinetuning, "unfreeze_backbone_at_epoch", -1), (BackboneFinetuning, "unfreeze_backbone_at_epoch", 1.5),
        (BackboneFinetuning, "backbone_initial_lr", NAN), (BackboneFinetuning, "backbone_initial_ratio_lr", INF),
        (LearningRateFinder, "min_lr", 0.0), (LearningRateFinder, "min_lr", -1.0), (LearningRateFinder, "min_lr", NAN),
        (LearningRateFinder, "max_lr", INF), (LearningRateFinder, "max_lr", 1e-9),
        (LearningRateFinder, "num_training_steps", 0),
    ],
)  # fmt: skip
def test_a_callback_refuses_what_it_cannot_compare_with(make, argument, value):
    """Each ended in an error of Python's or torch's own, in NaN as a rate, or in a callback that did nothing."""
    needed = {EarlyStopping: {"monitor": "x"}, ModelCheckpoint: {"monitor": "x"}}
    needed[StochasticWeightAveraging] = {"swa_lrs": 0.1}
    with pytest.raises(MisconfigurationException, match=f"{argument}.*{value}"):
        make(**{**needed.get(make, {}), argument: value})
