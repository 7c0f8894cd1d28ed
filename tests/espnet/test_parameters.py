"""ESPnet's ``init_param`` and ``freeze_param``, as keys and as callbacks."""

import pytest
import torch
from quiet import QUIET

from espnet3_lite import ESPnetModule, ESPnetTrainer, MisconfigurationException
from espnet3_lite.callbacks import ParameterFreezeCallback, PretrainedParametersCallback
from espnet3_lite.config import Config
from espnet3_lite.espnet import experiment
from espnet3_lite.espnet.parameters import load_parameters
from espnet3_lite.exceptions import CheckpointError

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


class Model(torch.nn.Module):
    def __init__(self, value=0.0, width=1):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(1, width))
        self.decoder = torch.nn.Linear(width, 1)
        for parameter in self.parameters():
            torch.nn.init.constant_(parameter, value)

    def forward(self, x):
        loss = self.decoder(self.encoder(x)).square().mean()
        return loss, {"loss": loss.detach()}, None


def values(model):
    return {name: parameter.mean().item() for name, parameter in model.named_parameters()}


@pytest.fixture
def file(tmp_path):
    torch.save(Model(7.0).state_dict(), tmp_path / "asr.pth")
    return tmp_path / "asr.pth"


@pytest.mark.parametrize(
    ("rest", "taken"),
    [
        ("", {"encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias"}),
        (":encoder:encoder", {"encoder.0.weight", "encoder.0.bias"}),
        ("::", {"encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias"}),
        (":::decoder", {"encoder.0.weight", "encoder.0.bias"}),
        (":encoder:encoder:encoder.0.bias", {"encoder.0.weight"}),
        (":::encoder.0.bias,decoder.bias", {"encoder.0.weight", "decoder.weight"}),
        (":encoder.0:decoder", {"decoder.weight", "decoder.bias"}),
        (":::dec", {"encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias"}),  # whole parts of names
    ],
)
def test_what_is_taken_from_a_file(rest, taken, file):
    model = Model()
    load_parameters(model, f"{file}{rest}")
    assert {name for name, value in values(model).items() if value == 7.0} == taken


@pytest.mark.parametrize("key", ["state_dict", "module"])  # as Lightning, and as DeepSpeed wrap them
def test_a_file_may_hold_the_parameters_under_a_key(key, file):
    torch.save({key: torch.load(file)}, file)
    model = Model()
    load_parameters(model, f"{file}:encoder:encoder")
    assert values(model) == {"encoder.0.weight": 7.0, "encoder.0.bias": 7.0, "decoder.weight": 0.0, "decoder.bias": 0.0}


def test_a_file_of_which_nothing_fits_is_told(file, caplog):
    load_parameters(Model(), f"{file}::decoder", ignore_mismatch=True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"init_param: 0 of 2 parameters and buffers are those of {file}"


@pytest.mark.parametrize(
    ("rest", "error", "words"),
    [
        (":encodr", MisconfigurationException, "begins with 'encodr'; there are .*; did you mean 'encoder'"),
        ("::decodr", MisconfigurationException, "no part 'decodr'; did you mean 'decoder'"),
        (":::a:b", MisconfigurationException, "is not path:source:destination:excludes"),
        (":encoder:decoder", CheckpointError, "0.weight, 0.bias; exclude it, or set ignore_init_mismatch: true"),
    ],
)
def test_what_does_not_fit_is_told(rest, error, words, file):
    with pytest.raises(error, match=words):
        load_parameters(Model(), f"{file}{rest}")


def test_another_shape_is_refused_or_left_out(file):
    with pytest.raises(CheckpointError, match="in another shape: encoder.0.weight, encoder.0.bias, decoder.weight"):
        load_parameters(Model(width=2), str(file))
    model = Model(width=2)
    load_parameters(model, str(file), ignore_mismatch=True)
    assert [name for name, value in values(model).items() if value == 7.0] == ["decoder.bias"]


def test_the_key_loads_when_the_model_is_built(file, tmp_path):
    config = {
        "model": {"_target_": f"{__name__}.Model"}, "optimizer": SGD, "exp_dir": str(tmp_path / "exp"),
        "init_param": [f"{file}:encoder:encoder"], "trainer": {"logger": False, "enable_progress_bar": False},
    }  # fmt: skip
    model = experiment.build(Config.create(config)).model.model
    assert [name for name, value in values(model).items() if value == 7.0] == ["encoder.0.weight", "encoder.0.bias"]


def fit(folder, *callbacks, ckpt_path=None, epochs=1):
    module = ESPnetModule(Model(1.0), {"optimizer": SGD})
    settings = {"max_epochs": epochs, **QUIET, "callbacks": list(callbacks)}
    trainer = ESPnetTrainer(module, folder, settings)
    trainer.fit([(["a"], {"x": torch.ones(1, 1)})], ckpt_path=ckpt_path)
    trainer.trainer.save_checkpoint(f"{folder}/{epochs}.ckpt")
    return values(module.model)


def test_frozen_parameters_stay_and_are_none_of_the_optimizers(tmp_path):
    found = fit(tmp_path, ParameterFreezeCallback(freeze_param=["encoder", "decoder.bias"]))
    assert found["encoder.0.weight"] == found["encoder.0.bias"] == found["decoder.bias"] == 1.0
    assert found["decoder.weight"] != 1.0
    (state,) = torch.load(tmp_path / "1.ckpt", weights_only=True)["optimizer_states"]
    assert len(state["param_groups"][0]["params"]) == 1


def test_a_fit_begins_with_a_files_parameters_and_resumes_with_its_own(file, tmp_path):
    pretrained = PretrainedParametersCallback(init_param=[f"{file}:decoder:decoder"])
    first = fit(tmp_path, pretrained, ParameterFreezeCallback(["decoder"]))
    assert first["decoder.weight"] == first["decoder.bias"] == 7.0 and first["encoder.0.weight"] < 0
    other = PretrainedParametersCallback([f"{file}:encoder:encoder"])
    resumed = fit(tmp_path, other, ParameterFreezeCallback(["decoder"]), ckpt_path=tmp_path / "1.ckpt", epochs=2)
    assert resumed["encoder.0.weight"] != 7.0 and resumed["decoder.weight"] == 7.0
