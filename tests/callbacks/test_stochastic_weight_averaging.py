"""Stochastic weight averaging: its mean by hand, Lightning's own numbers, and a resume at every epoch."""

import warnings

import pytest
import torch
from weights_parts import Net, assert_equal, loader, near, trainer_of, weights

from espnet3_lite import Callback, MisconfigurationException
from espnet3_lite.callbacks import StochasticWeightAveraging


class Record(Callback):
    """What each epoch begins with, and what is counted."""

    def __init__(self):
        self.rates, self.epochs, self.steps, self.weights = [], [], [], {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.weights[trainer.current_epoch] = weights(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append((trainer.current_epoch, trainer.global_step))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(trainer.global_step)


class Save(Callback):
    """The whole state after each epoch, and within the last one."""

    place = 2

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}batch{batch_idx}.ckpt")


def fit(module, *callbacks, max_epochs=4, ckpt_path=None, **settings):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


def test_without_batch_norm_the_module_ends_with_the_mean_of_the_epochs_starts():
    module, record = Net(batch_norm=False), Record()
    trainer = fit(module, record, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2))
    assert (trainer.current_epoch, trainer.global_step, trainer.max_epochs) == (4, 12, 4)
    for name, final in weights(module).items():
        mean = record.weights[1][name]
        for count, epoch in ((1, 2), (2, 3)):
            mean = mean + (record.weights[epoch][name] - mean) / (count + 1)
        assert torch.equal(final, mean), name


# What Lightning 2.6.6 gives for the same module and data; but it counts one step more in the additional epoch.
LIGHTNING = {
    "batch_norm": dict(
        module=dict(batch_norm=True), arguments=dict(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2),
        settings={}, rates=[0.1, 0.1, 0.075, 0.05, 0.05],
        epochs=[(0, 3), (1, 6), (2, 9), (3, 12), (4, 12)], ended=(5, 12),
        first=[0.0041349144381330905, 0.26593802669380545, -0.4189495211043766],
        running_mean=[-0.598143340962062, -0.17189645682181032, -0.38060686266802757],
        running_var=[0.25296168643593686, 0.5990851364667095, 1.015454231845832],
    ),
    "linear_annealing": dict(
        module=dict(batch_norm=False, interval="step"),
        arguments=dict(swa_lrs=0.05, swa_epoch_start=0.5, annealing_epochs=2, annealing_strategy="linear"),
        settings={}, rates=[0.1, 0.07290000000000002, 0.06145000000000001, 0.05],
        epochs=[(0, 3), (1, 6), (2, 9), (3, 12)], ended=(4, 12),
        first=[-0.04532864337008809, 0.2904369833019848, -0.36992281469024363],
    ),
    "accumulation": dict(
        module=dict(batch_norm=True, interval="epoch"), arguments=dict(swa_lrs=[0.05], swa_epoch_start=0.8),
        settings=dict(accumulate_grad_batches=2),
        rates=[0.1, 0.09000000000000001, 0.08100000000000002, 0.0802413760025749, 0.0780397634128117],
        epochs=[(0, 2), (1, 4), (2, 6), (3, 8), (4, 8)], ended=(5, 8),
        first=[0.009568410760614644, 0.2579507155375431, -0.4171595170069563],
        running_mean=[-0.6015182253825424, -0.18064591639398642, -0.46475182145349403],
        running_var=[0.2658031925910225, 0.5910498958180104, 2.8155572497720827],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize("name", LIGHTNING)
def test_numbers_equal_lightnings(name):
    expected = LIGHTNING[name]
    module, record = Net(**expected["module"]), Record()
    trainer = fit(module, StochasticWeightAveraging(**expected["arguments"]), record, **expected["settings"])
    assert record.rates == expected["rates"]
    assert record.epochs == expected["epochs"]
    assert (trainer.current_epoch, trainer.global_step) == expected["ended"]
    assert module.net[0].weight.flatten()[:3].tolist() == near(expected["first"])
    if "running_mean" in expected:
        assert module.net[1].running_mean.tolist() == near(expected["running_mean"])
        assert module.net[1].running_var.tolist() == near(expected["running_var"])
    assert trainer.max_epochs == 4


class TwoGroups(Net):
    """A rate of its own for the first layer; notes both at each epoch's start."""

    def __init__(self, seed=0):
        super().__init__(batch_norm=False, seed=seed)
        self.rates = []

    def on_train_epoch_start(self):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def configure_optimizers(self):
        first, last = self.net
        return torch.optim.SGD([{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.02}], lr=0.1)


@pytest.mark.parametrize(
    ("strategy", "rates", "first"),
    [
        ("cos", [[0.1, 0.02], [0.1, 0.02], [0.08750000000000001, 0.06499999999999999], [0.06250000000000001, 0.155]],
         [-0.006300350497350769, 0.267922336592727, -0.41077032914725586]),
        ("linear", [[0.1, 0.02], [0.1, 0.02], [0.08333333333333334, 0.08], [0.06666666666666668, 0.14]],
         [-0.006345032523087547, 0.26802492979917814, -0.41069881307729184]),
    ],
)  # fmt: skip
def test_each_parameter_group_has_a_rate_of_its_own(tmp_path, strategy, rates, first):
    """Lightning's rates and weights; and the same bits after a resume at any place."""

    def swa():
        return StochasticWeightAveraging([0.05, 0.2], 2, annealing_epochs=3, annealing_strategy=strategy)

    module = TwoGroups()
    fit(module, swa(), Save(tmp_path))
    assert module.rates == [pytest.approx(pair) for pair in rates]
    assert module.net[0].weight.flatten()[:3].tolist() == near(first)
    for path in sorted(tmp_path.iterdir()):
        resumed = TwoGroups(seed=7)
        fit(resumed, swa(), ckpt_path=path)
        assert_equal(weights(resumed), weights(module))


def test_batch_norm_statistics_are_the_plain_mean_over_the_batches():
    module = Net()
    fit(module, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2), limit_val_batches=0)
    hidden = [module.net[0](batch) for (batch,) in loader()]
    norm = module.net[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert (norm.num_batches_tracked.item(), norm.momentum) == (3, 0.1)


def test_old_gradients_do_not_move_the_average():
    """Where nothing validates, they are still there in the additional epoch; Lightning applies them."""
    with_validation, without = Net(), Net()
    fit(with_validation, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2))
    fit(without, StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2), limit_val_batches=0)
    assert_equal(weights(with_validation), weights(without))


def test_avg_fn_takes_the_place_of_the_mean():
    module, record = Net(batch_norm=False), Record()
    last = StochasticWeightAveraging(0.05, swa_epoch_start=1, avg_fn=lambda averaged, current, count: current)
    fit(module, record, last)
    assert_equal(weights(module), record.weights[3])
    assert last.n_averaged.item() == 4


@pytest.mark.parametrize("batch_norm", (True, False))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, batch_norm):
    whole = Net(batch_norm)
    fit(whole, StochasticWeightAveraging(0.05, 2, annealing_epochs=3), Save(tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == (5 if batch_norm else 4) * 4  # each epoch, the additional one too, and its batches
    for path in files:
        resumed = Net(batch_norm, seed=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it did not end early
            trainer = fit(resumed, StochasticWeightAveraging(0.05, 2, annealing_epochs=3), ckpt_path=path)
        assert_equal(weights(resumed), weights(whole))  # also of the last file, with nothing left to train
        assert trainer.max_epochs == 4


def test_a_run_that_stops_early_keeps_its_weights_and_says_so():
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.weights = weights(pl_module)
            trainer.should_stop = trainer.current_epoch == 2

    module, stop = Net(), Stop()
    with pytest.warns(UserWarning, match=r"ended after epoch 2, before its last one \(3\)"):
        trainer = fit(module, StochasticWeightAveraging(0.05, 2), stop)
    assert_equal(weights(module), stop.weights)
    assert trainer.max_epochs == 4


def test_without_an_end_the_average_is_handed_over_wherever_the_run_stops():
    module, record = Net(batch_norm=False), Record()
    fit(module, record, StochasticWeightAveraging(0.05, 1), max_epochs=-1, max_steps=6)
    mean = (record.weights[0]["net.0.bias"] + record.weights[1]["net.0.bias"]) / 2
    torch.testing.assert_close(module.net[0].bias.detach(), mean)


def test_the_trainer_is_as_before_after_an_exception():
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 4:
                raise ValueError("within the additional epoch")

    module = Net()
    trainer = trainer_of(StochasticWeightAveraging(0.05, 2), Fail(), max_epochs=4)
    with pytest.raises(ValueError, match="additional"):
        trainer.fit(module, loader())
    assert (trainer.max_epochs, trainer.fit_loop.forward_only, module.net[1].momentum) == (4, False, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(swa_lrs="1e-3"), "got '1e-3' .a plain YAML reader"),
        (dict(swa_lrs=1), "positive float"),
        (dict(swa_lrs=[0.1, -1.0]), "positive float"),
        (dict(swa_lrs=0.1, swa_epoch_start=0), "got 0"),
        (dict(swa_lrs=0.1, swa_epoch_start=1.5), "got 1.5"),
        (dict(swa_lrs=0.1, annealing_strategy="cosine"), "'cosine' is not 'cos' or 'linear'"),
        (dict(swa_lrs=0.1, avg_fn=3), "callable, got 3"),
        (dict(swa_lrs=0.1, device=3), "Found 3"),
    ),
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        StochasticWeightAveraging(**arguments)


def test_settings_that_do_not_fit():
    untouched = Net()
    with pytest.raises(MisconfigurationException, match="holds 2 rates, the optimizer has 1 parameter groups"):
        fit(untouched, StochasticWeightAveraging([0.1, 0.2], 3))  # said before the first batch, not in epoch 3
    assert_equal(weights(untouched), weights(Net()))
    with pytest.raises(MisconfigurationException, match="`max_epochs=-1`"):
        fit(Net(), StochasticWeightAveraging(0.1), max_epochs=-1, max_steps=2)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_an_average_that_never_begins_leaves_the_modules_own_weights(batch_norm):
    plain, module = Net(batch_norm), Net(batch_norm)
    trainer_of(max_epochs=2).fit(plain, loader())
    trainer = trainer_of(StochasticWeightAveraging(0.1, swa_epoch_start=5), max_epochs=2)
    with pytest.warns(UserWarning, match="begins after the last of max_epochs=2"):
        trainer.fit(module, loader())
    assert trainer.current_epoch == 2
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(module)[name]), name


def test_what_is_no_floating_number_is_not_averaged():
    class Moving(Net):
        def __init__(self):
            super().__init__(batch_norm=False)
            self.quantized = torch.nn.Parameter(torch.tensor([1, 100], dtype=torch.int8), requires_grad=False)
            self.mask = torch.nn.Parameter(torch.tensor([True, False]), requires_grad=False)

        def on_train_epoch_end(self):
            self.quantized += 1
            self.mask.logical_not_()

    module = Moving()
    trainer_of(StochasticWeightAveraging(0.1, swa_epoch_start=1), max_epochs=3).fit(module, loader())
    assert module.quantized.tolist() == [4, 103]
    assert module.mask.tolist() == [False, True]
