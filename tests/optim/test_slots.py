"""Which optimizer: what a step may return, what `configure_optimizers` may return, clipping."""

import pytest
import torch
from quiet import quiet_trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from espnet3_lite import LiteModule, MisconfigurationException, OptimizationStep
from espnet3_lite.checks.signatures import metric_of_step
from espnet3_lite.optim.clipping import clip_gradients
from espnet3_lite.optim.lr_stepping import LRSchedulerConfig
from espnet3_lite.optim.slots import OptimizerSlot, parse_optimizers, route


def sgd(value=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.tensor([value]))], lr=0.1)


def loss_of(value):
    return torch.tensor(value, requires_grad=True)


def named(*names, window=1):
    return {name: OptimizerSlot(sgd(), name=name, window=window) for name in names}


def test_a_plain_loss_is_the_list_of_one():
    slots, loss = {None: OptimizerSlot(sgd())}, loss_of(6.0)
    for output in (loss, {"loss": loss, "more": 1}):
        ((share, slot),) = route(output, slots, 3)
        assert share == 2.0 and slot is slots[None]
    assert route(None, slots, 3) == [(None, slots[None])]


def test_named_losses_are_divided_by_their_own_windows():
    slots = {**named("a", window=2), **named("b")}
    steps = (OptimizationStep(loss_of(6.0), "b"), OptimizationStep(loss_of(6.0), "a"))
    assert [(loss.item(), slot.name) for loss, slot in route(steps, slots, 1)] == [(6.0, "b"), (3.0, "a")]
    assert [slot.name for _, slot in route(steps[0], slots, 1)] == ["b"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.tensor(1.0), "with several optimizers ('generator', 'critic') the loss must be an OptimizationStep"),
        ([], "an empty list of optimization steps"),
        ([OptimizationStep(torch.tensor(1.0), "genrator")], "did you mean 'generator'"),
        ([OptimizationStep(loss_of(1.0), "critic")] * 2, "stands twice in one list"),
        ([torch.tensor(1.0)], "got list of ['Tensor']"),
    ],
)
def test_outputs_that_do_not_fit_several_optimizers(output, words):
    with pytest.raises(MisconfigurationException) as raised:
        route(output, named("generator", "critic"), 1)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (3.0, "must return a tensor (no number, as from .item()), a dict or dataclass with 'loss', or None; got float"),
        ({"x": 1}, "with the keys ['x']"),
        (OptimizationStep(torch.tensor(1.0), "a"), "`OptimizationStep` is for a configuration with named `optimizers`"),
        ((torch.tensor(1.0),), "or None; got tuple of ['Tensor']"),
    ],
)
def test_outputs_that_do_not_fit_one_optimizer(output, words):
    with pytest.raises(MisconfigurationException) as raised:
        route(output, {None: OptimizerSlot(sgd())}, 1)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: 3, "M.configure_optimizers(): 3 is not a torch.optim.Optimizer; return one, a list of them"),
        (lambda o: {"optimiser": o}, "lacks 'optimizer'"),
        (lambda o: {"optimizer": o, "lr_scheduler": {"sheduler": StepLR(o, 1)}}, "did you mean 'scheduler'"),
        (lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1), "interval": "batch"}}, "'batch'"),
        (lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1), "frequency": 0}}, "is below 1"),
        (lambda o: ([o], [ReduceLROnPlateau(o)]), "needs `monitor`"),
        (lambda o: ([o], ["step"]), "has no step()"),
        (lambda o: ([o], "step"), "has no step()"),
        (lambda o: ["sgd"], "'sgd' is not a torch.optim.Optimizer"),
    ],
)
def test_what_configure_optimizers_must_not_return(make, words):
    with pytest.raises(MisconfigurationException) as raised:
        parse_optimizers(make(sgd()), "M")
    assert words in str(raised.value)


def test_a_pair_may_hold_one_scheduler_itself():
    optimizer = sgd()
    scheduler = StepLR(optimizer, 1)
    optimizers, (config,) = parse_optimizers(([optimizer], scheduler), "M")
    assert optimizers == [optimizer] and config.scheduler is scheduler


class ByMetric:
    def step(self, metric, epoch=None):
        pass


class ByItself:
    def step(self, epoch=None):
        pass


def test_which_schedulers_take_a_metric():
    assert [metric_of_step(s) is not None for s in (ByMetric(), ByItself(), ReduceLROnPlateau(sgd()), object())] == [
        True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "algorithm", "gradient", "returned"),
    [
        (1.0, "norm", [0.6, 0.8], 5.0),
        (10.0, None, [3.0, 4.0], 5.0),
        (3.5, "value", [3.0, 3.5], None),
        (None, "norm", [3.0, 4.0], None),
        (0, "value", [3.0, 4.0], None),
    ],
)
def test_clipping(value, algorithm, gradient, returned):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    norm = clip_gradients(torch.optim.SGD([parameter], lr=1.0), value, algorithm)
    assert parameter.grad.tolist() == pytest.approx(gradient, rel=1e-5)
    assert (None if norm is None else norm.item()) == returned


def test_an_unknown_algorithm():
    with pytest.raises(MisconfigurationException, match="'max' is not 'norm' or 'value'"):
        clip_gradients(sgd(), 1.0, "max")


def test_a_slot_goes_on_from_its_state():
    slot = OptimizerSlot(sgd(), window=4, pending=3, update_step=7)
    resumed = OptimizerSlot(sgd(), window=4)
    resumed.load_state_dict(slot.state_dict())
    assert (resumed.pending, resumed.update_step, resumed.open) == (3, 7, True)


def test_gradients_are_cleared_as_the_optimizer_would():
    layer = torch.nn.Linear(2, 1)
    slot = OptimizerSlot(torch.optim.SGD(layer.parameters(), lr=0.1))
    layer(torch.ones(1, 2)).sum().backward()
    slot.zero_grad()
    assert layer.weight.grad is None and layer.bias.grad is None


def test_an_optimizer_that_clears_in_its_own_way_is_asked():
    class Keeps(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none=False)

    layer = torch.nn.Linear(2, 1)
    for optimizer in (Keeps(layer.parameters(), lr=0.1), torch.optim.SGD(layer.parameters(), lr=0.1)):
        if type(optimizer) is torch.optim.SGD:  # replaced on the instance
            optimizer.zero_grad = lambda optimizer=optimizer: torch.optim.SGD.zero_grad(optimizer, set_to_none=False)
        layer(torch.ones(1, 2)).sum().backward()
        OptimizerSlot(optimizer).zero_grad()
        assert layer.weight.grad.tolist() == [[0.0, 0.0]]


def test_a_schedulers_state_holds_no_function():
    """As torch 2.6 keeps one for SWALR; put back, the scheduler has its own."""

    class Annealing(StepLR):
        def __init__(self, optimizer):
            self.anneal = abs
            super().__init__(optimizer, 1, gamma=0.5)

    scheduler = Annealing(sgd())
    scheduler.step()
    state = LRSchedulerConfig(scheduler).state_dict()
    assert "anneal" not in state and state["last_epoch"] == 1
    resumed = Annealing(sgd())
    resumed.load_state_dict(state)
    assert resumed.last_epoch == 1 and resumed.anneal is abs


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "norms"),
    [
        ({"gradient_clip_val": 0.5}, [3.0, 3.0, 0.5, 0.5]),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, [3.0, 3.0, 0.5, 0.5]),
    ],
)
def test_clipping_that_a_hook_sets_counts_from_then_on(settings, norms):
    class SetsIt(LiteModule):
        def __init__(self):
            super().__init__()
            self.weight, self.norms = torch.nn.Parameter(torch.ones(())), []

        def training_step(self, batch, batch_idx):
            return 3 * self.weight

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                vars(self.trainer).update(settings)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.norms.append(float(self.weight.grad.abs()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = SetsIt()
    quiet_trainer(max_epochs=2).fit(module, [0, 1])
    assert module.norms == pytest.approx(norms, abs=1e-5)
