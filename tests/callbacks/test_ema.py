"""`EMACallback`: averages as ESPnet3 makes them under Lightning, through resumes, in validation, when things fail."""

import copy
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import ema_lab
import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import Callback, LiteModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import EMACallback
from espnet3_lite.config.targets import find_target

GOLDEN = Path(__file__).parents[1] / "golden" / "ema"
OURS = SimpleNamespace(Trainer=Trainer, Module=LiteModule, Callback=Callback, EMACallback=EMACallback)


def near(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            near(found[key], expected[key])
    else:
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
        )


@pytest.fixture(scope="module")
def recorded():
    return json.loads((GOLDEN / "run.json").read_text())


def test_200_steps_equal_espnet3s(recorded, tmp_path):
    found = ema_lab.run(OURS, tmp_path)
    near(found["averages"], recorded["averages"])
    near(found["validated"], recorded["validated"])
    near(found["weights"], recorded["weights"])  # of the training itself, which the average leaves alone
    assert recorded["averages"]["20"]["ema_model.inner.weight"] != recorded["weights"]["inner.weight"]


def test_a_run_goes_on_from_espnet3s_checkpoint(recorded, tmp_path):
    found = ema_lab.run(OURS, tmp_path, ckpt_path=GOLDEN / "lightning_epoch10.ckpt")
    near(found["averages"], {epoch: values for epoch, values in recorded["averages"].items() if int(epoch) > 10})
    near(found["validated"], recorded["validated"][4:])


def test_a_run_goes_on_from_our_checkpoint_to_the_same_bits(tmp_path):
    whole = ema_lab.run(OURS, tmp_path)
    ema_lab.run(OURS, tmp_path, epochs=10)
    resumed = ema_lab.run(OURS, tmp_path, ckpt_path=tmp_path / "epoch10.ckpt")
    assert resumed["averages"]["20"] == whole["averages"]["20"]
    assert resumed["validated"] == whole["validated"][4:]


def test_our_checkpoint_holds_what_espnet3s_holds(tmp_path):
    ema_lab.run(OURS, tmp_path, epochs=10)
    ours = torch.load(tmp_path / "epoch10.ckpt", weights_only=True)["ema_model_state_dict"]
    theirs = torch.load(GOLDEN / "lightning_epoch10.ckpt", weights_only=True)["ema_model_state_dict"]
    assert sorted(ours) == sorted(theirs)
    for key, value in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (value.dtype, value.shape), key
    assert (ours["step"], ours["initted"]) == (theirs["step"], theirs["initted"]) == (100, True)


def test_espnet3s_name_is_ours():
    assert find_target("espnet3.components.callbacks.ema.EMACallback") is EMACallback


def fit(ema, *callbacks, epochs=1, **settings):
    module = ema_lab.make_module(LiteModule)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[ema, *callbacks], num_sanity_val_steps=0, **settings)
    trainer.fit(module, ema_lab.loader(), ema_lab.loader(20))
    return module, trainer


class Validated(Callback):
    """The weights that a validation sees, and those before and after it."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.before = copy.deepcopy(pl_module.model.state_dict())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.seen.append(pl_module.model.inner.weight.clone())


def test_validation_sees_the_average_and_training_its_own_weights():
    ema, look = EMACallback(decay=0.5, update_after_step=0, update_every=1), Validated()
    module, trainer = fit(ema, look)
    assert not torch.equal(look.seen[0], look.before["inner.weight"])
    assert torch.equal(look.seen[0], ema._average.module.inner.weight)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, look.before[name]), name


def test_a_batch_that_only_accumulates_is_no_step():
    ema = EMACallback(update_after_step=0)
    fit(ema, accumulate_grad_batches=5)
    assert ema.step == 2  # 10 batches


def test_an_evaluation_that_fails_leaves_the_weights_in_training():
    class Fail(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            raise ValueError("here")

    ema, look, module = EMACallback(decay=0.5, update_after_step=0, update_every=1), Validated(), None
    trainer = quiet_trainer(max_epochs=1, callbacks=[ema, look, Fail()], num_sanity_val_steps=0)
    module = ema_lab.make_module(LiteModule)
    with pytest.raises(ValueError, match="here"):
        trainer.fit(module, ema_lab.loader(), ema_lab.loader(20))
    assert torch.equal(module.model.inner.weight, look.before["inner.weight"])


def test_a_checkpoint_within_a_validation_holds_each_under_its_name(tmp_path):
    class SaveWithin(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            trainer.save_checkpoint(tmp_path / "within.ckpt")

    ema, look = EMACallback(decay=0.5, update_after_step=0, update_every=1), Validated()
    fit(ema, look, SaveWithin())
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["model.inner.weight"], look.before["inner.weight"])
    assert torch.equal(saved["ema_model_state_dict"]["ema_model.inner.weight"], look.seen[0])


def test_a_checkpoint_without_an_average_begins_one_anew(tmp_path):
    fit(Callback())[1].save_checkpoint(tmp_path / "plain.ckpt")
    ema, module = EMACallback(decay=0.5), ema_lab.make_module(LiteModule)
    trainer = quiet_trainer(max_epochs=1, callbacks=[ema])
    with pytest.warns(UserWarning, match="no 'ema_model_state_dict': EMACallback starts again from"):
        trainer.fit(module, ema_lab.loader(), ema_lab.loader(20), ckpt_path=tmp_path / "plain.ckpt")
    assert torch.equal(ema._average.module.inner.weight, module.model.inner.weight) and ema.step == 0


def test_a_decay_of_1_keeps_the_average_after_the_warm_up():
    ema, look = EMACallback(decay=1.0, update_after_step=3, update_every=1), Validated()
    module, _ = fit(ema, look)
    shorter = EMACallback(decay=0.0, update_after_step=0, update_every=1)
    same, _ = fit(shorter, limit_train_batches=4)  # four steps: the average is a copy
    assert torch.equal(ema._average.module.inner.weight, same.model.inner.weight)
    assert not torch.equal(module.model.inner.weight, same.model.inner.weight)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"update_every": 0}, "update_every=0 is below 1"),
        ({"update_after_step": -1}, "update_after_step=-1 is below 0"),
        ({"decay": 1.5}, "give 0 <= min_value <= decay <= 1"),
        ({"inv_gamma": 0.0}, "inv_gamma=0.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(MisconfigurationException, match=words):
        EMACallback(**arguments)


def test_a_signal_leaves_the_weights_in_training():
    class Signal(Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            signal.raise_signal(signal.SIGTERM)

    ema, look = EMACallback(decay=0.5, update_after_step=0, update_every=1), Validated()
    module = ema_lab.make_module(LiteModule)
    trainer = quiet_trainer(max_epochs=1, callbacks=[ema, look, Signal()], num_sanity_val_steps=0)
    with pytest.raises(SystemExit):
        trainer.fit(module, ema_lab.loader(), ema_lab.loader(20))
    assert torch.equal(module.model.inner.weight, look.before["inner.weight"])
