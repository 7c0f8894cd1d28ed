"""Steps in whatever way they are written, losses that train nothing, runs that trained nothing, and their words."""

import re
import warnings

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader
from weights_parts import Net, loader, trainer_of

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import EarlyStopping
from espnet3_lite.loops import evaluation

#: How a step may be written, and what it then hands on as (batch, batch_idx).
SIGNATURES = {
    "self, batch": "batch, None",
    "self, batch, batch_idx": "batch, batch_idx",
    "self, *args": "*args",
    "self, batch, *args": "batch, *args",
    "self, batch, **kwargs": "batch, kwargs['batch_idx']",
    "self, **kwargs": "kwargs['batch'], kwargs['batch_idx']",
    "self, *args, **kwargs": "*args",
    "self, batch, *, batch_idx": "batch, batch_idx",
    "self, batch, batch_idx=7, more='x'": "batch, batch_idx",
}


def written(name, signature, body):
    """A function with this signature."""
    space = {}
    exec(f"def {name}({signature}): return {body}", space)
    return space[name]


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_step_gets_its_arguments_in_whatever_way_it_takes_them(signature):
    class Module(Net):
        def play(self, batch, batch_idx):
            self.seen.append((len(batch), batch_idx))
            return self.net(batch[0]).square().mean()

    for name in ("training_step", "validation_step"):
        setattr(Module, name, written(name, signature, f"self.play({SIGNATURES[signature]})"))
    module = Module()
    module.seen = []
    trainer_of(max_epochs=1).fit(module, loader(), loader(batch_size=12))
    indices = [None] * 4 if signature == "self, batch" else [0, 1, 2, 0]
    assert module.seen == [(1, index) for index in indices]


@pytest.mark.parametrize(
    "signature, index",
    [
        ("self, batch, batch_idx, **kwargs", "kwargs['dataloader_idx']"),
        ("self, *args", "args[2]"),
        ("self, batch, batch_idx, index", "index"),
        ("self, batch, batch_idx, *, dataloader_idx", "dataloader_idx"),
        ("self, batch, batch_idx", None),
    ],
)
def test_several_loaders_need_a_step_that_takes_their_index(signature, index):
    class Module(Net):
        validation_step = written("validation_step", signature, f"self.seen.append({index})")

    module, loaders, trainer = Module(), [loader(12), loader(12)], trainer_of(max_epochs=1)
    module.seen = []
    if index is None:
        with pytest.raises(RuntimeError, match="there are 2 loaders, but Module.validation_step takes no"):
            trainer.fit(module, loader(), loaders)
        return
    trainer.fit(module, loader(), loaders)
    assert module.seen == [0, 1]


def test_a_callbacks_hook_that_takes_no_index_of_several_loaders_is_told():
    class Module(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    class Ends(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pass

    write = "`def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0)`"
    told = f"there are 2 loaders, but Ends.on_validation_batch_end takes no `dataloader_idx`; write {write}"
    with pytest.raises(RuntimeError, match=re.escape(told)):
        quiet_trainer(max_epochs=1, callbacks=[Ends()]).fit(Module(), loader(), [loader(), loader()])
    quiet_trainer(max_epochs=1, callbacks=[Ends()]).fit(Module(), loader(), loader())


@pytest.mark.parametrize("name", ["validation_step", "on_validation_batch_start", "on_validation_batch_end"])
def test_who_demands_a_loaders_index_with_one_loader_is_told(name):
    class Module(Net):
        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            pass

    def at_the_end(self, outputs, batch, batch_idx, dataloader_idx):
        pass

    def positional(self, batch, batch_idx, dataloader_idx):
        pass

    setattr(Module, name, at_the_end if name.endswith("end") else positional)
    told = f"there is one loader, and no index of it, but Module.{name} demands `dataloader_idx`; write `def {name}"
    with pytest.raises(RuntimeError, match=re.escape(told)):
        trainer_of(max_epochs=1).fit(Module(), loader(), loader())


def test_a_steps_signature_is_read_once_and_again_where_the_step_is_replaced(monkeypatch):
    looked_at = []
    look = evaluation.as_evaluated
    monkeypatch.setattr(
        evaluation, "as_evaluated", lambda *given: looked_at.append(trainer.current_epoch) or look(*given)
    )
    seen = []

    class Module(Net):
        def validation_step(self, batch, batch_idx):
            seen.append("first")

        def on_validation_epoch_start(self):
            if trainer.current_epoch == 2:
                self.validation_step = lambda batch: seen.append("second")

    trainer = trainer_of(max_epochs=4)
    trainer.fit(Module(), loader(), loader(batch_size=12))
    assert looked_at == [0, 2]
    assert seen == ["first", "first", "second", "second"]


class Gives(Net):
    """Its step returns what a function makes of its loss."""

    def __init__(self, make, manual=False):
        super().__init__()
        self.make, self.automatic_optimization = make, not manual

    def training_step(self, batch, batch_idx):
        return self.make(self.net(batch[0]))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda output: output, r"one real number.*shape \(4, 1\)"),
        (lambda output: output.mean().detach(), r"without a graph \(detached"),
        (lambda output: {"loss": output.mean().detach()}, r"without a graph \(detached"),
        (lambda output: torch.tensor(3), r"torch.int64 without a graph"),
        (lambda output: output.mean() * 1j, r"torch.complex128"),
        (lambda output: output[:0].flatten(), r"shape \(0,\)"),
        (lambda output: 0.5, "must return a tensor"),
    ],
)
def test_a_loss_that_trains_nothing_is_refused_in_plain_words(make, message):
    with pytest.raises(MisconfigurationException, match=f"training.step.*{message}"):
        trainer_of(max_epochs=1).fit(Gives(make), loader())


def test_an_own_backward_may_take_a_loss_without_a_graph():
    class Own(Gives):
        def backward(self, loss):
            for parameter in self.parameters():
                parameter.grad = torch.ones_like(parameter)

    module = Own(lambda output: output.mean().detach())
    before = module.net[0].weight.detach().clone()
    trainer_of(max_epochs=1, limit_train_batches=1).fit(module, loader())
    torch.testing.assert_close(module.net[0].weight.detach(), before - 0.1)


@pytest.mark.parametrize("make", [lambda output: None, lambda output: {"loss": None, "x": 1}])
def test_a_step_that_returns_none_is_told_once(make):
    outputs = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer, pl_module, given, batch, batch_idx):
            outputs.append(given)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(Notes(), max_epochs=2).fit(Gives(make), loader())
    told = [str(w.message) for w in caught if str(w.message).startswith("`training_step` returned `None`")]
    assert len(told) == 1 and len(outputs) == 6


@pytest.mark.parametrize("trains, manual, told", [((), False, 1), ((4,), False, 0), ((), True, 0)])
def test_a_run_whose_steps_all_returned_none_is_told_so_at_its_end(trains, manual, told):
    calls, ends = [], []

    def make(output):
        calls.append(1)
        return output.mean() if len(calls) in trains else None

    module = Gives(make, manual)
    before = module.net[0].weight.detach().clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(max_epochs=2).fit(module, loader())
        ends = [str(warning.message) for warning in caught if "Nothing was trained" in str(warning.message)]
    assert len(calls) == 6 and torch.equal(module.net[0].weight, before) is not bool(trains)
    assert len(ends) == told and all("`return loss`" in end for end in ends)


@pytest.mark.parametrize("given", [3, "words", [1, 2], None, torch.ones(2), {"a": 1}])
def test_a_step_by_hand_may_return_anything(given):
    outputs = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer, pl_module, given, batch, batch_idx):
            outputs.append(given)

    trainer_of(Notes(), max_epochs=1, limit_train_batches=1).fit(Gives(lambda output: given, manual=True), loader())
    (seen,) = outputs
    if isinstance(given, torch.Tensor):
        assert torch.equal(seen["loss"], given)
    else:
        assert seen == ({} if given is None else given)


@pytest.mark.parametrize("settings", [{}, {"check_grad_finite": True}])
def test_a_run_that_skipped_all_its_batches_fails(settings):
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    def make(output):
        return Bad.apply(output).mean() if settings else output.mean() * float("nan")

    trainer = trainer_of(max_epochs=2, **settings)
    with pytest.raises(RuntimeError, match="Nothing was trained: all 6 batches were skipped"):
        trainer.fit(Gives(make), loader())
    assert trainer.state.status == "interrupted"


def test_a_run_that_trained_once_does_not_fail():
    calls = []

    def make(output):
        calls.append(1)
        return output.mean() * (1.0 if len(calls) == 1 else float("nan"))

    trainer = trainer_of(max_epochs=1)
    with pytest.warns(UserWarning, match="skipped on all workers"):
        trainer.fit(Gives(make), loader())
    assert trainer.global_step == 1


def test_half_a_validation_is_told():
    class NoStep(LiteModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1).double()

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.warns(UserWarning, match="You passed in a `val_dataloader` but have no `validation_step`"):
        trainer_of(max_epochs=1).fit(NoStep(), loader(), loader())
    with pytest.warns(UserWarning, match="You defined a `validation_step` but have no `val_dataloader`"):
        trainer_of(max_epochs=1).fit(Net(), loader())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_of(max_epochs=1).fit(NoStep(), DataLoader(loader().dataset, batch_size=4))
        trainer_of(max_epochs=1, limit_val_batches=0).fit(Net(), loader(), loader())


@pytest.mark.parametrize("settings", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 2}])
def test_early_stopping_by_a_training_metric_without_validation(settings):
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            self.log("worse", float(self.trainer.global_step), on_epoch=True, on_step=False)
            return super().training_step(batch, batch_idx)

    trainer = trainer_of(EarlyStopping("worse", patience=2), max_epochs=9, **settings)
    trainer.fit(Logs(), loader())
    assert trainer.current_epoch == 3
