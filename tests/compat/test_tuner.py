"""`Tuner`: what Lightning 2.6.6's finds, the training after it, and what is refused."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite import LiteDataModule, LiteModule, callbacks
from espnet3_lite.compat.rewriting import rewrite
from espnet3_lite.compat.tuner import FoundAsLightning, Tuner
from espnet3_lite.exceptions import MisconfigurationException

GOLDEN = Path(__file__).parents[1] / "golden" / "lightning_tuner.py"
RECORDED = json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The rewritten file as a module."""
    rewritten = rewrite(GOLDEN.read_text())
    assert (rewritten.changes, rewritten.problems) == (2, [])
    (folder := tmp_path_factory.mktemp("tuner")).joinpath("rewritten_tuner.py").write_text(rewritten.text)
    dtype = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("rewritten_tuner")
    torch.set_default_dtype(dtype)


@pytest.mark.filterwarnings("ignore:Skipping")
@pytest.mark.parametrize("name", RECORDED)
def test_equals_lightnings(program, name, tmp_path):
    found, expected = program.noted(name, str(tmp_path)), RECORDED[name]
    assert found.keys() == expected.keys() and RECORDED.keys() == program.SEARCHES.keys()
    for part, value in expected.items():
        if isinstance(value, dict):
            assert found[part] == {key: pytest.approx(entry, rel=1e-12) for key, entry in value.items()}
        elif part == "calls":
            assert found[part] == value
        else:
            assert found[part] == (value if value is None else pytest.approx(value, rel=1e-9)), part


class Limited(LiteModule):
    """`kind` is raised for more than `limit` samples."""

    def __init__(self, limit=9, kind=MemoryError, text=""):
        super().__init__()
        self.batch_size, self.lr, self.limit, self.kind, self.text = 1, 0.1, limit, kind, text
        self.w, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch))
        if len(batch) > self.limit:
            raise self.kind(self.text)
        return (self.w - batch.mean()).square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(64.0), batch_size=self.batch_size, shuffle=True)


SHORT = "DefaultCPUAllocator: out of memory"


@pytest.mark.parametrize(("kind", "text"), [(MemoryError, ""), (RuntimeError, SHORT), (torch.OutOfMemoryError, "")])
@pytest.mark.parametrize(("mode", "size"), [("power", 8), ("binsearch", 9)])
def test_the_batch_size_that_memory_allows(kind, text, mode, size):
    module, run = Limited(kind=kind, text=text), quiet_trainer(max_epochs=1)
    before = torch.get_rng_state()
    assert Tuner(run).scale_batch_size(module, mode=mode, margin=0.0, steps_per_trial=1) == size
    assert (module.batch_size, module.w.item(), module.sizes, run.global_step, run.callbacks) == (size, 0, [], 0, [])
    assert torch.equal(before, torch.get_rng_state())
    run.fit(module)
    assert module.sizes == [size] * (64 // size) + [64 % size] * (size == 9) and run.global_step == math.ceil(64 / size)


def test_another_error_ends_the_search_and_leaves_all_as_it_was():
    module, run = Limited(kind=RuntimeError, text="size mismatch"), quiet_trainer()
    with pytest.raises(RuntimeError, match="size mismatch"):
        Tuner(run).scale_batch_size(module)
    assert (module.batch_size, run.callbacks) == (1, [])


class Data(LiteDataModule):
    batch_size = 2

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"lr": 1.0})

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(64.0), batch_size=self.batch_size)


def test_what_is_found_is_set_wherever_it_stands():
    """Lightning sets it everywhere; one place alone would let a module train with the old value in silence."""
    module, data, run = Limited(), Data(), quiet_trainer(max_epochs=9)
    module.save_hyperparameters({"lr": 0.1, "learning_rate": 3.0, "batch_size": 1})
    tuner = Tuner(run)
    assert tuner.scale_batch_size(module, datamodule=data) == 8
    assert (module.batch_size, module.hparams.batch_size, data.batch_size) == (8, 8, 8)
    rate = tuner.lr_find(module, datamodule=data, num_training=20, early_stop_threshold=None).suggestion()
    assert (module.lr, module.hparams.lr, module.hparams.learning_rate, data.hparams.lr) == (rate, rate, 3.0, rate)


def test_a_rate_in_the_hyperparameters_goes_before_another_name_in_the_module():
    class Two(Limited):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    module = Two()
    module.learning_rate = 5.0
    module.save_hyperparameters({"lr": 0.1})
    del module.lr
    finder = callbacks.LearningRateFinder(num_training_steps=20)
    quiet_trainer(max_epochs=1, callbacks=[finder]).fit(module)
    assert (module.hparams.lr, module.learning_rate) == (finder.optimal_lr.suggestion(), 5.0)


@pytest.mark.parametrize(
    ("method", "arguments", "error", "text"),
    [
        ("lr_find", {"method": "test"}, MisconfigurationException, "only valid configuration"),
        ("lr_find", {"dataloaders": [1]}, MisconfigurationException, "not `dataloaders`"),
        ("lr_find", {"attr_name": "lrr"}, MisconfigurationException, "have 'lrr'.*did you mean 'lr'"),
        ("scale_batch_size", {"method": "valid"}, ValueError, "'valid' is invalid.*did you mean 'validate'"),
        ("scale_batch_size", {"method": "test", "val_dataloaders": [1]}, MisconfigurationException, "or `val_datal"),
        ("scale_batch_size", {"train_dataloaders": [1]}, MisconfigurationException, "passed directly"),
        ("scale_batch_size", {"mode": "pow"}, ValueError, "`mode`"),
    ],
)
def test_what_is_refused(method, arguments, error, text):
    run = quiet_trainer(max_epochs=1)
    with pytest.raises(error, match=text):
        getattr(Tuner(run), method)(Limited(), **arguments)
    assert run.callbacks == []


@pytest.mark.parametrize(
    ("method", "finder"), [("lr_find", "LearningRateFinder"), ("scale_batch_size", "BatchSizeFinder")]
)
def test_a_callback_that_searches_already(method, finder):
    run = quiet_trainer(callbacks=[getattr(callbacks, finder)()])
    with pytest.raises(ValueError, match=f"already configured with a `{finder}`"):
        getattr(Tuner(run), method)(Limited())


def test_the_curve_is_drawn(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    found = FoundAsLightning({"lr": [10.0**-power for power in range(20, 0, -1)], "loss": [*range(20, 0, -1)]})
    axes = found.plot(suggest=True).axes[0]
    assert axes.get_xscale() == "log" and axes.lines[1].get_xdata()[0] == found.suggestion()
    assert found.plot(ax=axes) is axes.figure
    monkeypatch.setattr("espnet3_lite.compat.tuner.can_draw", lambda: False)
    with pytest.raises(MisconfigurationException, match=r"espnet3_lite\[plot\]"):
        found.plot()
