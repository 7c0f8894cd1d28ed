"""Manual optimization where it is not Lightning's recorded cases: shared parameters, half precision, plateaus."""

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule


def fit(module, **settings):
    trainer = quiet_trainer(max_epochs=1, **settings)
    trainer.fit(module, DataLoader(torch.ones(2, 1), batch_size=1))
    return trainer


class Manual(LiteModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)


def test_toggling_puts_back_what_two_other_optimizers_share():
    class Shared(Manual):
        def training_step(self, batch, batch_idx):
            optimizer, *_ = self.optimizers()
            self.toggle_optimizer(optimizer)
            toggled = [parameter.requires_grad for parameter in self.parameters()]
            self.untoggle_optimizer(optimizer)
            assert toggled == [True, True, False, False]

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.first, self.second, self.second)]

    module = Shared()
    fit(module)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_an_optimizer_that_is_set_on_the_trainer_steps_by_hand_too():
    class Replaced(Manual):
        def on_train_start(self):
            self.trainer.optimizers = [torch.optim.SGD(self.first.parameters(), lr=0.5)]

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            assert optimizer.param_groups[0]["lr"] == 0.5
            self.clip_gradients(optimizer, 0.0)
            self.manual_backward(self.first.bias.sum())
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.first.parameters(), lr=0.0)

    module = Replaced()
    before = module.first.bias.item()
    assert fit(module, limit_train_batches=1).global_step == 1
    assert module.first.bias.item() == pytest.approx(before - 0.5)


def test_a_second_forward_sees_the_weights_of_the_first_ones_step():
    """Autocast would keep a half-precision copy from before."""
    seen = []

    class Twice(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(2):
                loss = self.first(batch).square().mean()
                seen.append(float(loss))
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.first.parameters(), lr=0.25)

    fit(Twice(), precision="bf16-mixed", limit_train_batches=1)
    assert seen[1] < 0.1 * seen[0]  # one step of this size all but solves it


def test_before_a_step_its_hook_sees_unscaled_gradients():
    seen = []

    class Scaled(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.first(batch).float().sum() / 4)
            optimizer.step()

        def on_before_optimizer_step(self, optimizer):
            seen.append(float(self.first.bias.grad))

        def configure_optimizers(self):
            return torch.optim.SGD(self.first.parameters(), lr=0.1)

    module = Scaled()
    before = float(module.first.bias)
    fit(module, precision="16-mixed")
    assert seen == [0.25, 0.25]
    assert float(module.first.bias) == pytest.approx(before - 0.05)


def test_a_plateau_scheduler_that_the_module_steps_itself_needs_no_monitor():
    class Plateau(Manual):
        def training_step(self, batch, batch_idx):
            self.lr_schedulers().step(1.0)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.first.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)]

    assert fit(Plateau()).optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


class Gathers(LiteModule):
    """By hand: one optimizer gathers four batches, the other steps with each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(2, 1).double(), torch.nn.Linear(2, 1).double()

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(self.a(batch).square().mean() / 4)
        if batch_idx % 4 == 3:
            first.step()
            first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.b(batch).square().mean())
        second.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.a.parameters(), 0.1), torch.optim.SGD(self.b.parameters(), 0.1, momentum=0.9)]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_resumed_within_a_window_by_hand_ends_with_the_same_bits(tmp_path, precision):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    def run(*callbacks, ckpt_path=None):
        module = Gathers()
        trainer = quiet_trainer(max_epochs=1, callbacks=list(callbacks), precision=precision)
        data = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        trainer.fit(module, [row[None] for row in data], ckpt_path=ckpt_path)
        return [*module.parameters()], trainer.global_step

    whole, steps = run(Save())
    assert steps == 10
    for path in tmp_path.iterdir():
        resumed, count = run(ckpt_path=path)
        assert count == steps
        assert all(torch.equal(one, other) for one, other in zip(resumed, whole, strict=True)), path.name


def test_optimizers_by_hand_can_be_copied_and_pickled():
    import copy
    import pickle

    class Keeps(Gathers):
        def on_fit_start(self):
            self.kept = self.optimizers()

    module = Keeps()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, [torch.ones(1, 2, dtype=torch.float64)] * 4)
    copied = copy.deepcopy(module)
    assert copied.kept[0].param_groups[0]["params"][0] is copied.a.weight
    with pytest.raises(RuntimeError, match="this copy of Adam belongs to no trainer"):
        copied.kept[0].step()
    assert isinstance(copy.copy(module.kept[1]), torch.optim.SGD)
    optimizer = pickle.loads(pickle.dumps(module.kept[1]))
    assert torch.equal(optimizer.param_groups[0]["params"][0], module.b.weight)
    other = copy.deepcopy(trainer)
    kept = other.lightning_module.kept[0]
    assert kept._trainer is other and kept.optimizer is other.plan.slots[0].optimizer


def test_manual_backward_calls_the_modules_own_backward():
    class Own(Manual):
        given = ()

        def backward(self, loss, *args, **kwargs):
            self.given += (kwargs,)
            super().backward(loss * 3, *args, **kwargs)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.first.bias.sum()
            self.manual_backward(loss, retain_graph=True)
            self.manual_backward(loss)
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.first.parameters(), lr=1.0)

    module = Own()
    before = module.first.bias.item()
    fit(module, limit_train_batches=1)
    assert module.given == ({"retain_graph": True}, {})
    assert module.first.bias.item() == pytest.approx(before - 6.0)


@pytest.mark.parametrize("counted", [True, False])
def test_steps_that_nobody_counts_are_told(counted, recwarn):
    """SAM's `first_step` and `second_step`, say: no step, so no checkpoint either, and nothing said so."""

    class Own(torch.optim.SGD):
        def second_step(self):
            self.step()

    class Steps(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.first(batch).sum())
            optimizer.step() if counted else optimizer.second_step()

        def configure_optimizers(self):
            return Own(self.first.parameters(), lr=0.1)

    trainer = fit(Steps())
    told = [str(warning.message) for warning in recwarn if "manual optimization: in 2 batches" in str(warning.message)]
    assert (trainer.global_step, len(told)) == ((2, 0) if counted else (0, 1))
