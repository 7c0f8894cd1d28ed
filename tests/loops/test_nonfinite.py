"""Batches that are left out: a loss or a gradient that is not finite changes nothing, and is counted and named."""

import dataclasses
import math
from collections import UserDict, namedtuple

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import Callback, LiteModule
from espnet3_lite.callbacks.base import HOOKS

NAN, INF = math.nan, math.inf


def rows(count):
    return torch.sin(torch.arange(count * 4, dtype=torch.float64).reshape(count, 2, 2))


class Line(LiteModule):
    """Multiplies the loss of the batches named in `factors`."""

    def __init__(self, factors=None, gradient_only=False):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -0.25]]))
            self.layer.bias.fill_(0.125)
        self.factors, self.gradient_only = factors or {}, gradient_only

    def loss(self, batch):
        return (self.layer(batch) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        factor = self.factors.get(batch_idx, 1.0)
        loss = self.loss(batch)
        if self.gradient_only and factor != 1.0:  # the loss stays finite
            self.layer.weight.register_hook(lambda gradient: gradient * factor)
            loss = self.loss(batch)
        else:
            loss = loss * factor
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Calls(Callback):
    """All calls, with the batch of those that have one."""

    def __init__(self):
        self.calls = []
        for hook in HOOKS:
            if hook.startswith("on_") and "checkpoint" not in hook and hook != "on_stop_training_error":
                setattr(self, hook, lambda *arguments, hook=hook: self.calls.append((hook, arguments)))


def fit(tmp_path, module, batches, callbacks=(), ckpt_path=None, **settings):
    """Train on these batches, one after the other; gives the trainer."""
    trainer = quiet_trainer(**{"max_epochs": 1, **settings}, callbacks=list(callbacks), default_root_dir=tmp_path)
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return torch.cat([module.layer.weight.flatten(), module.layer.bias]).detach()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_skipped_batch_changes_nothing(tmp_path, value, bad):
    module, clean = Line({bad: value}), Line()
    with pytest.warns(UserWarning, match=rf"epoch 0, batch {bad}: loss is {value}; skipped on all workers"):
        trainer = fit(tmp_path, module, rows(5))
    reference = fit(tmp_path, clean, [row for index, row in enumerate(rows(5)) if index != bad])
    assert torch.equal(weights(module), weights(clean))
    assert trainer.global_step == reference.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == reference.optimizers[0].param_groups[0]["lr"]
    assert trainer.callback_metrics["loss_epoch"] == reference.callback_metrics["loss_epoch"]
    assert trainer.callback_metrics["loss_step"] == reference.callback_metrics["loss_step"]


def test_of_its_hooks_only_three_are_called(tmp_path):
    calls, per_batch = Calls(), {}
    with pytest.warns(UserWarning, match="skipped"):
        fit(tmp_path, Line({1: NAN}), rows(3), [calls])
    for hook, arguments in calls.calls:
        if hook == "on_train_batch_start":
            current = per_batch.setdefault(arguments[-1], [])
        if hook.startswith("on_train_batch") or hook.startswith(("on_before", "on_after")):
            current.append(hook)
    assert per_batch[1] == ["on_train_batch_start", "on_train_batch_end"]
    assert per_batch[0] == per_batch[2] == [
        "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
        "on_before_optimizer_step", "on_train_batch_end",
    ]  # fmt: skip
    outputs = [arguments[2] for hook, arguments in calls.calls if hook == "on_train_batch_end"]
    assert outputs[1] is None and outputs[0]["loss"] is not None


def by_hand(batches, windows):
    """SGD over windows of (batch, is it skipped): sums of gradients, each divided by the full window."""
    module = Line()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    steps = 0
    for window in windows:
        optimizer.zero_grad()
        good = [index for index, skipped in window if not skipped]
        for index in good:
            (module.loss(batches[index]) / 2).backward()
        if good:
            optimizer.step()
            scheduler.step()
            steps += 1
    return weights(module), steps


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1), (2,), (3,), (4,), (2, 3), (1, 2), (3, 4)])
def test_windows_with_skipped_batches(tmp_path, bad):
    module = Line(dict.fromkeys(bad, NAN))
    with pytest.warns(UserWarning, match="skipped"):
        trainer = fit(tmp_path, module, rows(5), accumulate_grad_batches=2)
    windows = [[(0, 0 in bad), (1, 1 in bad)], [(2, 2 in bad), (3, 3 in bad)], [(4, 4 in bad)]]
    expected, steps = by_hand(rows(5), windows)
    assert torch.equal(weights(module), expected)
    assert trainer.global_step == steps


def test_a_hundred_in_a_row_are_skipped_and_the_next_one_raises(tmp_path):
    with pytest.warns(UserWarning, match="skipped"):
        trainer = fit(tmp_path, Line(dict.fromkeys(range(100), NAN)), rows(101))
    assert trainer.global_step == 1 and trainer.fit_loop.consecutive_skips == 0
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="Too many NaNs: 101 batches in a row"):
        fit(tmp_path, Line(dict.fromkeys(range(1, 102), NAN)), rows(102))


def test_the_count_goes_on_in_a_run_that_resumes(tmp_path):
    with pytest.warns(UserWarning, match="skipped"):
        trainer = fit(tmp_path, Line(dict.fromkeys(range(1, 70), NAN)), rows(70))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    module = Line(dict.fromkeys(range(70), NAN))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"101 batches in a row.*epoch 1, batch 31"):
        resumed.fit(module, DataLoader(rows(70), batch_size=None), ckpt_path=tmp_path / "x.ckpt")


def test_a_run_that_resumes_within_a_window_counts_failed_gradients_on(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 148:  # the first batch of a window
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    settings = {"check_grad_finite": True, "accumulate_grad_batches": 2}

    def module():
        return Line(dict.fromkeys(range(203), NAN), gradient_only=True)

    message = r"101 batches in a row.*batch 201"
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=message):
        fit(tmp_path, module(), rows(203), [Save()], **settings)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=message):
        fit(tmp_path, module(), rows(203), ckpt_path=tmp_path / "x.ckpt", **settings)


@pytest.mark.parametrize("settings", [{"gradient_clip_val": 1.0}, {"check_grad_finite": True},
                                      {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
                                      {"check_grad_finite": True, "gradient_clip_val": 1.0,
                                       "gradient_clip_algorithm": "value"}])  # fmt: skip
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_gradient_that_is_not_finite_steps_nothing(tmp_path, settings, value):
    calls, module = Calls(), Line({2: value}, gradient_only=True)
    with pytest.warns(UserWarning, match=r"batch 2: the gradient norm is (nan|inf); skipped"):
        trainer = fit(tmp_path, module, rows(3), [calls], **settings)
    clean = Line()
    fit(tmp_path, clean, rows(3)[:2], **settings)
    assert torch.equal(weights(module), weights(clean))
    assert trainer.global_step == 2
    assert trainer.fit_loop.consecutive_skips == 1


def test_unchecked_it_reaches_the_weights(tmp_path):
    """Neither clipping nor `check_grad_finite`: nothing is read from the device for it."""
    module = Line({2: NAN}, gradient_only=True)
    trainer = fit(tmp_path, module, rows(3))
    assert weights(module).isnan().any() and trainer.global_step == 3


class Valid(Line):
    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch) * self.factors.get(batch_idx, 1.0)
        self.log("valid", loss)
        self.log("worst", loss, reduce_fx="max")
        self.log("total", loss, reduce_fx="sum")
        return loss


@pytest.mark.parametrize("bad", [(0,), (2,), (0, 1)])
def test_validation_batches_that_are_not_finite_are_left_out_of_the_means(tmp_path, bad):
    module = Valid(dict.fromkeys(bad, NAN))
    trainer = quiet_trainer(default_root_dir=tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match=f"validation batches {', '.join(map(str, bad))} have a loss that is not"):
        (result,) = trainer.validate(module, DataLoader(rows(4), batch_size=None), verbose=False)
    losses = [module.loss(row).item() for index, row in enumerate(rows(4)) if index not in bad]
    assert result == pytest.approx({"valid": sum(losses) / len(losses), "worst": max(losses), "total": sum(losses)})


def test_where_no_validation_batch_is_finite_the_mean_says_so(tmp_path):
    module = Valid(dict.fromkeys(range(2), NAN))
    trainer = quiet_trainer(default_root_dir=tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match="left out"):
        (result,) = trainer.validate(module, DataLoader(rows(2), batch_size=None), verbose=False)
    assert math.isnan(result["valid"])


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenOutput:
    loss: torch.Tensor


class AttrsOutput:
    __attrs_attrs__ = (namedtuple("Attribute", "name")("loss"),)

    def __init__(self, loss):
        self.loss = loss


#: What a step may return, its loss within.
OUTPUTS = {
    "dict": lambda loss: {"loss": loss}, "UserDict": lambda loss: UserDict(loss=loss), "dataclass": Output,
    "frozen dataclass": FrozenOutput, "named tuple": namedtuple("TupleOutput", "loss"), "attrs": AttrsOutput,
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_loss_is_found_in_whatever_holds_it(tmp_path, kind):
    """Two batches are skipped in training, and one is left out of the validation's mean, as with a plain loss."""

    class Held(Valid):
        def training_step(self, batch, batch_idx):
            return OUTPUTS[kind](super().training_step(batch, batch_idx))

        def validation_step(self, batch, batch_idx):
            return OUTPUTS[kind](super().validation_step(batch, batch_idx))

    calls, factors = Calls(), {1: NAN, 2: INF}
    plain, held = Valid(factors), Held(factors)
    with pytest.warns(UserWarning, match=r"batch [12]: loss is (nan|inf); skipped"):
        fit(tmp_path, plain, rows(5), accumulate_grad_batches=2)
        trainer = fit(tmp_path, held, rows(5), accumulate_grad_batches=2, callbacks=[calls])
        (expected,) = trainer.validate(plain, DataLoader(rows(4), batch_size=None), verbose=False)
        (found,) = trainer.validate(held, DataLoader(rows(4), batch_size=None), verbose=False)
    assert trainer.global_step == 3 and torch.equal(weights(held), weights(plain))
    assert found == expected and math.isfinite(found["valid"])
    outputs = [arguments[2] for hook, arguments in calls.calls if hook == "on_train_batch_end"]
    losses = [output["loss"] if kind in ("dict", "UserDict") else output.loss for output in outputs if output]
    assert len(losses) == 3 and not any(loss.requires_grad for loss in losses)


class Normed(Line):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2, dtype=torch.float64)

    def loss(self, batch):
        return super().loss(self.norm(batch))


def test_buffers_that_the_forward_pass_spoilt_are_named(tmp_path):
    batches = rows(3)
    batches[1, 0, 0] = INF
    with pytest.warns(UserWarning) as warned:
        fit(tmp_path, Normed(), batches)
    (text,) = {str(w.message) for w in warned if "skipped" in str(w.message) and "batch 1" in str(w.message)}
    assert "these buffers became non-finite: norm.running_mean, norm.running_var" in text


class Speech(Line):
    def loss(self, batch):
        return super().loss(batch[1]["speech"])


def test_utterances_are_named(tmp_path):
    batches = [(["utt_a", "utt_b"], {"speech": row}) for row in rows(3)]
    with pytest.warns(UserWarning, match=r"batch 1: loss is nan \(utterances utt_a, utt_b\); skipped"):
        fit(tmp_path, Speech({1: NAN}), batches)


class LeavesEarly(LiteModule):
    """Its hook ends the first epoch within a window; the first batch of the second one is skipped."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if (self.current_epoch, batch_idx) == (0, 1) else None

    def training_step(self, batch, batch_idx):
        return self.weight * (NAN if (self.current_epoch, batch_idx) == (1, 0) else batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_a_window_that_an_epochs_early_end_left_is_no_part_of_the_next():
    module, batches = LeavesEarly(), list(torch.tensor([100.0, 1.0, 2.0, 3.0]))
    trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=4)
    with pytest.warns(UserWarning, match="epoch 1, batch 0: loss is nan"):
        trainer.fit(module, batches)
    assert module.weight.item() == -(1 + 2 + 3) / 4  # and not -26.5, with the 100


class Given(Line):
    """Notes the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def on_train_batch_start(self, batch, batch_idx):
        self.given.append(("start", batch_idx))

    def training_step(self, batch, batch_idx):
        self.given.append(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("window", "steps"), [(1, 3), (2, 3)])
def test_a_batch_that_is_none_trains_nothing(window, steps):
    """As where a `collate_fn` drops a bad sample. Lightning 2.6.6 calls neither hook nor step for it."""
    batches = list(rows(5))
    first, third, last = batches[::2]
    batches[1] = batches[3] = None
    trainer, module, plain = quiet_trainer(max_epochs=1, accumulate_grad_batches=window), Given(), Line()
    with pytest.warns(UserWarning, match="training loader gave `None` as a batch: nothing is trained on it"):
        trainer.fit(module, batches)
    assert module.given == [("start", 0), 0, ("start", 2), 2, ("start", 4), 4]
    assert trainer.global_step == steps and trainer.fit_loop.consecutive_skips == 0
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1)
    for number, batch in enumerate((first, third, last)):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.9**number
        optimizer.zero_grad()
        (plain.loss(batch) / window).backward()
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), rtol=1e-14, atol=0)


def test_a_run_whose_batches_were_all_none_says_at_its_end_that_nothing_was_trained():
    with pytest.warns(UserWarning, match="Nothing was trained: .* or was given no batch.* a `collate_fn` ends with"):
        quiet_trainer(max_epochs=1).fit(Line(), [None, None])
