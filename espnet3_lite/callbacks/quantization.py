"""`QuantizationAwareTraining`: train with the rounding of int8 in the forward pass, and convert at the end.

On torch's eager-mode quantization (``torch.ao.quantization``), which torch announces to leave to the package torchao
one day.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from espnet3_lite.callbacks.base import Callback
from espnet3_lite.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from espnet3_lite.module.lite_module import LiteModule
    from espnet3_lite.trainer.trainer import Trainer


_OBSERVER_TYPES = ("histogram", "average")
_STAGES = ("train", "validate", "test", "predict")


class QuantizationAwareTraining(Callback):
    """Makes a module that computes in int8, and trains it so that it loses little.

    At the start of a fit the layers are replaced by ones that round their weights and outputs as int8 will (torch's
    `prepare_qat`), while gradients pass through; at its end they become real int8 layers (`convert`) on the CPU. The
    steps must call the module itself, ``self(x)``: there its input is quantized, and its output turned back to float. A
    checkpoint saved while training holds float weights and observed ranges, and resumes; for inference keep the module
    after the fit, or its ``state_dict``.

    Args:
        qconfig: A backend that torch has here (``fbgemm``, ``x86`` or ``onednn`` on servers, ``qnnpack`` on phones), or
            a ``torch.ao.quantization.QConfig``.
        observer_type: What a backend's name stands for. ``average``: a moving average of the range, and rounding while
            training; ``histogram``: a histogram of the values, and no rounding before the conversion.
        collect_quantization: When the module's input is quantized while training: None: always; an int: in so many
            first calls; a function of the trainer that says so.
        modules_to_fuse: Lists of names of modules to make one, such as ``[["conv", "norm", "relu"]]``.
        input_compatible: True: the converted module takes and gives float tensors; False: you quantize the input
            (``module.quant``) and turn the output back (``module.dequant``).
        quantize_on_fit_end: False: leave the module as it was trained; convert it yourself.
        observer_enabled_stages: In which of ``train``, ``validate``, ``test``, ``predict`` the ranges are observed.

    Raises:
        MisconfigurationException: a value that is not allowed, a module to fuse that there is not, a module without
            `forward`, or a torch without ``torch.ao.quantization``.

    Example:
        >>> QuantizationAwareTraining(qconfig="fbgemm", observer_type="average").quantize_on_fit_end
        True
    """

    OBSERVER_TYPES = _OBSERVER_TYPES
    OBSERVER_STAGES = _STAGES

    def __init__(
        self,
        qconfig: Any = "fbgemm",
        observer_type: str = "average",
        collect_quantization: int | Callable[[Any], bool] | None = None,
        modules_to_fuse: Sequence[Sequence[str]] | None = None,
        input_compatible: bool = True,
        quantize_on_fit_end: bool = True,
        observer_enabled_stages: Sequence[str] = ("train",),
    ):
        tools = _quantization()
        if not isinstance(qconfig, tools.QConfig) and qconfig not in torch.backends.quantized.supported_engines:
            raise MisconfigurationException(
                f"Unsupported qconfig: {qconfig!r}. Give a torch.ao.quantization.QConfig, or one of the backends that "
                f"torch has here: {torch.backends.quantized.supported_engines}"
            )
        if observer_type not in _OBSERVER_TYPES:
            raise MisconfigurationException(
                f'Unsupported observer type "{observer_type}", allowed are {_OBSERVER_TYPES}.'
            )
        if collect_quantization is not None and not isinstance(collect_quantization, int):
            if not callable(collect_quantization):
                raise MisconfigurationException(
                    f'Unsupported `collect_quantization` "{collect_quantization}", allowed are `int` or `Callable`.'
                )
        if unknown := set(observer_enabled_stages) - set(_STAGES):
            raise MisconfigurationException(
                f'Unsupported stages "{sorted(unknown)}" in `observer_enabled_stages`, allowed are {_STAGES}.'
            )
        self.qconfig, self.observer_type = qconfig, observer_type
        self.collect_quantization, self.modules_to_fuse = collect_quantization, modules_to_fuse
        self.input_compatible, self.quantize_on_fit_end = input_compatible, quantize_on_fit_end
        self.observer_enabled_stages = tuple(observer_enabled_stages)
        self._forward_calls = 0

    # ---- the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LiteModule, stage: str) -> None:
        """Prepare the layers, before weights are loaded and optimizers made."""
        if stage != "fit":
            return
        if type(pl_module).forward is torch.nn.Module.forward:
            raise MisconfigurationException(
                f"QuantizationAwareTraining needs {type(pl_module).__name__}.forward: define it, and call `self(x)` in "
                f"training_step, so that its input can be quantized"
            )
        if not hasattr(pl_module, "quant"):
            self._prepare(pl_module)
        self._forward_calls = 0
        pl_module.forward = partial(_training_forward, self, pl_module)

    def _prepare(self, pl_module: LiteModule) -> None:
        tools = _quantization()
        pl_module.quant, pl_module.dequant = tools.QuantStub(), tools.DeQuantStub()
        pl_module.qconfig = self._configuration(tools)
        pl_module.train()  # torch prepares, and fuses for training, in training mode only
        with _without_deprecations():
            if self.modules_to_fuse:
                self._check_modules_to_fuse(pl_module)
                tools.fuse_modules_qat(pl_module, [list(group) for group in self.modules_to_fuse], inplace=True)
            tools.prepare_qat(pl_module, inplace=True)

    def _configuration(self, tools: Any) -> Any:
        if not isinstance(self.qconfig, str):
            return self.qconfig
        make = tools.get_default_qconfig if self.observer_type == "histogram" else tools.get_default_qat_qconfig
        with _without_deprecations():
            return make(self.qconfig)

    def _check_modules_to_fuse(self, pl_module: torch.nn.Module) -> None:
        names = {name for name, _ in pl_module.named_modules()}
        for group in self.modules_to_fuse or ():
            if missing := [name for name in group if name not in names]:
                raise MisconfigurationException(
                    f"You have requested to fuse {list(group)} but one or more of them is not your model attributes: "
                    f"{missing} not found in {type(pl_module).__name__}"
                )

    def quantizes_input(self, trainer: Trainer) -> bool:
        """Whether a forward call in this state of `trainer` quantizes the input; see `collect_quantization`."""
        wanted = self.collect_quantization
        if wanted is None:
            return True
        return wanted(trainer) if callable(wanted) else self._forward_calls < wanted

    def on_fit_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Convert, unless a signal ends a run that will be resumed."""
        if trainer.stopped_by_signal:
            return
        del pl_module.forward  # the class's own again
        if not self.quantize_on_fit_end:
            return
        if isinstance(self.qconfig, str):
            torch.backends.quantized.engine = self.qconfig  # weights are packed for it
        pl_module.to("cpu").eval()
        with _without_deprecations():
            _quantization().convert(pl_module, inplace=True)
        if self.input_compatible:
            pl_module.forward = partial(_int8_forward, pl_module)

    # ---- observing -------------------------------------------------------------------------------------------------

    def _observe(self, pl_module: torch.nn.Module, stage: str) -> None:
        """Let the ranges follow what is seen in this stage, or stay."""
        tools, enabled = _quantization(), stage in self.observer_enabled_stages
        for module in pl_module.modules():
            if isinstance(module, tools.FakeQuantizeBase):
                module.enable_observer(enabled)
            elif isinstance(module, tools.ObserverBase) and enabled:
                module.__dict__.pop("forward", None)
            elif isinstance(module, tools.ObserverBase):
                module.forward = _look_away  # a plain observer has no switch

    def on_train_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Observe in training, or not."""
        self._observe(pl_module, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Observe in validation, or not."""
        self._observe(pl_module, "validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Back to training."""
        if trainer.state.fn == "fit":
            self._observe(pl_module, "train")

    def on_test_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Observe in a test, or not."""
        self._observe(pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LiteModule) -> None:
        """Observe in a prediction, or not."""
        self._observe(pl_module, "predict")


def _training_forward(
    callback: QuantizationAwareTraining, pl_module: LiteModule, x: torch.Tensor, *args: Any, **kwargs: Any
):
    """The module's `forward` while it is trained. (Functions, not closures: the module can be copied.)"""
    if not callback.quantizes_input(pl_module.trainer):
        return type(pl_module).forward(pl_module, x, *args, **kwargs)
    callback._forward_calls += 1
    return _int8_forward(pl_module, x, *args, **kwargs)


def _int8_forward(pl_module: LiteModule, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Quantize what goes in, and turn back what comes out."""
    quant, dequant = pl_module.get_submodule("quant"), pl_module.get_submodule("dequant")
    return dequant(type(pl_module).forward(pl_module, quant(x), *args, **kwargs))


def _look_away(x: torch.Tensor) -> torch.Tensor:
    """An observer's `forward` in a stage that is not observed."""
    return x


def _quantization() -> Any:
    """``torch.ao.quantization``.

    Raises:
        MisconfigurationException: this torch has none any more.
    """
    try:
        import torch.ao.quantization as tools
    except ImportError as error:
        raise MisconfigurationException(
            f"QuantizationAwareTraining builds on torch.ao.quantization, which torch {torch.__version__} does not have "
            f"any more. Use an older torch, or quantize the trained model with the package torchao"
        ) from error
    return tools


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Torch warns at each call that this will be torchao's one day; the module's docstring says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message=".*reduce_range will be deprecated")
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        yield
