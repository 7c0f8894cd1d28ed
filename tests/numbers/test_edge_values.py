"""Edge values for what compares, averages, clips and stops, against plain torch."""

import math

import pytest
import torch
from weights_parts import trainer_of

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import EarlyStopping, EMAWeightAveraging, ModelPruning
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
