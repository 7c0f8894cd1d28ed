"""Number formats over whole runs: windows without a backward pass, and weights that survive a resume."""

import pytest
import torch
from quiet import quiet_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule


class Line(LiteModule):
    """Leaves out the batches named in `without_loss`."""

    def __init__(self, without_loss=()):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.without_loss = without_loss

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.without_loss else self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(tmp_path, precision, callbacks=(), **settings):
    return quiet_trainer(
        precision=precision, max_epochs=1, default_root_dir=tmp_path, callbacks=list(callbacks), **settings
    )


def test_the_scaler_leaves_a_window_without_a_backward_pass_alone(tmp_path):
    trainer, module = trainer_of(tmp_path, "16-mixed"), Line(without_loss=(0, 1, 2))
    before = module.layer.weight.detach().clone()
    trainer.fit(module, DataLoader(torch.ones(6, 3), batch_size=2))
    assert torch.equal(module.layer.weight, before)
    assert trainer.precision_plugin.scaler.get_scale() == 65536.0


def test_double_weights_are_not_rounded_when_a_run_resumes(tmp_path):
    torch.manual_seed(1)
    loader = DataLoader(torch.randn(6, 3), batch_size=2)
    trainer, module = trainer_of(tmp_path, "64-true"), Line()
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert not torch.equal(module.layer.weight, module.layer.weight.float().double())  # float32 cannot hold them
    resumed = Line()
    trainer_of(tmp_path, "64-true").fit(resumed, loader, ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(resumed.layer.weight, module.layer.weight)


class Wide(Line):
    """The loss in float32: in float16 the scale itself would overflow."""

    def training_step(self, batch, batch_idx):
        return self.layer(batch).float().square().mean()


def test_a_window_that_a_skipped_batch_closes_after_a_resume_is_unscaled(tmp_path):
    """No backward pass has made the scaler's state in the new process."""

    class Bad(Wide):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 1 else 1.0)

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    def fit(callbacks, ckpt_path=None):
        trainer, module = trainer_of(tmp_path, "16-mixed", callbacks, accumulate_grad_batches=2), Bad()
        with pytest.warns(UserWarning, match="skipped"):
            trainer.fit(module, DataLoader(torch.full((4, 3), 0.01), batch_size=2), ckpt_path=ckpt_path)
        return trainer.global_step, module.layer.weight.tolist()

    whole = fit([Save()])
    assert whole[0] == 1
    assert fit([], tmp_path / "first.ckpt") == whole


@pytest.mark.parametrize("overrides", [False, True])
def test_the_scaler_finds_its_scale_and_skips_what_overflows(tmp_path, overrides):
    """16-mixed: a gradient that overflows is no error: no step, half the scale, nothing counted."""

    class Overflows(Wide):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (1e6 if batch_idx == 1 else 1.0)

    if overrides:
        Overflows.optimizer_step = lambda self, epoch, batch_idx, optimizer, closure: optimizer.step(closure=closure)
    trainer, module = trainer_of(tmp_path, "16-mixed"), Overflows()
    trainer.fit(module, DataLoader(torch.full((6, 3), 0.01), batch_size=2))
    assert trainer.precision_plugin.scaler.get_scale() == 32768.0
    assert module.layer.weight.isfinite().all()
    assert trainer.global_step == 2 and trainer.plan.slots[None].update_step == 2


def test_clipping_sees_unscaled_gradients(tmp_path):
    norms = []

    class Clips(Wide):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            norms.append(self.clip_gradients(optimizer, 1e-3).item())

    torch.manual_seed(0)
    trainer_of(tmp_path, "16-mixed").fit(Clips(), DataLoader(torch.full((2, 3), 0.01), batch_size=2))
    module = Line()
    module.layer(torch.full((2, 3), 0.01)).square().mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()
    assert norms == [pytest.approx(expected, rel=1e-2)]  # the forward pass ran in float16


def test_an_overridden_step_that_steps_nothing_does_not_confuse_the_scaler(tmp_path):
    class Every(Wide):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure) if batch_idx == 1 else optimizer_closure()

    trainer = trainer_of(tmp_path, "16-mixed")
    trainer.fit(Every(), DataLoader(torch.full((6, 3), 0.01), batch_size=2))
    assert trainer.precision_plugin.scaler.get_scale() == 65536.0


class Made(LiteModule):
    """Makes tensors within its step, so that their dtype counts too; whole numbers stay whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 1)
        self.register_buffer("scale", torch.tensor(0.5))
        self.dtypes = set()

    def loss(self, batch):
        hidden = self.embed(batch["ids"]) + torch.full((3,), 0.1) * batch["x"]
        self.dtypes |= {hidden.dtype, batch["x"].dtype, self.scale.dtype}
        return ((self.layer(hidden) - self.scale) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("valid", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), ("16-true", torch.float16)]
)
def test_a_module_of_another_number_format_trains_as_by_hand(tmp_path, precision, dtype):
    """Weights, momentum and validation to the last bit; no scaler, and nothing of another format anywhere."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"ids": torch.randint(5, (4, 3), generator=generator)[:, 0], "x": torch.randn(4, 3, generator=generator)}
        for _ in range(6)
    ]
    by_hand, velocities = Made().to(dtype), {}
    torch.set_default_dtype(dtype)
    try:
        for batch in batches:
            batch = {"ids": batch["ids"], "x": batch["x"].to(dtype)}
            gradients = torch.autograd.grad(by_hand.loss(batch), list(by_hand.parameters()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(by_hand.named_parameters(), gradients, strict=True):
                    velocity = velocities[name] = gradient if name not in velocities else (
                        velocities[name] * 0.9 + gradient)  # fmt: skip
                    parameter.add_(velocity, alpha=-0.05)
        with torch.no_grad():
            valid = by_hand.loss({"ids": batches[0]["ids"], "x": batches[0]["x"].to(dtype)})
    finally:
        torch.set_default_dtype(torch.float32)

    trainer, module = trainer_of(tmp_path, precision), Made()
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches[:1], batch_size=None))
    assert trainer.global_step == 6 and module.dtypes == {dtype}
    for name, value in by_hand.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    assert trainer.callback_metrics["valid"] == valid.to(trainer.callback_metrics["valid"].dtype)
    assert trainer.precision_plugin.scaler is None and torch.get_default_dtype() == torch.float32
    for state in trainer.optimizers[0].state.values():
        assert state["momentum_buffer"].dtype == dtype


class Twice(LiteModule):
    """Uses one layer twice in a step, and counts how often its weight is cast."""

    def __init__(self, automatic=True):
        super().__init__()
        self.automatic_optimization, self.casts = automatic, 0
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        with CountCasts(self.layer.weight) as counting:
            loss = self.layer(self.layer(batch)).float().square().mean()
        self.casts = counting.count
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class CountCasts(TorchDispatchMode):
    """How often a tensor is converted."""

    def __init__(self, tensor):
        super().__init__()
        self.tensor, self.count = tensor, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.tensor.data_ptr():
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("automatic, casts", [(True, 1), (False, 2)])
def test_a_weight_is_cast_once_a_step_unless_the_step_may_change_it(automatic, casts, tmp_path):
    module = Twice(automatic)
    trainer_of(tmp_path, "bf16-mixed").fit(module, [torch.ones(3, 2)] * 2)
    assert module.casts == casts
