"""The batch size that fits: Lightning's results, no trace of the trials, and where the size may stand."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from weights_parts import assert_equal, trainer_of, weights

from espnet3_lite import Callback, LiteDataModule, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import BatchSizeFinder
from espnet3_lite.callbacks.batch_size_finder import is_out_of_memory


class Limited(LiteModule):
    """Memory for `limit` samples; counts in a Python attribute, draws random numbers, keeps BatchNorm statistics."""

    def __init__(self, limit=100, batch_size=1, samples=1000):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
        self.limit, self.batch_size, self.samples = limit, batch_size, samples
        self.sizes = []

    def use(self, batch):
        x = batch[0]
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        noise = torch.nn.functional.dropout(self.norm(x) if len(x) > 1 else x, 0.3, self.training)
        return self.layer(noise).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.use(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid_loss", self.use(batch))

    def predict_step(self, batch, batch_idx):
        return self.use(batch)

    def loader(self, shuffle=False):
        data = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(data), batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self):
        return self.loader(shuffle=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(module, *callbacks, max_epochs=1, limit_train_batches=2, ckpt_path=None, datamodule=None, **settings):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs, limit_train_batches=limit_train_batches, **settings)
    trainer.fit(module, ckpt_path=ckpt_path, datamodule=datamodule)
    return trainer


# What Lightning 2.6.6 finds: limit, present size, samples, arguments, result.
LIGHTNING = (
    (100, 1, 1000, dict(), 64),
    (100, 1, 1000, dict(mode="binsearch"), 95),
    (100, 1, 1000, dict(mode="binsearch", margin=0.0), 100),
    (10**9, 1, 60, dict(), 64),
    (10**9, 1, 60, dict(mode="binsearch"), 60),
    (10**9, 1, 1000, dict(max_trials=3), 8),
    (10**9, 1, 1000, dict(mode="binsearch", max_trials=3, margin=0.0), 8),
    (10**9, 64, 60, dict(), 64),
    (3, 1, 1000, dict(mode="binsearch"), 2),
    (2, 1, 1000, dict(), 2),
    (37, 1, 1000, dict(mode="binsearch", margin=0.2, init_val=5), 29),
)
# Where Lightning crashes, or tries another size than it says: it begins with the loader of the present size.
OURS = (
    (5, 1, 1000, dict(init_val=16), 4),
    (5, 1, 1000, dict(init_val=16, mode="binsearch", margin=0.0), 5),
    (1, 1, 1000, dict(), 1),
    (40, 1, 50, dict(), 32),
    (10**9, 1, 100000, dict(max_val=100), 100),
)


@pytest.mark.parametrize(("limit", "present", "samples", "arguments", "found"), LIGHTNING + OURS)
def test_the_size_that_is_found(limit, present, samples, arguments, found):
    module, finder = Limited(limit, present, samples), BatchSizeFinder(**arguments)
    trainer = fit(module, finder)
    assert (finder.optimal_batch_size, module.batch_size) == (found, found)
    assert trainer.train_dataloader.batch_size == found
    assert module.sizes[0] == min(found, samples)  # the trials' counts are the copies'


class Listen(Callback):
    """Everything that is called, and what is counted and logged then."""

    def __init__(self):
        self.calls = []

    def note(self, trainer, name):
        self.calls.append((name, trainer.global_step, trainer.current_epoch, sorted(trainer.callback_metrics)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(trainer, f"batch {batch_idx}: {outputs['loss'].item()}")

    def on_train_epoch_end(self, trainer, pl_module):
        self.note(trainer, "epoch")

    def on_validation_end(self, trainer, pl_module):
        self.note(trainer, "validation")


class Validated(Limited):
    def val_dataloader(self):
        return self.loader()


@pytest.mark.parametrize("mode", ("power", "binsearch"))
def test_the_trials_leave_no_trace(mode, tmp_path):
    finder, found_by = Listen(), Listen()
    first, second = Validated(100), Validated(100, batch_size=64 if mode == "power" else 95)
    settings = dict(max_epochs=2, limit_train_batches=4, limit_val_batches=2, num_sanity_val_steps=2)
    torch.manual_seed(5)
    searched = fit(first, BatchSizeFinder(mode), finder, **settings)
    random_after = torch.rand(3)
    torch.manual_seed(5)
    plain = fit(second, found_by, **settings)
    assert finder.calls == found_by.calls
    assert_equal(weights(first), weights(second))
    assert first.sizes == second.sizes
    assert torch.equal(random_after, torch.rand(3))
    states = [trainer.optimizers[0].state_dict()["state"] for trainer in (searched, plain)]
    assert all(torch.equal(states[0][index]["exp_avg_sq"], states[1][index]["exp_avg_sq"]) for index in states[0])
    assert (
        searched.lr_scheduler_configs[0].scheduler.state_dict() == plain.lr_scheduler_configs[0].scheduler.state_dict()
    )
    assert (searched.max_steps, searched.limit_train_batches, searched.limit_val_batches) == (-1, 4, 2)


def test_a_schedule_that_counts_batches_counts_those_of_the_found_size():
    class OneCycle(Limited):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.total = self.trainer.estimated_stepping_batches
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = OneCycle(100)
    trainer = fit(module, BatchSizeFinder(), max_epochs=2, limit_train_batches=1.0)
    assert (module.total, trainer.global_step) == (32, 32)  # two epochs of 1000 / 64 batches
    assert trainer.lr_scheduler_configs[0].slot.optimizer is trainer.optimizers[0]


def test_a_resumed_run_keeps_the_size_and_searches_no_more(tmp_path):
    first = Limited(100)
    fit(first, BatchSizeFinder()).save_checkpoint(tmp_path / "one.ckpt")
    resumed, finder = Limited(10**9), BatchSizeFinder()
    trainer = fit(resumed, finder, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert (finder.optimal_batch_size, resumed.batch_size, trainer.global_step) == (64, 64, 4)
    assert resumed.sizes == [64, 64]


def test_the_size_may_stand_in_hyperparameters_and_in_a_data_module():
    class WithHyperparameters(Limited):
        def __init__(self, width=2):
            super().__init__()
            del self.batch_size
            self.save_hyperparameters({"batch_size": width})

        def train_dataloader(self):
            self.batch_size = self.hparams.batch_size
            loader = self.loader()
            del self.batch_size
            return loader

    module = WithHyperparameters()
    fit(module, BatchSizeFinder())
    assert module.hparams.batch_size == 64

    class Data(LiteDataModule):
        def __init__(self):
            self.size, self.asked = 2, 0

        def train_dataloader(self):
            self.asked += 1
            return DataLoader(TensorDataset(torch.ones(1000, 4)), batch_size=self.size)

    data = Data()
    trainer = fit(Limited(20), BatchSizeFinder(batch_arg_name="size"), datamodule=data)
    assert (data.size, data.asked, trainer.train_dataloader.batch_size) == (16, 1, 16)


def test_an_evaluation_of_its_own_is_searched_too():
    module, finder = Validated(100), BatchSizeFinder(steps_per_trial=1)
    trainer = trainer_of(finder)
    trainer.validate(module, verbose=False)
    assert (finder.optimal_batch_size, module.sizes) == (64, [64] * 15 + [40])

    class Predicted(Limited):
        def predict_dataloader(self):
            return self.loader()

    module, finder = Predicted(100), BatchSizeFinder("binsearch", margin=0)
    assert len(trainer_of(finder).predict(module)) == 10
    assert module.batch_size == 100


def test_a_search_at_other_moments():
    class AtMilestones(BatchSizeFinder):
        def on_fit_start(self, *args, **kwargs):
            return

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch in (0, 2):
                pl_module.limit = 20 if trainer.current_epoch == 0 else 40
                self.scale_batch_size(trainer, pl_module)

    module = Limited()
    fit(module, AtMilestones(), max_epochs=3, limit_train_batches=1.0)
    assert module.sizes == [*[16] * 62, 8] * 2 + [*[32] * 31, 8]


def test_another_error_is_raised_and_the_size_put_back():
    class Broken(Limited):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) >= 8:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return super().training_step(batch, batch_idx)

    module = Broken(batch_size=5)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(module, BatchSizeFinder())
    assert module.batch_size == 5


def test_no_size_fits():
    with pytest.raises(MisconfigurationException, match="memory is short even with batch_size=1"):
        fit(Limited(limit=0), BatchSizeFinder())


@pytest.mark.parametrize(
    ("error", "short"),
    (
        (torch.OutOfMemoryError("anything"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ),
)
def test_what_says_that_memory_is_short(error, short):
    assert is_out_of_memory(error) is short


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="either of .'power', 'binsearch'., got 'linear'"):
        BatchSizeFinder("linear")
    with pytest.raises(ValueError, match="between 0 and 1, got 1.0"):
        BatchSizeFinder(margin=1.0)
    with pytest.raises(MisconfigurationException, match="Field batch_sise not found.*did you mean 'batch_size'"):
        fit(Limited(), BatchSizeFinder(batch_arg_name="batch_sise"))
    with pytest.raises(MisconfigurationException, match="cannot be used with dataloaders passed directly"):
        trainer_of(BatchSizeFinder(), max_epochs=1).fit(Limited(), Limited().loader())

    class Two(Limited):
        def val_dataloader(self):
            return [self.loader(), self.loader()]

    with pytest.raises(MisconfigurationException, match="multiple validate dataloaders"):
        trainer_of(BatchSizeFinder()).validate(Two())


def test_a_fast_run_is_not_searched():
    module, finder = Limited(), BatchSizeFinder()
    with pytest.warns(UserWarning, match="`fast_dev_run` is enabled"):
        fit(module, finder, fast_dev_run=True)
    assert (finder.optimal_batch_size, module.batch_size, module.sizes) == (None, 1, [1])
