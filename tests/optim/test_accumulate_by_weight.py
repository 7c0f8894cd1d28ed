"""`accumulate_by_weight`: a step over several batches of different sizes is that of one large batch, on any ranks."""

import pytest
import torch
from rank_lab import results_of, torchrun, trainer_of
from torch.utils.data import DataLoader
from weighted_batches import ADAM, SEVERAL, Model, batches

from espnet3_lite import Callback, ESPnetModule, LiteModule


def parameters_after(config, by_weight, **settings):
    model = Model("optimizers" in config)
    module = ESPnetModule(model, {**config, "accumulate_by_weight": by_weight})
    trainer = trainer_of(max_epochs=1, **settings)
    trainer.fit(module, DataLoader(batches(), batch_size=None))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), trainer


def by_hand(windows):
    """Adam on the mean over all samples of each window."""
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for window in windows:
        x, y = (torch.cat([rows[1][key] for rows in window]).double() for key in "xy")
        optimizer.zero_grad()
        sum(error.mean() for error in model.errors(x, y)).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("precision", ["64-true", "16-mixed"])
def test_windows_of_batches_of_different_sizes_equal_large_batches(precision):
    rows = batches()
    settings = {"accumulate_grad_batches": 3, "precision": precision}
    found, trainer = parameters_after({"optimizer": ADAM}, True, **settings)
    expected = by_hand([rows[:3], rows[3:6], rows[6:]])
    assert trainer.global_step == 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if precision == "64-true" else 0.05)
    plain, _ = parameters_after({"optimizer": ADAM}, False, **settings)
    assert not torch.allclose(plain, expected, rtol=0, atol=1e-3)


def test_several_optimizers_with_windows_of_their_own():
    rows = batches()
    found, trainer = parameters_after(SEVERAL, True)
    assert [slot.update_step for slot in trainer.plan.slots.values()] == [2, 2]
    torch.testing.assert_close(found, by_hand([rows[:3], rows[3:6]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [{"optimizer": ADAM}, SEVERAL])
def test_a_run_resumed_within_a_window_ends_with_the_same_bits(tmp_path, config):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    settings = {} if config is SEVERAL else {"accumulate_grad_batches": 3}
    whole, _ = parameters_after(config, True, callbacks=[Save()], **settings)
    for path in sorted(tmp_path.glob("?.ckpt")):
        model = Model("optimizers" in config)
        module = ESPnetModule(model, {**config, "accumulate_by_weight": True})
        trainer_of(max_epochs=1, **settings).fit(module, DataLoader(batches(), batch_size=None), ckpt_path=path)
        assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), whole), path.name


def test_without_weights_a_short_last_window_is_the_mean_over_its_own_batches():
    class Line(LiteModule):
        def __init__(self, by_weight):
            super().__init__()
            self.layer, self.accumulate_by_weight = torch.nn.Linear(1, 1, bias=False).double(), by_weight
            torch.nn.init.ones_(self.layer.weight)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    for by_weight, expected in ((True, 1.0 - 1.0 - 1.0), (False, 1.0 - 1.0 - 0.25)):
        module = Line(by_weight)
        data = DataLoader(torch.ones(5, 1, dtype=torch.float64), batch_size=1)
        trainer_of(max_epochs=1, accumulate_grad_batches=4).fit(module, data)
        assert module.layer.weight.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_two_ranks_make_the_same_step(tmp_path):
    """Each window holds two batches of each rank, of four sizes. By compiled graphs too."""
    ended = torchrun(2, "rank_weights.py", tmp_path)
    assert ended.returncode == 0, ended.stdout
    expected = by_hand([batches()[:4], batches()[4:]]).tolist()
    for result in results_of(tmp_path, 2):
        assert result["steps"] == 2
        assert result["parameters"] == pytest.approx(expected, rel=0, abs=1e-12)
        assert result["compiled"] == pytest.approx(result["parameters"], rel=0, abs=1e-10)
        assert result["compiled_several"] == pytest.approx(result["several"], rel=0, abs=1e-10)
        assert result["several"] == pytest.approx(by_hand([batches()[:4]]).tolist(), rel=0, abs=1e-12)
