"""`Trainer(compile=...)`: the same numbers, names and files, by compiled graphs."""

import pytest
import torch
from torch.utils.data import DataLoader
from weighted_batches import ADAM, SEVERAL, Model, batches
from weights_parts import Net, loader, trainer_of, weights

from espnet3_lite import Callback, ESPnetModule, MisconfigurationException, Trainer
from espnet3_lite.callbacks import EMAWeightAveraging

EAGER = {"backend": "aot_eager"}


class Counts:
    """A backend that counts the graphs which it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


class Logs(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_epoch=True, on_step=True)
        return loss


def close(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_step_trains_as_a_plain_one_and_its_files_have_no_prefix(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def run(compile, *callbacks, ckpt_path=None):
        module = Logs()
        trainer = trainer_of(*callbacks, max_epochs=2, compile=compile)
        trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
        return module, trainer

    backend = Counts()
    plain, plain_trainer = run(False)
    compiled, trainer = run({"backend": backend, "dynamic": False}, Save())
    assert 1 <= backend.graphs <= 4
    close(weights(plain), weights(compiled))
    for name, value in plain_trainer.callback_metrics.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(value), rel=1e-9)
    state = torch.load(tmp_path / "4.ckpt", weights_only=True)
    assert state["state_dict"].keys() == plain.state_dict().keys()
    for flag in (EAGER, False):  # a run may go on compiled or not
        resumed, _ = run(flag, ckpt_path=tmp_path / "4.ckpt")
        close(weights(resumed), weights(plain))


@pytest.mark.parametrize("config", [{"optimizer": ADAM}, SEVERAL])
def test_an_espnet_model_is_compiled_itself(config):
    def run(compile):
        model = Model("optimizers" in config)
        module = ESPnetModule(model, config)
        trainer = trainer_of(max_epochs=1, compile=compile)
        trainer.fit(module, DataLoader(batches(), batch_size=None))
        return module.state_dict(), trainer

    backend = Counts()
    plain, _ = run(False)
    compiled, trainer = run({"backend": backend})
    assert backend.graphs >= 1
    close(plain, compiled)
    assert float(trainer.callback_metrics["train/loss"]) > 0


def test_with_windows_clipping_and_an_average():
    def run(compile):
        module = Logs()
        settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "compile": compile}
        trainer_of(EMAWeightAveraging(decay=0.5), max_epochs=2, **settings).fit(module, loader(), loader())
        return weights(module)

    close(run(False), run(EAGER))


@pytest.mark.slow
def test_one_real_compilation(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run leaves broken files in the common one
    plain, module = Logs(), Logs()
    trainer_of(max_epochs=1).fit(plain, loader())
    trainer_of(max_epochs=1, compile=True).fit(module, loader())
    close(weights(plain), weights(module))


def test_arguments_are_handed_on(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda step, **arguments: given.append(arguments) or step)
    for value in (True, "reduce-overhead", {"mode": "default", "fullgraph": False}):
        trainer_of(max_epochs=1, compile=value).fit(Net(), loader())
    assert given == [{}, {"mode": "reduce-overhead"}, {"mode": "default", "fullgraph": False}]


def test_another_mode_is_an_error_with_the_nearest():
    with pytest.raises(MisconfigurationException, match="compile='max-autotun'.*max-autotune"):
        Trainer(compile="max-autotun")


def test_a_compiled_module_is_told():
    with pytest.warns(UserWarning, match=r"Use Trainer\(compile=...\)"):
        trainer_of(max_epochs=1).fit(torch.compile(Net(), backend="aot_eager"), loader())
