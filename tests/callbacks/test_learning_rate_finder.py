"""`LearningRateFinder`: what Lightning's finds on the same run, and that the run notices nothing but its rate."""

import pytest
import torch
from quiet import QUIET

from espnet3_lite import LiteModule, Trainer
from espnet3_lite.callbacks import Callback, LearningRateFinder
from espnet3_lite.exceptions import MisconfigurationException


class Net(LiteModule):
    def __init__(self, scheduled=False):
        super().__init__()
        self.lr, self.scheduled = 0.1, scheduled
        self.w = torch.nn.Parameter(torch.tensor([5.0, -3.0]))

    def training_step(self, batch, batch_idx):
        return ((self.w - batch.mean()) ** 2).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if not self.scheduled:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]


class AtStart(Callback):
    def on_train_start(self, trainer, pl_module):
        self.weights, self.random = pl_module.w.tolist(), torch.rand(3).tolist()
        self.rate, self.step = trainer.optimizers[0].param_groups[0]["lr"], trainer.global_step


def search(module=None, epochs=1, **arguments):
    module, finder, start = module or Net(), LearningRateFinder(num_training_steps=40, **arguments), AtStart()
    torch.manual_seed(5)
    trainer = Trainer(max_epochs=epochs, callbacks=[finder, start], **QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(torch.arange(100).remainder(3).float(), batch_size=1))
    return finder.optimal_lr, module, start, trainer


def test_it_finds_what_lightning_finds():
    found, module, start, _ = search()  # the numbers are Lightning 2.6.6's, of the same module and data
    assert found.results["lr"][:3] == pytest.approx([1e-08, 2.51188643e-08, 3.98107171e-08])
    assert found.results["loss"][:4] == pytest.approx([17.17172, 22.21466, 25.25088, 27.07211], abs=1e-5)
    assert (len(found.results["lr"]), found.results["lr"][-1]) == (40, 1.0)
    assert found.results["loss"][-1] == pytest.approx(26.743049139)
    assert found.suggestion() == module.lr == start.rate == pytest.approx(0.00630957344480193)


def test_the_run_notices_nothing_but_its_rate():
    _, _, start, trainer = search(update_attr=False)
    assert (start.weights, start.step, start.rate) == ([5.0, -3.0], 0, 0.1) and trainer.global_step == 100
    torch.manual_seed(5)
    assert start.random == torch.rand(3).tolist()


def test_a_schedule_goes_on_from_the_rate_that_was_found():
    found, _, start, trainer = search(Net(scheduled=True), epochs=2)
    assert start.rate == pytest.approx(found.suggestion())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(found.suggestion() / 100)


def test_it_stops_where_the_loss_explodes():
    with pytest.warns(UserWarning, match="not enough points"):
        found, module, start, _ = search(mode="linear", max_lr=1.5, early_stop_threshold=1.2)
    assert found.results["lr"] == pytest.approx([1e-08, 0.0750000095])  # and so does Lightning's
    assert found.results["loss"] == pytest.approx([17.17172, 22.21466], abs=1e-5)
    assert module.lr == start.rate == 0.1


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(MisconfigurationException, match="have 'rate'; name the attribute in attr_name"):
        search(attr_name="rate")
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        LearningRateFinder(mode="liner")
    with pytest.warns(UserWarning, match="not enough points"):
        assert search()[0].suggestion(skip_begin=39) is None
