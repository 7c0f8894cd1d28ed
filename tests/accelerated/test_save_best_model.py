"""Which epoch is saved, and that its weights are there when the run is over."""

import pytest
import torch
from quiet import quiet_trainer
from torch.utils.data import DataLoader

from espnet3_lite import LiteModule
from espnet3_lite.callbacks import SaveBestModelCallback


class Module(LiteModule):
    """The weight counts the epochs; the evaluation's losses are given."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            return None
        self.log("accuracy", -self.losses[self.current_epoch])
        return torch.tensor(self.losses[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def make(callback, epochs, **settings):
    return quiet_trainer(max_epochs=epochs, callbacks=callback, **settings)


def fit(trainer, losses, **arguments):
    module, loader = Module(losses), DataLoader(torch.ones(1, 1))
    trainer.fit(module, loader, loader, **arguments)
    return module


@pytest.mark.parametrize("watched", [{}, {"watch_metric": "accuracy", "greater_is_better": True}])
def test_the_best_epoch_is_saved_and_loaded(watched, tmp_path, capsys):
    callback = SaveBestModelCallback(tmp_path / "best.pt", **watched)
    module = fit(make(callback, 4), [3.0, 1.0, 2.0, 1.0])
    assert callback.best_metric_epoch == 2  # the first of equals
    assert module.weight.item() == 2.0
    assert torch.load(tmp_path / "best.pt", weights_only=True)["state_dict"] == {"weight": torch.tensor(2.0)}
    name, value = (watched.get("watch_metric", "eval_loss_epoch"), -1.0 if watched else 1.0)
    assert capsys.readouterr().out == f"Loading checkpoint with {name}: {value} from epoch 2\n"


def test_epochs_without_an_evaluation_are_passed_over(tmp_path):
    callback = SaveBestModelCallback(tmp_path / "best.pt")
    trainer = make(callback, 4, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    module = fit(trainer, [0.0, 2.0, 0.0, 3.0])
    assert (callback.best_metric, callback.best_metric_epoch, module.weight.item()) == (2.0, 2, 2.0)


@pytest.mark.parametrize(("reset", "best"), [(True, 5.0), (False, 1.0)])
def test_reset_on_train(reset, best, tmp_path):
    callback = SaveBestModelCallback(tmp_path / "best.pt", reset_on_train=reset)
    fit(make(callback, 1), [1.0])
    fit(make(callback, 1), [5.0])
    assert callback.best_metric == best


def test_a_resumed_run_compares_with_the_best_so_far(tmp_path):
    callback = SaveBestModelCallback(tmp_path / "best.pt")
    first = make(callback, 2)
    fit(first, [1.0, 2.0])
    first.save_checkpoint(tmp_path / "state.ckpt")
    again = SaveBestModelCallback(tmp_path / "best.pt")
    module = fit(make(again, 4), [1.0, 2.0, 1.5, 1.2], ckpt_path=tmp_path / "state.ckpt")
    assert (again.best_metric, again.best_metric_epoch, module.weight.item()) == (1.0, 1, 1.0)


def test_a_metric_that_never_comes_is_an_error(tmp_path):
    callback = SaveBestModelCallback(tmp_path / "best.pt", watch_metric="eval_los_epoch")
    with pytest.raises(ValueError, match="metric eval_los_epoch; did you mean 'eval_loss_epoch'"):
        fit(make(callback, 1), [1.0])
