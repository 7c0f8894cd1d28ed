"""Quantization-aware training: what is trained, converted, observed and resumed."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from weights_parts import assert_equal, trainer_of, weights

from espnet3_lite import Callback, LiteModule, MisconfigurationException
from espnet3_lite.callbacks import QuantizationAwareTraining

# torch says of itself, wherever int8 tensors are made, that they will move.
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*TypedStorage is deprecated")


class Classifier(LiteModule):
    """Is the mean of an 8 x 8 image positive? A convolution with BatchNorm, and a linear layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm, self.relu = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        self.head = torch.nn.Linear(4 * 36, 2)

    def forward(self, x):
        return self.head(self.relu(self.norm(self.conv(x))).flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        self(100 * batch[0])  # far beyond the range of the training data

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.002)


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=generator) + torch.randn(64, 1, 1, 1, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


def loader():
    return DataLoader(TensorDataset(*images()), batch_size=16)


def fit(module, *callbacks, max_epochs=4, ckpt_path=None, **settings):
    trainer = trainer_of(*callbacks, max_epochs=max_epochs, **settings)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


class KeepFloat(Callback):
    """A copy of the trained module, before it is converted."""

    def on_train_end(self, trainer, pl_module):
        self.module = copy.deepcopy(pl_module).eval()
        self.module.forward = None
        del self.module.forward


FUSED = [["conv", "norm", "relu"]]


@pytest.mark.parametrize("observer_type", ("average", "histogram"))
@pytest.mark.parametrize("modules_to_fuse", (FUSED, pytest.param(None, marks=pytest.mark.slow)))
def test_the_int8_module_is_near_the_float_one(observer_type, modules_to_fuse):
    module, keep = Classifier(), KeepFloat()
    qat = QuantizationAwareTraining("fbgemm", observer_type, modules_to_fuse=modules_to_fuse)
    fit(module, qat, keep, max_epochs=60)
    x, y = images()
    assert module.conv.weight().dtype == module.head.weight().dtype == torch.qint8
    assert module(x).dtype == torch.float32
    keep.module.apply(torch.ao.quantization.disable_fake_quant)
    with torch.no_grad():
        exact = keep.module(x)
    # Single outliers are cut off where the observed range ends; on the average int8 is near.
    error = (module(x) - exact).abs().mean() / (exact.max() - exact.min())
    assert error.item() < 0.03
    assert (module(x).argmax(1) == exact.argmax(1)).float().mean().item() > 0.95
    assert (module(x).argmax(1) == y).float().mean().item() > 0.9
    assert (type(module.norm) is torch.nn.Identity) == (modules_to_fuse is not None)


def test_rounding_is_in_the_training_with_average_observers():
    rounded, plain = Classifier(), Classifier()
    fit(rounded, QuantizationAwareTraining(quantize_on_fit_end=False), max_epochs=1)
    fit(plain, max_epochs=1)
    difference = (rounded.head.weight - plain.head.weight).abs().max().item()
    assert 0 < difference < 0.05
    assert "forward" not in vars(rounded)  # its own again
    assert rounded.head.weight.dtype == torch.float32


def test_without_compatible_input_the_caller_quantizes():
    module = Classifier()
    fit(module, QuantizationAwareTraining(input_compatible=False), max_epochs=1)
    x, _ = images()
    with pytest.raises(NotImplementedError):
        module(x)
    assert module(module.quant(x)).dtype == torch.quint8
    assert module.dequant(module(module.quant(x))).dtype == torch.float32


@pytest.mark.parametrize("observer_type", ("average", "histogram"))
@pytest.mark.parametrize(("stages", "follows"), ((("train",), False), (("train", "validate"), True)))
def test_ranges_are_observed_in_the_chosen_stages(observer_type, stages, follows):
    module = Classifier()
    settings = dict(observer_type=observer_type, observer_enabled_stages=stages, quantize_on_fit_end=False)
    fit(module, QuantizationAwareTraining(**settings), max_epochs=1)
    observer = module.quant.activation_post_process
    largest = getattr(observer, "activation_post_process", observer).max_val.item()
    assert (largest > images()[0].max().item()) == follows  # validation sees a hundred times as much


def test_training_does_not_observe_when_it_shall_not():
    module = Classifier()
    fit(module, QuantizationAwareTraining(observer_enabled_stages=(), quantize_on_fit_end=False), max_epochs=1)
    assert module.quant.activation_post_process.activation_post_process.max_val.item() == float("-inf")


@pytest.mark.parametrize(("collect", "calls"), ((None, 8), (3, 3), (lambda trainer: trainer.global_step >= 6, 2)))
def test_the_input_is_quantized_as_often_as_asked(collect, calls):
    class Count(Callback):
        quantized = 0

        def on_train_start(self, trainer, pl_module):
            pl_module.quant.register_forward_hook(self.count)

        def count(self, *_):
            self.quantized += 1

    count = Count()
    qat = QuantizationAwareTraining(collect_quantization=collect, quantize_on_fit_end=False)
    fit(Classifier(), qat, count, max_epochs=2, limit_val_batches=0)
    assert count.quantized == calls


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    class Save(Callback):
        place = 2

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole, resumed = Classifier(), Classifier(seed=4)
    fit(whole, QuantizationAwareTraining(modules_to_fuse=FUSED, quantize_on_fit_end=False), Save(), max_epochs=3)
    again = QuantizationAwareTraining(modules_to_fuse=FUSED, quantize_on_fit_end=False)
    fit(resumed, again, max_epochs=3, ckpt_path=tmp_path / "0.ckpt")
    assert_equal(weights(resumed), weights(whole))


def test_the_converted_module_can_be_copied():
    module = Classifier()
    fit(module, QuantizationAwareTraining(), max_epochs=1)
    twin, (x, _) = copy.deepcopy(module), images()
    expected = module(x)
    module.head = None
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (dict(qconfig="fbgem"), "Unsupported qconfig: 'fbgem'.*that torch has here"),
        (dict(observer_type="mean"), "Unsupported observer type"),
        (dict(collect_quantization="always"), "Unsupported `collect_quantization`"),
        (dict(observer_enabled_stages=("fit",)), "'fit'.*allowed are"),
    ),
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        QuantizationAwareTraining(**arguments)


def test_modules_that_do_not_fit():
    with pytest.raises(MisconfigurationException, match=r"\['batch_norm'\] not found in Classifier"):
        fit(Classifier(), QuantizationAwareTraining(modules_to_fuse=[["conv", "batch_norm"]]))

    class NoForward(Classifier):
        forward = torch.nn.Module.forward

    with pytest.raises(MisconfigurationException, match="needs NoForward.forward"):
        fit(NoForward(), QuantizationAwareTraining())
