"""Averages that follow the weights: by hand, as Lightning's, in validation, in files, over ranks."""

import copy
import os
import signal

import pytest
import torch
from weights_parts import Net, assert_equal, loader, near, trainer_of, weights

from espnet3_lite import Callback, MisconfigurationException, StopTrainingError
from espnet3_lite.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)  # fmt: skip


class AfterEachStep(Callback):
    """The weights after each optimizer step."""

    def __init__(self):
        self.steps, self.weights = 0, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.weights.append(weights(pl_module))


class EveryEpoch(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


def fit(module, *callbacks, max_epochs=2, ckpt_path=None, **settings):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, loader(), loader(batch_size=12), ckpt_path=ckpt_path)
    return trainer


def test_the_mean_over_all_steps_by_hand():
    module, after = Net(), AfterEachStep()
    fit(module, after, WeightAveraging(use_buffers=False))
    assert len(after.weights) == 6
    for name, parameter in module.named_parameters():
        mean = torch.stack([step[name] for step in after.weights]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, rtol=0, atol=1e-15)
    assert torch.equal(module.net[1].running_mean, after.weights[-1]["net.1.running_mean"])


def test_the_exponential_average_by_hand():
    module, after = Net(), AfterEachStep()
    fit(module, after, EMAWeightAveraging(decay=0.8))
    average = after.weights[0]["net.2.weight"]
    for step in after.weights[1:]:
        average = 0.8 * average + 0.2 * step["net.2.weight"]
    torch.testing.assert_close(module.net[2].weight.detach(), average, rtol=0, atol=1e-15)


# What Lightning 2.6.6 gives: the losses validated with, the first weights and the buffers at the end, the updates. On
# purpose differ: integer counters, which we do not average; and what is validated before the first update ("by_epochs":
# the second number is 0.29379 there, that of the initial weights).
LIGHTNING = {
    "mean": (
        lambda: WeightAveraging(), 1,
        [0.2937939663447598, 0.05532116003805516, 0.0019259816977290898],
        [-0.001987417692672065, 0.2672064241642145, -0.4143464272295226],
        [-0.19144496736691824, -0.04847886538257802, -0.08599879057328544], 6,
    ),
    "without_buffers": (
        lambda: WeightAveraging(use_buffers=False), 2,
        [0.2937939663447598, 0.12276026879194889, 0.033496773522950066],
        [0.0040328989732817695, 0.26198447131973707, -0.4147391706095094],
        [-0.2712440775965555, -0.09096475487495528, -0.1499190316039999], 4,
    ),
    "exponential": (
        lambda: EMAWeightAveraging(decay=0.8), 1,
        [0.2937939663447598, 0.09938877775634263, 0.0036804846738139538],
        [-0.001857837283118548, 0.26722386791030295, -0.4143642141001803],
        [-0.1811197404767665, -0.04370595226633009, -0.08162460000294398], 6,
    ),
    "by_steps_and_epochs": (
        lambda: EMAWeightAveraging(
            decay=0.5, update_every_n_steps=2, update_starting_at_step=1, update_starting_at_epoch=0
        ), 1,
        [0.2937939663447598, 0.008538228915354952, 0.01179302318362873],
        [-0.00040375012493781587, 0.2669845126483702, -0.4167787751968085],
        [-0.24214038362168505, -0.07601148229169036, -0.11609563587172012], 4,
    ),
    "by_epochs": (
        lambda: EveryEpoch(device="cpu"), 1,
        [0.2937939663447598, 0.008538228915354952, 0.008538228915354952],
        [-0.0005756833746327771, 0.2671001652112213, -0.41594166904106233],
        [-0.2135996407159798, -0.07247752306055573, -0.10069521294103484], 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGHTNING)
def test_numbers_equal_lightnings(name):
    make, accumulate, validated, first, running_mean, updates = LIGHTNING[name]
    module, callback = Net(), make()
    fit(module, callback, accumulate_grad_batches=accumulate, num_sanity_val_steps=1)
    assert module.validated == near(validated)
    assert module.net[0].weight.flatten()[:3].tolist() == near(first)
    assert module.net[1].running_mean.tolist() == near(running_mean)
    assert module.net[1].num_batches_tracked.item() == 6
    assert callback._average_model.n_averaged.item() == updates


class Tables(Net):
    """Buffers and a frozen parameter that are no floating numbers, one of them changed by each step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.arange(2048))
        self.register_buffer("large", torch.tensor([16_000_001, 2**31 + 7, 44_100_001]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("seen", torch.tensor(0, dtype=torch.uint8))
        self.quantized = torch.nn.Parameter(torch.arange(-128, 128, dtype=torch.int8), requires_grad=False)

    def training_step(self, batch, batch_idx):
        self.seen += 40
        self.mask.logical_not_()
        return super().training_step(batch, batch_idx)


def multiply_add(averaged, current, count):
    torch._foreach_lerp_(averaged, current, 0.5)


@pytest.mark.parametrize(
    "arguments", [{}, {"use_buffers": False}, {"multi_avg_fn": multiply_add}, {"decay": 0.9999}, {"decay": 0.5}]
)
def test_what_is_no_floating_number_is_the_modules_own(arguments):
    module, before = Tables(), weights(Tables())
    make = EMAWeightAveraging if "decay" in arguments else WeightAveraging
    fit(module, make(**arguments), max_epochs=1)
    assert torch.equal(module.positions, torch.arange(2048))
    assert torch.equal(module.large, before["large"])
    assert module.mask.tolist() == [False, True]
    assert module.seen.item() == 120
    assert torch.equal(module.quantized, before["quantized"])


def test_a_file_of_weights_alone_holds_the_average_by_which_it_was_ranked(tmp_path):
    class Ranked(Net):
        def validation_step(self, batch, batch_idx):
            self.log("loss", self.net(batch[0]).square().mean())

    module, save = Ranked(), ModelCheckpoint(tmp_path, monitor="loss", save_top_k=-1, save_weights_only=True)
    trainer = fit(module, EMAWeightAveraging(decay=0.8), save, enable_checkpointing=True)
    assert len(save.best_k_models) == 2
    for path, score in save.best_k_models.items():
        loaded = Ranked()
        loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        (measured,) = trainer_of().validate(loaded, loader(batch_size=12), verbose=False)
        assert measured["loss"] == near(score.item())
    assert "current_model_state" not in torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)


def test_the_checkpoint_of_an_average_holds_the_modules_own_tables(tmp_path):
    class Seldom(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx == 0

    module = Tables()
    trainer = fit(module, Seldom(), ModelCheckpoint(tmp_path), max_epochs=1, enable_checkpointing=True)
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["state_dict"]["seen"].item() == 120
    assert not torch.equal(saved["state_dict"]["net.0.weight"], saved["current_model_state"]["net.0.weight"])


@pytest.mark.parametrize(
    "start, updates",
    [
        ({"update_starting_at_step": 4}, 2),
        ({"update_starting_at_step": 99}, 0),
        ({"update_starting_at_step": 99, "update_starting_at_epoch": 1}, 1),
    ],
)
def test_until_the_average_begins_the_weights_in_training_count(tmp_path, start, updates):
    class Seen(Net):
        def validation_step(self, batch, batch_idx):
            self.validated.append(self.net[0].weight.detach().clone())

    plain, after = Net(), AfterEachStep()
    fit(plain, after)
    module, callback = Seen(), EMAWeightAveraging(decay=0.5, **start)
    save = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(module, callback, save, enable_checkpointing=True)
    assert torch.equal(module.validated[0], after.weights[2]["net.0.weight"])
    first = torch.load(tmp_path / "epoch=0-step=3.ckpt", weights_only=True)
    assert torch.equal(first["state_dict"]["net.0.weight"], after.weights[2]["net.0.weight"])
    assert callback._average_model.n_averaged.item() == updates
    expected = after.weights[5]["net.0.weight"]
    if updates == 2:  # steps 4 and 5, from 0
        expected = 0.5 * after.weights[4]["net.0.weight"] + 0.5 * expected
    torch.testing.assert_close(module.net[0].weight.detach(), expected, rtol=0, atol=1e-15)


def test_a_run_resumed_before_the_average_begins_ends_with_the_same_bits(tmp_path):
    def average():
        return EMAWeightAveraging(decay=0.5, update_starting_at_step=4)

    whole, resumed = Net(), Net()
    fit(whole, average(), ModelCheckpoint(tmp_path, save_top_k=-1), enable_checkpointing=True)
    fit(resumed, average(), ckpt_path=tmp_path / "epoch=0-step=3.ckpt")
    assert_equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("kind", ["tied", "parametrised"])
@pytest.mark.parametrize("make", [lambda: EMAWeightAveraging(), lambda: StochasticWeightAveraging(0.1, 1)])
def test_parameters_that_were_replaced_are_an_error(kind, make):
    class Replace(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1 and trainer.current_epoch == 0:
                if kind == "tied":
                    pl_module.net[2].weight = torch.nn.Parameter(pl_module.net[0].weight[:1, :3])
                    pl_module.net[0].bias = pl_module.net[1].bias
                else:
                    torch.nn.utils.parametrizations.weight_norm(pl_module.net[0])

    with pytest.raises(MisconfigurationException, match="net.[01].(bias|weight)"):
        fit(Net(), Replace(), make(), max_epochs=2)


def test_tied_weights_stay_tied():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.net.append(torch.nn.Linear(1, 3).double())
            self.net.append(torch.nn.Linear(3, 1).double())
            self.net[4].weight = self.net[2].weight

    module, after = Tied(), AfterEachStep()
    fit(module, after, WeightAveraging(use_buffers=False))
    assert module.net[4].weight is module.net[2].weight
    mean = torch.stack([step["net.2.weight"] for step in after.weights]).mean(0)
    torch.testing.assert_close(module.net[4].weight.detach(), mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("make", [lambda: EMAWeightAveraging(), lambda: WeightAveraging()])
def test_pruning_beside_an_average_is_refused_at_the_start(make):
    with pytest.raises(MisconfigurationException, match="ModelPruning"):
        fit(Net(), make(), ModelPruning("l1_unstructured"))


def test_a_checkpoint_holds_both_and_a_resumed_run_ends_with_the_same_bits(tmp_path):
    class Save(Callback):
        place = 2

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.current = weights(pl_module)
            trainer.save_checkpoint(tmp_path / f"step{trainer.global_step}.ckpt")

    whole, save = Net(), Save()
    trainer = fit(whole, EMAWeightAveraging(decay=0.8), save)
    last = torch.load(tmp_path / "step6.ckpt", weights_only=True)
    assert_equal(last["current_model_state"], save.current)
    assert_equal(last["state_dict"], weights(whole))  # the average, which the module ends with
    assert last["averaging_state"] == {"n_averaged": torch.tensor(6)}
    assert last["callbacks"]["EMAWeightAveraging"] == {"latest_update_step": 6}
    for step in (1, 2, 3, 4, 5, 6):
        resumed = Net(seed=7)
        trainer = fit(resumed, EMAWeightAveraging(decay=0.8), ckpt_path=tmp_path / f"step{step}.ckpt")
        assert trainer.global_step == 6
        assert_equal(weights(resumed), weights(whole))


def test_a_run_that_was_cut_after_its_last_checkpoint_ends_with_the_average(tmp_path):
    class Save(Callback):
        place = 2

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    whole = Net()
    fit(whole, EMAWeightAveraging(decay=0.8), Save())
    for settings in ({}, {"max_epochs": -1, "max_steps": 6}):  # nothing is left to train, by either limit
        resumed = Net(seed=7)
        trainer = fit(resumed, EMAWeightAveraging(decay=0.8), ckpt_path=tmp_path / "last.ckpt", **settings)
        assert trainer.global_step == 6
        assert_equal(weights(resumed), weights(whole))


def test_a_fit_that_is_stopped_before_it_begins_keeps_the_weights():
    class Stop(Callback):
        def on_fit_start(self, trainer, pl_module):
            raise StopTrainingError("not today")

    module = Net()
    before = weights(module)
    fit(module, Stop(), WeightAveraging())
    assert_equal(weights(module), before)


def test_a_checkpoint_of_another_run_is_taken_for_both(tmp_path):
    other = Net(seed=3)
    fit(other).save_checkpoint(tmp_path / "other.ckpt")
    module, ema = Net(), EMAWeightAveraging(decay=0.5)
    with pytest.warns(UserWarning, match="not created with EMAWeightAveraging"):
        fit(module, ema, ckpt_path=tmp_path / "other.ckpt")  # that run is over: nothing is trained
    assert_equal(weights(module), weights(other))
    assert_equal(weights(ema._average_model.module), weights(other))


def test_double_precision_is_averaged_in_double_precision(tmp_path):
    module, after = Net(batch_norm=False).float(), AfterEachStep()
    fit(module, after, WeightAveraging(), precision="64-true")
    mean = torch.stack([step["net.0.weight"] for step in after.weights]).mean(0)
    assert mean.dtype == torch.float64
    torch.testing.assert_close(module.net[0].weight.detach(), mean, rtol=0, atol=1e-15)


def test_validation_outside_a_fit_takes_the_module_as_it_is():
    module = Net()
    trainer = fit(module, WeightAveraging())
    with torch.no_grad():
        module.net[2].weight.zero_()
        module.net[2].bias.fill_(3.0)
    module.validated.clear()
    trainer.validate(module, loader(batch_size=12))
    assert module.validated == [9.0]


def test_a_failing_validation_leaves_the_weights_in_training():
    class FailInSecond(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.before = weights(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.before = weights(pl_module)

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if trainer.current_epoch == 1:
                raise ValueError("in validation")

    module, fail = Net(), FailInSecond()
    with pytest.raises(ValueError, match="in validation"):
        fit(module, WeightAveraging(), fail)
    assert_equal(weights(module), fail.before)


def test_a_signal_leaves_the_weights_in_training():
    class Signal(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                trainer.stopping.agree(False, signal=True)
            self.weights = weights(pl_module)

    module, sent = Net(), Signal()
    with pytest.raises(SystemExit):
        fit(module, WeightAveraging(), sent)
    assert_equal(weights(module), sent.weights)


class SignalInValidation(Callback):
    """SIGTERM between two batches of the second epoch's validation, where the average stands in the module."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_validation_that_a_signal_breaks_off_leaves_both_in_their_places(tmp_path):
    def run(module, folder, *more):
        last = ModelCheckpoint(tmp_path / folder, save_last=True)
        callbacks = [EMAWeightAveraging(decay=0.5), last, *more]
        trainer = trainer_of(*callbacks, max_epochs=3, auto_resume=True, enable_checkpointing=None)
        torch.manual_seed(0)
        trainer.fit(module, loader(), loader(batch_size=4))
        return module

    whole, cut = run(Net(), "whole"), Net()
    with pytest.raises(SystemExit):
        run(cut, "cut", SignalInValidation())
    assert_equal(weights(run(Net(), "cut")), weights(whole))


def test_a_callback_begins_anew_with_each_trainer():
    callback = WeightAveraging()
    fit(Net(), callback, max_epochs=4)
    module, after = Net(), AfterEachStep()
    fit(module, after, callback, max_epochs=1)
    mean = torch.stack([step["net.0.weight"] for step in after.weights]).mean(0)
    torch.testing.assert_close(module.net[0].weight.detach(), mean, rtol=0, atol=1e-15)


def test_wherever_the_average_is_used_rank_zeros_buffers_hold_for_all():
    """The strategy is asked to share the buffers in each validation and at the end, while they are the average's."""
    module, callback, shared = Net(), WeightAveraging(), []
    trainer = trainer_of(callback, max_epochs=1)
    share = trainer.strategy.sync_buffers

    def sync_buffers(given):
        shared.append(copy.deepcopy(given.net[1].running_mean))
        share(given)

    trainer.strategy.sync_buffers = sync_buffers
    trainer.fit(module, loader(), loader(batch_size=12))
    average = module.net[1].running_mean
    assert [torch.equal(buffer, average) for buffer in shared].count(True) == 2


def test_sharded_weights_are_refused():
    trainer = trainer_of(WeightAveraging(), max_epochs=1)
    trainer.strategy.name = "fsdp"
    with pytest.raises(MisconfigurationException, match="WeightAveraging does not support sharded models"):
        trainer.fit(Net(), loader())
