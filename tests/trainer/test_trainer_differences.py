"""Where the trainer differs from Lightning on purpose: each difference as values."""

import pytest
import torch
from quiet import quiet_trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule, MisconfigurationException, Trainer

ROWS = torch.sin(torch.arange(16, dtype=torch.float64).reshape(8, 2))


class Line(LiteModule):
    def __init__(self, configure=None):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -0.25]]))
            self.layer.bias.zero_()
        self.configure = configure

    def loss(self, batch):
        return (self.layer(batch) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0 + self.current_epoch)  # never gets better

    def configure_optimizers(self):
        if self.configure is not None:
            return self.configure(self)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, module, **settings):
    trainer = quiet_trainer(**{"max_epochs": 1, "num_sanity_val_steps": 0, **settings}, default_root_dir=tmp_path)
    trainer.fit(module, DataLoader(ROWS, batch_size=2), DataLoader(ROWS[:2], batch_size=2))
    return trainer


def test_a_validation_within_a_window_clears_nothing(tmp_path):
    """Lightning's clears the gradients that are pending."""
    with_validation, without = Line(), Line()
    fit(tmp_path, with_validation, accumulate_grad_batches=4, val_check_interval=3)
    fit(tmp_path, without, accumulate_grad_batches=4, limit_val_batches=0)
    assert torch.equal(with_validation.layer.weight, without.layer.weight)


def plateau(module, **settings):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss", **settings}}


def test_a_monitored_scheduler_waits_for_a_new_value(tmp_path):
    """Lightning steps each epoch, on the value of two epochs ago."""
    trainer = fit(tmp_path, Line(plateau), max_epochs=6, check_val_every_n_epoch=2)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**2  # the first of three values is the best


def test_by_steps_it_waits_for_the_first_validation(tmp_path):
    """Lightning raises at the first step."""
    trainer = fit(tmp_path, Line(lambda module: plateau(module, interval="step")), max_epochs=2)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_monitored_scheduler_steps_before_the_checkpoint_of_its_validation(tmp_path):
    """Lightning's checkpoint holds the rate of before, and its resumed runs step once less."""
    rates = []

    class Looks(Line):
        def on_validation_end(self):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    fit(tmp_path, Looks(plateau), max_epochs=3)
    assert rates == [0.1, 0.05, 0.025]


def test_several_optimizers_are_refused_before_the_first_batch(tmp_path):
    def two(module):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in module.parameters()]

    with pytest.raises(MisconfigurationException, match="returned 2 optimizers.*manual optimization"):
        fit(tmp_path, Line(two))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0 is not a whole number of at least 1"),
        ({"gradient_clip_val": "1"}, "gradient_clip_val='1' is not a number"),
        ({"limit_test_batches": "x"}, "limit_test_batches='x' is not a whole number"),
        ({"precision": "17"}, "precision='17'"),
    ],
)
def test_settings_are_checked_by_themselves(settings, words):
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(**settings)
    assert words in str(raised.value)


def test_all_wrong_settings_are_in_one_message():
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(max_epochs=-2, log_every_n_steps=-1, limit_val_batches=1.5)
    assert [line.split("=")[0] for line in str(raised.value).splitlines()] == [
        "Trainer: max_epochs", "Trainer: limit_val_batches", "Trainer: log_every_n_steps",
    ]  # fmt: skip


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(TypeError, match="no argument 'max_epoch'.*did you mean 'max_epochs'"):
        Trainer(max_epoch=3)


def test_metrics_are_there_again_in_a_run_that_resumes(tmp_path):
    """Lightning's begins with none."""
    trainer = fit(tmp_path, Line())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    seen = []

    class Looks(Line):
        def on_train_start(self):
            seen.append(dict(self.trainer.callback_metrics))

    resumed = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    resumed.fit(Looks(), DataLoader(ROWS, batch_size=2), ckpt_path=tmp_path / "x.ckpt")
    assert seen == [{"val_loss": torch.tensor(1.0)}]
